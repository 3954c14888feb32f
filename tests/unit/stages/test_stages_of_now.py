"""Scores and figures are made of networks, stores and results that belong together; others are refused with the command."""

import copy
import importlib.util
import sys
from types import SimpleNamespace

import pytest
import torch

from pag_core.errors import ArtifactError
from pag_core.gradient_store.manifest import read_manifest
from pag_core.gradient_store.store import GradientStore, SmallStore, write_small_store
from pag_core.pipeline.artifacts import digest
from pag_core.pipeline.paths import gradients_path
from pag_core.pipeline.saved_network import SavedNetwork
from pag_core.pipeline.stage import OpenStage
from tests.fixtures.samples import ROOT

LAST = {"accuracy": 0.5, "cross_entropy": 1.25}
CHOSEN = {"source": "cm", "lambda": 1.0, "train.epochs": 2, "pag_score.reference": "none"}


@pytest.fixture
def stage(monkeypatch):
    """A stage as a module, by its name."""
    monkeypatch.setattr(sys, "path", list(sys.path))

    def load(name):
        spec = importlib.util.spec_from_file_location(name, ROOT / f"stages/{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture
def store(tmp_path, monkeypatch, dataset):
    """A store of class means in the current folder; its checksum."""
    monkeypatch.chdir(tmp_path)
    means = SmallStore("representatives", {"representatives": torch.rand(3, 1, 8, 8)})
    write_small_store(gradients_path("cm"), dataset, "cm", means, {"inputs": {}})
    return read_manifest(gradients_path("cm"))["checksum"]


def network(name, params, **inputs):
    record = {"params": params, "inputs": inputs}
    return SavedNetwork({"checksum": name * 64, "provenance": record, "training": LAST}, {})


def test_scores_say_of_what_they_are(stage, store, dataset, make_params, cpu):
    opened = OpenStage("pag_score", stage("pag_score").READS)
    opened.all_params = make_params({**CHOSEN, "pag_score.reference": "cm", "figures.targeted_steps": 9})
    opened.device = cpu
    stores = {"cm": GradientStore(gradients_path("cm"))}
    networks = {"classifier": network("c", {}, **{"gradient store": store}), "baseline": network("b", {})}
    record = stage("pag_score")._provenance(opened, dataset, stores, networks)
    assert record["inputs"] == {
        "dataset": dataset.fingerprint, "classifier": "c" * 64, "baseline": "b" * 64,
        "gradient store": store, "reference store": store,
    }  # fmt: skip
    assert record["params"]["figures"] == {"targeted_steps": 9} and record["params"]["source"] == "cm"
    assert record["params"]["pag_score"] == opened.all_params.section("pag_score")["pag_score"]
    networks["classifier"] = network("c", {}, **{"gradient store": "e" * 64})
    words = rf"data/classifier was .*another gradient store \(fingerprint e{{12}}\) than .* \({store[:12]}\); run .*train.py"
    with pytest.raises(ArtifactError, match=words):
        stage("pag_score")._provenance(opened, dataset, stores, networks)


@pytest.fixture
def drawn(stage, dataset, make_params):
    """`drawn(change)`: the record of figures whose parts belong together, but for what `change` does to them."""
    data = {"dataset": dataset.fingerprint}
    networks = {
        "classifier": network("c", {"lambda": 1.0}, **data),
        "baseline": network("b", {"train": {"epochs": 2}}, **data),
    }
    of = {who: {"params": {}, "inputs": {**data, who: saved.fingerprint}} for who, saved in networks.items()}
    both = {"params": {}, "inputs": of["classifier"]["inputs"] | of["baseline"]["inputs"]}
    measured = {
        "masking": {"provenance": both},
        "autoattack": {"provenance": {"model": of["classifier"], "baseline": of["baseline"]}},
    }
    curves = {who: {name: [(1, 0.25), (2, value)] for name, value in LAST.items()} for who in networks}

    def make(change=lambda given: None):
        given = SimpleNamespace(
            opened=OpenStage("figures", stage("figures").READS),
            networks=dict(networks),
            measured=copy.deepcopy(measured),
            curves=copy.deepcopy(curves),
        )
        given.opened.all_params = make_params(CHOSEN)
        change(given)
        record = stage("figures")._record(given.opened, dataset, given.networks, given.measured, given.curves)
        return record, given

    return make


def test_figures_say_of_what_they_are(drawn, dataset):
    record, given = drawn()
    assert record["inputs"] == {
        "dataset": dataset.fingerprint, "classifier": "c" * 64, "baseline": "b" * 64,
        **{name: digest(details) for name, details in given.measured.items()},
    }  # fmt: skip
    assert record["params"]["lambda"] == 1.0 and record["params"]["pag_score"] == {"reference": "none"}
    assert record["params"]["figures"] == given.opened.all_params.section("figures")["figures"]


def measured_on_another(name, who, *path):
    def change(given):
        record = given.measured[name]["provenance"]
        for part in path:
            record = record[part]
        record["inputs"][who] = "9" * 64

    return change


def other_curves(given):
    given.curves["baseline"]["accuracy"][-1] = (2, 0.75)


def other_lambda(given):
    given.networks["classifier"] = network("c", {"lambda": 2.0})


def other_recipe(given):
    given.networks["baseline"] = network("b", {"train": {"epochs": 3}})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            measured_on_another("masking", "classifier"),
            r"masking.json was .*another classifier.*stages/masking.py again",
        ),
        (measured_on_another("masking", "baseline"), r"masking.json was .*another baseline"),
        (measured_on_another("autoattack", "classifier", "model"), r"autoattack.json was .*another classifier"),
        (
            measured_on_another("autoattack", "baseline", "baseline"),
            r"autoattack.json was .*another baseline.*dvc repro",
        ),
        (measured_on_another("autoattack", "dataset", "baseline"), r"autoattack.json was .*another dataset"),
        (
            other_curves,
            r"curves/baseline is of another training than data/baseline; run python stages/train.py --baseline",
        ),
        (
            other_lambda,
            r"data/classifier was made with lambda 2.0, and params.yaml has 1.0; run python stages/train.py again",
        ),
        (
            other_recipe,
            r"data/baseline was made with train.epochs 3, and params.yaml has 2; run .*train.py --baseline again",
        ),
    ],
)
def test_figures_of_parts_that_do_not_belong_together_are_refused(drawn, change, words):
    with pytest.raises(ArtifactError, match=words):
        drawn(change)
