"""The finished runs of experiments, as figures take them: what each measured, where its outputs lie, and its models by kind."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from experiments.by_hand import ByHand
from experiments.described_stages import Plain
from experiments.description import Experiment, Row
from experiments.results import Measured
from pag_core.figures.model_marks import Kind
from pag_core.params.reading import parse_params
from pag_core.params.sections import Params
from pag_core.params.values import Source


@dataclass(frozen=True)
class Finished:
    """An experiment with what its runs measured; `output(run, path)` is where an output of a run's stages lies here."""

    experiment: Experiment
    measured: Measured
    output: Callable[[str, str], Path]

    @property
    def missing(self) -> list[str]:
        """The runs that have not finished."""
        return [run for run in self.experiment.params if run not in self.measured]


@dataclass(frozen=True)
class Model:
    """A trained network: the classifier of a run, or the baseline that was trained beside it."""

    run: str
    baseline: bool
    params: Params
    measured: dict[str, Plain]

    @property
    def who(self) -> str:
        """Its name in metrics files."""
        return "baseline" if self.baseline else "model"

    @property
    def kind(self) -> Kind:
        """What it was trained with; a lambda of 0 aligns nothing."""
        params = self.params
        method = params.baseline_method if self.baseline else params.method
        source: Source = "none" if self.baseline or params.weight == 0 else params.source
        control = params.control if source != "none" else None
        norm, radius = (params.at.norm, params.at.radius) if method == "at" else ("", "")
        return Kind(source, method, norm, params.arch, control, radius)


def models_of(finished: Finished, row: Row) -> list[Model]:
    """The models of a table's row, one for each seed that has run."""
    experiment = finished.experiment
    return [
        Model(run, row.baseline, parse_params(experiment.params[run]), finished.measured[run])
        for run in experiment.runs[row.classifier]
        if run in finished.measured
    ]


def different_models(several: list[Finished]) -> list[Model]:
    """Every model of several experiments once: baselines of many runs are the same network, as rows of two tables can be."""
    found: dict[str, Model] = {}
    contents: dict[str, str] = {}
    for finished in several:
        for run, measured in finished.measured.items():
            # a folder is named after all that the network depends on; the code of now left out
            stages = ByHand(finished.experiment.params[run], Path(), lambda script: "", contents)
            params = parse_params(finished.experiment.params[run])
            for stage, baseline in (("baseline", True), ("train", False)):
                found.setdefault(stages.folder(stage).name, Model(run, baseline, params, measured))
    return list(found.values())
