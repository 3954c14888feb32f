"""What an attack found about the baseline is joined only with the same attack on the classifier."""

import json

import pytest
import torch

from pag_core.errors import ArtifactError
from pag_core.evaluation.subject import baseline_place, keep_result
from pag_core.pipeline.places import METRICS, classifier_place, details_place
from pag_core.pipeline.saved_network import read_card, save_network

RECORD = {"params": {"autoattack": {"images": 10, "radii": {"L2": ["1"]}}}, "seed": 1, "inputs": {"dataset": "a" * 64}}


def keep(who, provenance, found):
    keep_result(
        "autoattack",
        who,
        found,
        provenance=provenance,
        head={"images": 10},
        headline=lambda measured: {"L2 1": measured[who]},
    )


def train_baseline(weight):
    save_network(classifier_place("baseline"), {"weight": torch.tensor(weight)}, {"kind": "classifier"})
    return read_card(classifier_place("baseline"), "classifier")["checksum"]


@pytest.fixture(autouse=True)
def baseline(tmp_path, monkeypatch):
    """The current folder after the attack on the baseline, whose fingerprint it is."""
    monkeypatch.chdir(tmp_path)
    fingerprint = train_baseline(1.0)
    keep("baseline", {**RECORD, "inputs": {**RECORD["inputs"], "baseline": fingerprint}}, 0.25)
    return fingerprint


def test_the_same_attack_on_the_same_images_is_joined(baseline):
    of_model = {**RECORD, "inputs": {**RECORD["inputs"], "classifier": "c" * 64}}
    keep("model", of_model, 0.5)
    details = json.loads(details_place("autoattack").read_text())
    assert (details["model"], details["baseline"], details["images"]) == (0.5, 0.25, 10)
    assert details["provenance"]["baseline"]["inputs"]["baseline"] == baseline
    assert details["provenance"]["model"] == of_model
    assert json.loads((METRICS / "autoattack.json").read_text()) == {"L2 1": 0.5}


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"inputs": {"dataset": "d" * 64}}, "dataset a.* has d"),
        ({"seed": 2}, "seed 1, .* has 2"),
        ({"params": {"autoattack": {"images": 200, "radii": {"L2": ["1"]}}}}, "params .*10.* has .*200"),
    ],
)
def test_another_attack_or_other_images_are_refused(other, words):
    with pytest.raises(
        ArtifactError, match=rf"{baseline_place('autoattack')} .*{words}.*autoattack.py --baseline again"
    ):
        keep("model", {**RECORD, **other}, 0.5)
    assert not METRICS.exists()


def test_an_attack_on_another_baseline_than_there_is_now_is_refused(baseline):
    """As after `python stages/train.py --baseline` with another method; and it is refused when the attack begins."""
    now = train_baseline(2.0)
    words = (
        rf"another baseline \(fingerprint {baseline[:12]}\) than .* now \({now[:12]}\).*autoattack.py --baseline again"
    )
    with pytest.raises(ArtifactError, match=words):
        keep("model", RECORD, 0.5)
    assert not METRICS.exists()
    train_baseline(1.0)
    keep("model", RECORD, 0.5)
