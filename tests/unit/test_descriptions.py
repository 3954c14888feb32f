"""Descriptions of experiments: what they read as, what they refuse, and what DVC is told."""

import pytest
import typer
import yaml

from experiments.described_stages import described_stages, outputs_of
from experiments.description import base_params, read_experiment
from experiments.with_dvc import metrics_paths, overrides
from pag_core.errors import ParamsError
from pag_core.params.reading import parse_params
from tests.samples import ROOT
from tests.small_experiment import DESCRIPTION


@pytest.mark.parametrize("wrong", ["train.epoch=3", "cm:lamda=1", "lambda", "pet:lambda=1"])
def test_a_change_of_no_parameter_is_refused(tmp_path, wrong):
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(DESCRIPTION), encoding="utf-8")
    with pytest.raises(typer.BadParameter, match="no such parameter"):
        read_experiment(tmp_path / "tiny.yaml", "tiny", [wrong])


def test_a_wrong_value_is_refused_before_anything_runs(tmp_path):
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(DESCRIPTION), encoding="utf-8")
    with pytest.raises(ParamsError, match=r"tiny\.yaml \(tiny, cm\).*\n.*train\.epochs: 0 is refused"):
        read_experiment(tmp_path / "tiny.yaml", "tiny", ["cm:train.epochs=0"])
    with pytest.raises(typer.BadParameter, match="huge is not one of: tiny"):
        read_experiment(tmp_path / "tiny.yaml", "huge", [])


def test_the_metrics_of_the_stages_that_are_wanted_are_taken():
    """Also where nothing is attacked."""
    for size, names in (("levels", ["training"]), ("full", ["autoattack", "pag_score"])):
        experiment = read_experiment(ROOT / "experiments/cifar10_16px.yaml", size, [])
        found = metrics_paths(experiment, next(iter(experiment.params)))
        assert sorted(found) == sorted(f"{place}{name}" for name in names for place in ("", "details/"))
        assert all(path == f"metrics/{name}.json" for name, path in found.items())


VALUES = [
    None,
    True,
    3,
    1e-4,
    0.5,
    "8/255",
    "a b",
    "it's",
    "a\\b",
    "",
    [],
    [1, "8/255"],
    {"factor": 0.667, "epochs": 50},
]


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_overrides_are_read_as_they_were_meant(tmp_path, value):
    """By DVC's own reading of `--set-param`, in a file that holds another value."""
    from dvc.utils.hydra import apply_overrides

    base = {"section": {"key": 1, "other": 2, "gone": 3}, "plain": 5}
    file = tmp_path / "params.yaml"
    file.write_text(yaml.safe_dump(base))
    wanted = {"section": {"key": value, "other": 2}, "plain": 5, "new": value}
    apply_overrides(file, overrides(wanted, base))
    assert yaml.safe_load(file.read_text()) == wanted


@pytest.mark.parametrize("size", ["full", "half_hour", "small"])
def test_the_committed_experiment_is_valid(size):
    experiment = read_experiment(ROOT / "experiments/cifar10_resnet18.yaml", size, [])
    assert experiment.params.keys() == {"cm", "sbg"} and [row.label for row in experiment.rows] == [
        "vanilla",
        "cm",
        "sbg",
    ]
    assert experiment.rows[2].published == (78.56, 55.39, 23.97)
    for name, params in experiment.params.items():
        # heuristic targets aligned with the log-probability cost the clean accuracy
        assert parse_params(params).objective.output == {"cm": "logit", "sbg": "log_softmax"}[name]
        assert set(experiment.stages) <= described_stages(params).keys()


@pytest.mark.parametrize("size", ["full", "small"])
def test_the_rivals_on_digits_are_valid(size):
    experiment = read_experiment(ROOT / "experiments/digits_rivals.yaml", size, ["sbg_trades:lambda=0.5"])
    assert len(experiment.params) == 3 * len(experiment.runs) == 42
    assert {experiment.params[run]["seed"] for run in experiment.runs["trades"]} == {3407, 3408, 3409}
    assert {experiment.params[run]["lambda"] for run in experiment.runs["sbg_trades"]} == {0.5}
    assert experiment.params["at_linf-seed3407"]["at"]["norm"] == "Linf"


def test_stages_are_described_with_their_values():
    params = {**base_params(), "source": "nn"}
    stages = described_stages(params)
    assert "data/gradients/nn.zarr" in stages["train"]["deps"] and "source_defaults.nn" in stages["train"]["params"]
    assert outputs_of(stages["heuristic@nn"]) == ["data/gradients/nn.zarr"] and "code" not in stages
    assert stages["heuristic@nn"]["cmd"] == "python stages/heuristic.py nn" and "nn" in stages["heuristic@nn"]["params"]
