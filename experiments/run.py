"""An experiment of several classifiers as one command: through DVC, or on a machine without it stage by stage.

    python experiments/run.py experiments/cifar10_resnet18.yaml --images FOLDER --size small

Give the same command again to resume after an interruption: finished work is kept either way.
"""

import importlib.util
import sys
from pathlib import Path
from typing import Annotated

sys.path[0] = str(Path(__file__).resolve().parents[1])  # this checkout

import typer

from experiments.by_hand import found_by_hand, run_by_hand
from experiments.description import read_experiment
from experiments.images import on_given_images
from experiments.results import as_csv, markdown
from pag_core.errors import PagError
from pag_core.pipeline.artifacts import replacing_file


def main(
    description: Annotated[Path, typer.Argument(help="The experiment, for example experiments/tables/table_1.yaml.")],
    images: Annotated[
        Path | None,
        typer.Option(
            help="Folder with train and test, as folders or .tar.* files; none: the dataset of the description."
        ),
    ] = None,
    size: Annotated[str, typer.Option(help="Which of the description's sizes.")] = "full",
    change: Annotated[
        list[str] | None,
        typer.Option("--set", "-S", help="A parameter, as train.epochs=10; NAME:train.epochs=10 of one classifier."),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(help="A classifier, or one run of it (sbg-seed1), instead of all; give it again for another."),
    ] = None,
    work: Annotated[Path, typer.Option(help="Where images are arranged, and where stages run without DVC.")] = Path(
        "work"
    ),
    by_hand: Annotated[
        bool, typer.Option("--by-hand", help="Run the stages one by one below --work, also where DVC is installed.")
    ] = False,
    show: Annotated[
        bool, typer.Option("--show", help="Run nothing: print what there is, with gaps for what is missing.")
    ] = False,
    output: Annotated[Path | None, typer.Option(help="A folder for the table, as Markdown and as CSV.")] = None,
) -> None:
    """Run what is not done yet, and print the results beside the published numbers."""
    try:
        experiment = read_experiment(description, size, change or [])
        if only:
            experiment = experiment.only(only)
        experiment = on_given_images(experiment, images, work)
        if by_hand or importlib.util.find_spec("dvc") is None:
            found = found_by_hand(experiment, work) if show else run_by_hand(experiment, work)
        else:
            from experiments.with_dvc import finished_revisions, found_with_dvc, run_with_dvc

            found = found_with_dvc(experiment, finished_revisions(experiment)) if show else run_with_dvc(experiment)
    except PagError as error:
        print(error, file=sys.stderr)
        sys.exit(1)
    print(f"\n{markdown(experiment, found)}")
    if output is not None:
        for ending, text in (("md", markdown(experiment, found)), ("csv", as_csv(experiment, found))):
            with replacing_file(output / f"{experiment.name}.{ending}") as partial:
                partial.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    app()
