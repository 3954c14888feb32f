"""The benchmarks of growth and of a plan at their smallest, by their commands."""

import json
import math
import subprocess

import pytest

from tests.fixtures.project_copy import forks
from tests.fixtures.samples import ROOT

pytestmark = pytest.mark.slow

FED = [f"train, {feed}" for feed in ("first map", "resident", "memory_map", "window")]
GROWING = ["prepare", "diffusion", "start", "baseline, memory_map", *FED, "sbg"]
KEYS = ("seconds", "anonymous", "resident")
TRAINED = ("diffusion", "sbg", "baseline", "train")
GROWTH = {
    "memory_map.speedup",
    *(
        f"{stage}.{name}"
        for stage in GROWING
        for sizes, kind in (((80, 320, 1280), "images"), ((10, 20, 40), "classes"))
        for name in (
            f"exponent_of_{kind}",
            *(f"{key}_with_{kind}" for key in KEYS[1:]),
            *(f"{size}_{kind}.{key}" for size in sizes for key in KEYS),
        )
    ),
}


def measured(subject, tmp_path):
    output = tmp_path / "measured.json"
    command = [f"{forks()}/python", "-m", f"benchmarks.{subject}", "--smallest", "--output", str(output)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(output.read_text(encoding="utf-8"))["measurements"]
    for name, measurement in found.items():
        assert measurement.get("not_measured") or math.isfinite(measurement["value"]), name
    return {name.removeprefix(f"{subject}."): measurement["value"] for name, measurement in found.items()}, done.stdout


def test_growth(tmp_path):
    found, said = measured("growth", tmp_path)
    assert set(found) == GROWTH
    assert "| stage | 80 images | 320 images | 1,280 images | exponent |" in said


def test_plan(tmp_path):
    found, said = measured("plan", tmp_path)
    for kind in ("images", "store", "raw copies"):  # bytes are counted, and random pixels do not shrink
        assert found[f"simulation.{kind}.bytes"] == pytest.approx(1, abs=0.03)
    assert {f"simulation.{stage}.{key}" for stage in ("prepare", *TRAINED) for key in ("seconds", "peak")} <= set(found)
    assert all(found[f"cifar10_32.{stage}.work"] > 0 for stage in TRAINED)
    assert "| stage | PFLOP |" in said
