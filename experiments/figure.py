"""A figure over all runs of one or several experiments, which have run before.

    python experiments/figure.py correlation experiments/digits_rivals.yaml --output results

Runs that are missing are named, and are gaps in the figure.
"""

import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

sys.path[0] = str(Path(__file__).resolve().parents[1])  # this checkout

import typer

from experiments.description.experiment import Experiment, read_experiment
from experiments.figures.models import Finished
from experiments.figures.pictures import draw_lambda, draw_sources, draw_targeted, draw_timesteps
from experiments.figures.plots import Drawn, draw_correlation, draw_curves
from experiments.runs.named import finished, named, outputs
from pag_core.errors import PagError
from pag_core.figures.palette import save_figure
from pag_core.pipeline.artifacts import replacing_file
from pag_core.pipeline.code_identity import CHECKOUT
from pag_core.pipeline.paths import FIGURES as STAGE_FIGURES


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


def _finished(experiment: Experiment, place: Path) -> Finished:
    """The runs of `experiment` that have finished; outputs that DVC keeps are taken out below `place`."""
    runs = named(experiment)
    found = finished(runs, remark=True)
    return Finished(experiment, {run: done.measured for run, done in found.items()}, outputs(runs, found, place))


def _require_stages(description: Path, experiment: Experiment, drawing: Drawing) -> None:
    """Raise BadParameter where the experiment does not run a stage that the figure takes."""
    # whatever attacks networks trains them first
    lacking = [stage for stage in drawing.stages if stage not in (*experiment.stages, "train", "baseline")]
    if lacking:
        raise typer.BadParameter(f"{description} does not run {lacking[0]}; add it to its `stages` and run it")


def main(
    name: Annotated[str, typer.Argument(help=f"One of: {', '.join(FIGURES)}.")],
    descriptions: Annotated[list[Path], typer.Argument(help="The experiments, as experiments/run.py takes them.")],
    output: Annotated[Path, typer.Option(help="A folder for NAME.png and its caption, NAME.txt.")],
    images: Annotated[Path | None, typer.Option(help="The folder of images that the experiments ran on.")] = None,
    size: Annotated[str, typer.Option(help="Which of the descriptions' sizes.")] = "full",
    change: Annotated[
        list[str] | None, typer.Option("--set", "-S", help="A parameter, as the experiments were run with.")
    ] = None,
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
        experiments = [read_experiment(description, size, change or [], images) for description in descriptions]
        for description, experiment in zip(descriptions, experiments, strict=True):
            _require_stages(description, experiment, drawing)
        with tempfile.TemporaryDirectory() as place:
            several = [_finished(one, Path(place)) for one in experiments]
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
