"""A network is kept when its measurement fails, and nothing is trained again for another measurement of it."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.test_killed_stages import contents
from tests.fixtures.project_copy import SMALL, ProjectCopy, stages_run

pytestmark = pytest.mark.slow

# Python imports this module first; the attack then has memory for four images
SMALL_DEVICE = """
import sys

if "stages/validation.py" in sys.orig_argv:
    import torch
    from pyautoattack.autopgd_base import APGDAttack

    perturb = APGDAttack.perturb

    def bounded(self, images, labels, *more):
        if len(images) > 4:
            raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {len(images)} GiB. GPU 0 has 4 GiB.")
        return perturb(self, images, labels, *more)

    APGDAttack.perturb = bounded
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProjectCopy]:
    """One project for the whole module: the tests below run in order, each going on from the last."""
    yield ProjectCopy(
        tmp_path_factory.mktemp("project"),
        {**SMALL, "source": "none", "validation.images": 60, "validation.batch_size": 200},
    )


def test_a_validation_that_runs_out_of_memory_costs_no_training(
    project: ProjectCopy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(SMALL_DEVICE, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    failed = project.run("dvc", "repro", "validation", check=False)
    assert failed.returncode != 0 and "Traceback" not in failed.stderr
    message = "validation_classifier: out of memory (CUDA out of memory. Tried to allocate"
    assert message in failed.stderr and "set validation.batch_size, which is 200, lower" in failed.stderr
    assert "train" in stages_run(failed.stdout)
    network = contents(project.path, ["data/classifier", "curves/classifier"])
    assert len(network) > 2 and not (project.path / "metrics/training.json").exists()

    project.set({"validation.batch_size": 4})
    assert stages_run(project.run("dvc", "repro", "validation").stdout) == ["code", "check", "validation"]
    assert contents(project.path, ["data/classifier", "curves/classifier"]) == network
    details = project.metrics("details/training")
    assert list(details["validation"]) == ["APGD-20 on 60 images (fast proxy)", "clean"]
    card = json.loads((project.path / "data/classifier/card.json").read_text(encoding="utf-8"))
    assert details["train"] == card["training"] and details["train"].keys() == {"accuracy", "cross_entropy"}


def test_what_only_measures_or_keeps_books_trains_and_attacks_nothing_again(project: ProjectCopy) -> None:
    """Neither classifier, baseline and diffusion model, nor any attack; the page shows all parameters."""
    project.set({"autoattack.radii": {"Linf": [0.6]}})
    targets = ("validation", "baseline_validation", "autoattack", "stages/gradients/dvc.yaml:diffusion")
    project.run("dvc", "repro", *targets)
    project.set({"validation.images": 6, "validation.radii": {"L2": [0.5]}, "validation.batch_size": 3})
    project.set({"checkpoint_seconds": 7})
    again = project.run("dvc", "repro", *targets)
    assert sorted(stages_run(again.stdout)) == ["baseline_validation", "check", "code", "validation"]
    assert project.metrics("training")["proxy"].keys() == {"L2 0.5"}
