"""The finished runs of experiments, as figures take them: what each measured, where its outputs lie, and its models by kind."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from experiments.description.experiment import Experiment, Row
from experiments.description.file import Plain
from experiments.table import Measured
from pag_core.figures.model_marks import Kind
from pag_core.gradients.sources import source_of
from pag_core.params.reading import parse_params
from pag_core.params.sections import Params


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
        source = "none" if self.baseline or params.lambda_ == 0 else source_of(params)
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
    for finished in several:
        for run, measured in finished.measured.items():
            params = parse_params(finished.experiment.params[run])
            attacked = measured["details/autoattack"]["provenance"]
            for who, network in (("baseline", "baseline"), ("model", "classifier")):
                found.setdefault(attacked[who]["inputs"][network], Model(run, who == "baseline", params, measured))
    return list(found.values())
