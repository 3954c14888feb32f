"""The first losses of each objective and one gradient of each source are those that were recorded."""

import importlib.util
import json
import math
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent


@pytest.fixture(scope="module")
def recorded():
    return json.loads((FOLDER / "first_losses.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def now():
    spec = importlib.util.spec_from_file_location("golden_record", FOLDER / "record.py")
    record = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(record)
    return record.measured()


def numbers(content):
    if isinstance(content, dict):
        return [number for key in content for number in numbers(content[key])]
    if isinstance(content, list):
        return [number for part in content for number in numbers(part)]
    return [content]


def test_the_dataset_is_the_recorded_one(recorded, now):
    assert now["dataset"] == recorded["dataset"]


@pytest.mark.parametrize(
    "objective",
    [
        "vanilla",
        "log_softmax all adjoint",
        "log_softmax all autograd",
        "log_softmax drawn adjoint",
        "logit all adjoint",
    ],
)
def test_first_losses(recorded, now, objective):
    expected, found = recorded["first_losses"][objective], now["first_losses"][objective]
    assert [row.keys() for row in found] == [row.keys() for row in expected]
    assert numbers(found) == pytest.approx(numbers(expected), rel=recorded["relative_tolerance"])


@pytest.mark.parametrize("source", ["oi", "cm", "nn", "sbg"])
def test_gradients(recorded, now, source):
    expected, found = numbers(recorded["gradients"][source]), numbers(now["gradients"][source])
    largest = max(map(abs, expected))
    assert largest > 0 and len(expected) == 32
    # relative to the largest: single pixels may be differences of nearly equal numbers
    assert found == pytest.approx(expected, rel=0, abs=recorded["relative_tolerance"] * largest)


def test_the_record_says_how_it_was_made(recorded):
    assert recorded["seed"] == 3407 and recorded["made_by"] == "tests/golden/record.py"
    assert {"torch", "numpy", "guided_diffusion_sdk"} <= recorded["versions"].keys()
    assert recorded["relative_tolerance"] == 1e-4
    assert all(math.isfinite(number) for number in numbers(recorded["first_losses"]))


def test_the_recorded_losses_agree_with_one_another(recorded):
    """Identities that hold whatever the numbers are: Eq. 4, the scalings, and the two modes without batch-norm."""
    losses = recorded["first_losses"]
    for name, rows in losses.items():
        for row in rows:
            if name != "vanilla":
                assert row["total"] == pytest.approx(row["cross_entropy"] + 3.0 * row["alignment"], rel=1e-5)
    every, drawn = losses["log_softmax all adjoint"][0], losses["log_softmax drawn adjoint"][0]
    assert every["alignment"] == pytest.approx(10 / 3 * drawn["alignment"], rel=1e-5)
    assert numbers(losses["log_softmax all autograd"]) == pytest.approx(
        numbers(losses["log_softmax all adjoint"]), rel=1e-3
    )
