"""What was made from other networks, data or parameters than there are now is told from the rest."""

import pytest

from pag_core.errors import ArtifactError
from pag_core.pipeline.origins import require_of_now

INPUTS = {"dataset": "d" * 64, "classifier": "c" * 64}


def record(params, **inputs):
    return {"params": params, "inputs": {**INPUTS, **inputs}}


@pytest.fixture
def require(make_params):
    def check(found, changes=None):
        chosen = {"lambda": 1.5, "at.steps": 7, "control": None, "autoattack.radii": {"L2": [0.75], "Linf": [0.15]}}
        params = make_params({**chosen, **(changes or {})})
        require_of_now("metrics/x.json", found, inputs=INPUTS, params=params, remedy="run python stages/x.py again")

    return check


def test_what_is_of_now_passes(require, plain_params):
    """A record may be of some keys of a section, and made from more than is asked about."""
    parts = {"lambda": 1.5, "autoattack": plain_params["autoattack"], "figures": {"targeted_steps": 60}}
    parts["autoattack"] = {**parts["autoattack"], "radii": {"L2": ["0.75"], "Linf": ["0.15"]}}
    require(record(parts, baseline="b" * 64), {"figures.targeted_steps": 60})


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (None, r"another dataset \(fingerprint unknown\) than there is now \(d{12}\); run python stages/x.py again$"),
        (record({}, classifier="e" * 64), r"metrics/x.json was .*another classifier \(fingerprint e{12}\)"),
        ({"params": {}, "inputs": {"dataset": "d" * 64}}, r"another classifier \(fingerprint unknown\)"),
        (record({"lambda": 2.0}), r"made with lambda 2.0, and params.yaml has 1.5; run .* again, or set it back"),
        (record({"at": {"steps": 3}}), r"made with at.steps 3, and params.yaml has 7"),
        # one of two norms is another attack, though each value that it has is that of now
        (record({"autoattack": {"radii": {"L2": ["0.75"]}}}), r"autoattack.radii \{'L2': \['0.75'\]\}, and .*Linf"),
        (record({"train": {"checkpoint_seconds": 20}}), r"train.checkpoint_seconds 20, and params.yaml has None"),
        (record({"control": "other_image"}), r"control other_image, and params.yaml has None"),
    ],
)
def test_what_is_not_is_named_with_the_command(require, found, words):
    with pytest.raises(ArtifactError, match=words):
        require(found)
