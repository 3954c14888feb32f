"""Stages on two processes: the files and numbers that one process makes."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from pag_core.compute.processes import usable_cores
from tests.fixtures.project_copy import SMALL, ProjectCopy

pytestmark = pytest.mark.slow

TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> ProjectCopy:
    """Class means and a vanilla baseline, made by one process each."""
    overrides = {
        **SMALL,
        "source": "cm",
        "objective.output": "logit",
        "prepare.images_per_class": 20,
        "diffusion.steps": 6,
        "train.epochs": 2,
        "autoattack.images": 3,
        "autoattack.images_per_shard": 1,
        # short: at this radius no image stands long
        "autoattack.radii": {"Linf": [0.5]},
    }
    made = ProjectCopy(tmp_path_factory.mktemp("shared"), overrides)
    made.stage("code")
    made.stage("prepare")
    made.stage("check")
    made.stage("heuristic", "cm")
    made.stage("train", "--baseline")
    return made


def _files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def _differing(one: Any, two: Any) -> set[str]:
    return {key for key in one.keys() | two.keys() if one.get(key) != two.get(key)}


@pytest.fixture(scope="module")
def trained_alone(project: ProjectCopy) -> tuple[dict[str, list[str]], dict[str, Any], dict[str, Any]]:
    """The files, the card and the metrics of the classifier that one process trains."""
    project.set({"processes": 1})
    project.stage("train")
    project.stage("validation")
    files = {name: _files(project.path / name) for name in ("data/classifier", "curves/classifier")}
    return (
        files,
        json.loads((project.path / "data/classifier/card.json").read_text()),
        project.metrics("details/training"),
    )


@pytest.mark.parametrize(
    "command",
    [("dvc", "repro", "--single-item", "--force", "stages/gradients/dvc.yaml:train"), (*TORCHRUN, "stages/train.py")],
)
def test_training_by_dvc_and_by_torchrun(
    project: ProjectCopy,
    trained_alone: tuple[dict[str, list[str]], dict[str, Any], dict[str, Any]],
    command: tuple[str, ...],
) -> None:
    files, card, metrics = trained_alone
    for name in files:  # what is there afterwards is what this command made
        shutil.rmtree(project.path / name)
    project.set({"processes": 2})
    project.run(*command)
    project.stage("validation")
    assert {name: _files(project.path / name) for name in files} == files
    shared = json.loads((project.path / "data/classifier/card.json").read_text())
    assert _differing(card, shared) == {"provenance", "training", "sha256", "checksum"}
    assert _differing(card["provenance"], shared["provenance"]) == {"processes"}
    assert shared["provenance"]["processes"] == 2
    shared_metrics = project.metrics("details/training")
    assert shared_metrics["train"] == pytest.approx(metrics["train"], rel=1e-3)
    assert shared_metrics["validation"].keys() == metrics["validation"].keys()
    assert [path.name for path in (project.path / ".cache").iterdir()] == ["locks"]


def test_diffusion_by_its_own_ranks_and_by_torchrun(project: ProjectCopy) -> None:
    project.set({"processes": 2})
    project.stage("diffusion")
    files = _files(project.path / "data/diffusion")
    weights = (project.path / "data/diffusion/weights.safetensors").read_bytes()
    project.set({"processes": None})
    project.run(*TORCHRUN, "stages/diffusion.py")
    assert _files(project.path / "data/diffusion") == files
    assert (project.path / "data/diffusion/weights.safetensors").read_bytes() == weights


def test_attacks_give_identical_results(project: ProjectCopy, trained_alone: object) -> None:
    """With the threads of each, of which two processes that share the work have half: the records say so."""
    results, cores = [], usable_cores()
    each = max(1, cores // 2)
    for processes, threads, launcher in ((1, each, ("python",)), (2, cores, ("python",)), (1, each, TORCHRUN)):
        project.set({"processes": processes, "threads": threads})
        project.run(*launcher, "stages/autoattack.py", "--baseline")
        project.run(*launcher, "stages/autoattack.py")
        results.append(project.metrics_bytes()["details/autoattack.json"])
    assert results[0] == results[1] == results[2]
    assert json.loads(results[0])["provenance"]["model"]["device"].endswith(f", {each} thread{'s' * (each > 1)}")
