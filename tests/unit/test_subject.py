"""What an attack found about the baseline is joined only with the same attack on the classifier."""

import json

import pytest

from pag_core.errors import ArtifactError
from pag_core.evaluation.subject import baseline_place, keep_result
from pag_core.pipeline.places import METRICS, details_place

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


@pytest.fixture(autouse=True)
def baseline(tmp_path, monkeypatch):
    """The current folder after the attack on the baseline."""
    monkeypatch.chdir(tmp_path)
    keep("baseline", {**RECORD, "inputs": {**RECORD["inputs"], "baseline": "b" * 64}}, 0.25)


def test_the_same_attack_on_the_same_images_is_joined():
    of_model = {**RECORD, "inputs": {**RECORD["inputs"], "classifier": "c" * 64}}
    keep("model", of_model, 0.5)
    details = json.loads(details_place("autoattack").read_text())
    assert (details["model"], details["baseline"], details["images"]) == (0.5, 0.25, 10)
    assert details["provenance"]["baseline"]["inputs"]["baseline"] == "b" * 64
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
