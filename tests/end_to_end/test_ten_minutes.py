"""The experiment for ten minutes of a GPU, on a CPU: every stage runs, and what there was no time for is said."""

import json
import subprocess

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from tests.fixtures.project_copy import forks
from tests.fixtures.samples import ROOT

pytestmark = pytest.mark.slow

TINY = {
    "device": "cpu", "processes": "1", "prepare.classes": json.dumps(list("0123456789")), "prepare.image_size": "null",
    "prepare.images_per_class": "null", "diffusion.timesteps": "1000", "diffusion.schedule": "linear",
    "diffusion.channel_multipliers": "[1]", "diffusion.timestep_window": "[150,250]", "sbg.timestep": "200",
    "diffusion.steps": "120", "diffusion.learning_rate": "2.0e-3", "gradient_store.images_per_shard": "128",
    "gradient_store.held_out_images": "20", "train.epochs": "1", "train.batch_size": "64", "validation.images": "10",
    "autoattack.images": "3", "autoattack.images_per_shard": "3", "pag_score.images": "6", "pag_score.judged_images": "3",
    "autoattack.radii": '{"L2": [3], "Linf": [0.6]}',
}  # fmt: skip


def run(images, output, *arguments):
    changes = [text for key, value in TINY.items() for text in ("-S", f"{key}={value}")]
    command = [f"{forks()}/python", "experiments/ten_minutes.py", "--images", str(images), "--output", str(output)]
    done = subprocess.run(
        [*command, "--size", "small", "--no-checks", *changes, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    steps = json.loads((output / "steps.json").read_text(encoding="utf-8"))
    return done, {how["step"]: how for how in steps}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Digits as an image folder."""
    place, digits = tmp_path_factory.mktemp("pictures"), load_digits()
    for number, (pixels, label) in enumerate(zip(digits.images[:900], digits.target[:900], strict=True)):
        folder = place / ("train" if number < 700 else "test") / str(label)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray((pixels * 15.9).astype(np.uint8)).save(folder / f"{number}.png")
    return place


def test_every_stage_runs_and_leaves_what_it_found(images, tmp_path):
    done, steps = run(images, tmp_path / "out")
    assert done.returncode == 0, (done.stdout, done.stderr[-2000:], list(steps.values())[-1])
    assert list(steps)[:4] == ["prepare", "check", "diffusion", "sbg"] and list(steps)[-1] == "pag_score"
    assert all(how["exit_code"] == 0 and how["seconds"] > 0 and how["peak_bytes"] > 1e7 for how in steps.values())
    results = json.loads((tmp_path / "out/results.json").read_text(encoding="utf-8"))
    assert {"metrics/autoattack.json", "metrics/pag_score.json", "timings/classifier.json"} <= set(results)
    assert set(results["metrics/autoattack.json"]["model"]) >= {"clean"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"params.yaml", "steps.json", "results.json"}


def test_what_there_was_no_time_for_is_said(images, tmp_path):
    done, steps = run(images, tmp_path / "out", "--seconds", "25", "-S", "diffusion.steps=1000000")
    assert done.returncode == 1
    codes = [how["exit_code"] for how in steps.values()]
    # what ran at the end of the time was asked to save
    assert codes == [0, 0, 143, *[None] * 8], steps
    assert "the same command resumes" in steps["diffusion"]["said"][-1]
    assert steps["pag_score"]["said"] == ["no time was left"]
