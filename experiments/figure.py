"""A figure over all runs of one or several experiments, which have run before.

    python experiments/figure.py correlation experiments/digits_rivals.yaml --output results

Runs that are missing are named, and are gaps in the figure.
"""

import importlib.util
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

sys.path[0] = str(Path(__file__).resolve().parents[1])  # this checkout

import typer

from experiments.by_hand import opened_by_hand
from experiments.description import Experiment, read_experiment
from experiments.finished import Finished
from experiments.images import on_given_images
from experiments.pictures import draw_lambda, draw_sources, draw_targeted, draw_timesteps
from experiments.plots import Drawn, draw_correlation, draw_curves
from pag_core.errors import PagError
from pag_core.figures.palette import save_figure
from pag_core.pipeline.artifacts import replacing_file
from pag_core.pipeline.code_identity import CHECKOUT
from pag_core.pipeline.places import FIGURES as STAGE_FIGURES


@dataclass(frozen=True)
class Asked:
    """What a figure may be asked for beside its runs."""

    setting: str | None
    test_images: list[int]
    timesteps: list[int]


@dataclass(frozen=True)
class Drawing:
    """How a figure is drawn, and the stages that it takes results of."""

    draw: Callable[[list[Finished], Asked], Drawn]
    stages: tuple[str, ...]


FIGURES = {
    "correlation": Drawing(lambda runs, asked: draw_correlation(runs, asked.setting), ("autoattack", "pag_score")),
    "curves": Drawing(lambda runs, asked: draw_curves(runs), ("masking",)),
    "lambda": Drawing(lambda runs, asked: draw_lambda(runs, asked.test_images), ("autoattack",)),
    "timesteps": Drawing(lambda runs, asked: draw_timesteps(runs, asked.test_images, asked.timesteps), ("autoattack",)),
    "targeted": Drawing(lambda runs, asked: draw_targeted(runs, asked.test_images), ("train", "baseline")),
    "sources": Drawing(lambda runs, asked: draw_sources(runs, asked.test_images), ("train", "baseline")),
}


def finished(experiment: Experiment, *, by_hand: bool, work: Path, place: Path) -> Finished:
    """The runs of `experiment` whose stages have finished; outputs that DVC keeps are taken out below `place`."""
    if by_hand or importlib.util.find_spec("dvc") is None:
        opened = opened_by_hand(experiment, work)
        measured = {run: stages.measured() for run, stages in opened.items()}
        return Finished(experiment, measured, lambda run, path: opened[run].output(path))
    from experiments.with_dvc import finished_revisions, found_with_dvc, outputs_with_dvc

    revisions = finished_revisions(experiment)
    return Finished(experiment, found_with_dvc(experiment, revisions), outputs_with_dvc(experiment, revisions, place))


def _wanted(description: Path, size: str, changes: list[str], drawing: Drawing) -> Experiment:
    """The experiment with the stages that the figure takes; raises BadParameter where it does not run one of them."""
    experiment = read_experiment(description, size, changes)
    # whatever attacks networks trains them first
    lacking = [stage for stage in drawing.stages if stage not in (*experiment.stages, "train", "baseline")]
    if lacking:
        raise typer.BadParameter(f"{description} does not run {lacking[0]}; add it to its `stages` and run it")
    return replace(experiment, stages=drawing.stages)


def main(
    name: Annotated[str, typer.Argument(help=f"One of: {', '.join(FIGURES)}.")],
    descriptions: Annotated[list[Path], typer.Argument(help="The experiments, as experiments/run.py takes them.")],
    output: Annotated[Path, typer.Option(help="A folder for NAME.png and its caption, NAME.txt.")],
    images: Annotated[Path | None, typer.Option(help="The folder of images that the experiments ran on.")] = None,
    size: Annotated[str, typer.Option(help="Which of the descriptions' sizes.")] = "full",
    change: Annotated[
        list[str] | None, typer.Option("--set", "-S", help="A parameter, as the experiments were run with.")
    ] = None,
    work: Annotated[Path, typer.Option(help="Where images are arranged, and where stages ran without DVC.")] = Path(
        "work"
    ),
    by_hand: Annotated[bool, typer.Option("--by-hand", help="Take the runs below --work, not DVC's.")] = False,
    setting: Annotated[
        str | None, typer.Option(help="AutoAttack's norm and radius, as 'L2 0.75'; the first of L2 unless given.")
    ] = None,
    test_image: Annotated[
        list[int] | None, typer.Option(help="The number of a test image for pictures; may be given again.")
    ] = None,
    timestep: Annotated[
        list[int] | None, typer.Option(help="A further noise level for the figure timesteps; may be given again.")
    ] = None,
) -> None:
    """Draw a figure from finished runs."""
    if output.resolve().is_relative_to(CHECKOUT / STAGE_FIGURES):
        raise typer.BadParameter(
            f"{output} belongs to the stage figures, and DVC removes what else is in it; name another folder",
            param_hint="--output",
        )
    if name not in FIGURES:
        raise typer.BadParameter(f"{name} is not one of: {', '.join(FIGURES)}", param_hint="NAME")
    drawing = FIGURES[name]
    try:
        experiments = [_wanted(description, size, change or [], drawing) for description in descriptions]
        experiments = [on_given_images(one, images, work) for one in experiments]
        with tempfile.TemporaryDirectory() as place:
            several = [finished(one, by_hand=by_hand, work=work, place=Path(place)) for one in experiments]
            missing = [f"{one.experiment.name} {run}" for one in several for run in one.missing]
            for run in missing:
                print(f"not run: {run}", file=sys.stderr)
            drawn = drawing.draw(several, Asked(setting, test_image or [], timestep or []))
    except PagError as error:
        print(error, file=sys.stderr)
        sys.exit(1)
    gaps = [f"Not run, and left out: {', '.join(missing)}."] if missing else []
    output.mkdir(parents=True, exist_ok=True)
    save_figure(drawn.figure, output / f"{name}.png")
    with replacing_file(output / f"{name}.txt") as partial:
        partial.write_text("\n".join([*drawn.caption, *gaps]) + "\n", encoding="utf-8")
    print(f"{output / f'{name}.png'}: {' '.join(drawn.caption)}")


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    app()
