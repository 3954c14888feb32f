"""An experiment of several classifiers as one command: a DVC experiment for each run.

    python experiments/run.py experiments/cifar10_resnet18.yaml --images FOLDER --size small --jobs 2

Give the same command again to resume after an interruption: finished work is kept either way.
"""

import sys
from pathlib import Path
from typing import Annotated

sys.path[0] = str(Path(__file__).resolve().parents[1])  # this checkout

import typer

from experiments.best import require_measured
from experiments.description.experiment import read_experiment
from experiments.runs.named import finished, named
from experiments.runs.queue import run_all
from experiments.table import as_csv, markdown
from pag_core.compute.interruption import Interrupted, interruptible
from pag_core.errors import PagError
from pag_core.pipeline.artifacts import replacing_file


def main(
    description: Annotated[Path, typer.Argument(help="The experiment, for example experiments/tables/table_1.yaml.")],
    images: Annotated[
        Path | None,
        typer.Option(
            help="An image folder: train and test, as folders or .tar.* files; none: the dataset of the description."
        ),
    ] = None,
    size: Annotated[str, typer.Option(help="Which of the description's sizes.")] = "full",
    change: Annotated[
        list[str] | None,
        typer.Option("--set", "-S", help="A parameter, as train.epochs=10; NAME:train.epochs=10 of one classifier."),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            help="A classifier, or one run of it (sbg-seed1, or its number from 0), instead of all; give it again for another."
        ),
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="How many runs at once.")] = 1,
    show: Annotated[
        bool, typer.Option("--show", help="Run nothing: print what there is, with gaps for what is missing.")
    ] = False,
    best: Annotated[
        str | None,
        typer.Option(
            help="Mark the best by this validation accuracy, as clean or 'L2 0.75'; of a grid by default robust, the mean of "
            "all attacked."
        ),
    ] = None,
    output: Annotated[Path | None, typer.Option(help="A folder for the table, as Markdown and as CSV.")] = None,
) -> None:
    """Run what is not done yet, and print the results beside the published numbers."""
    try:
        with interruptible():
            experiment = read_experiment(description, size, change or [], images)
            if only:
                experiment = experiment.only(only)
            if best is not None:
                require_measured(experiment, best)
            runs = named(experiment)
            done = finished(runs, remark=True) if show else run_all(runs, jobs)
    except PagError as error:
        print(error, file=sys.stderr)
        sys.exit(1)
    except Interrupted as signal:
        print(f"{signal}; the same command resumes", file=sys.stderr)
        sys.exit(signal.exit_code)
    found = {run: one.measured for run, one in done.items()}
    print(f"\n{markdown(experiment, found, best)}")
    if output is not None:
        for ending, text in (("md", markdown(experiment, found, best)), ("csv", as_csv(experiment, found))):
            with replacing_file(output / f"{experiment.name}.{ending}") as partial:
                partial.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    app()
