"""CIFAR-100, STL-10 and Tiny ImageNet through the real stages: prepared, trained on, attacked, drawn."""

import re
from pathlib import Path

import pytest

from pag_core.datasets import cifar, stl10, tiny_imagenet
from pag_core.datasets.prepared import read_dataset
from tests.fixtures.archives import small_cifar, small_stl10, small_tiny_imagenet
from tests.fixtures.project_copy import SMALL, ProjectCopy

pytestmark = pytest.mark.slow

TINY = {
    **SMALL,
    "source": "cm",
    "nn.samples_per_class": 2,
    "classifier.width": 4,
    "train.epochs": 1,
    "validation.images": 2,
    "prepare.validation_fraction": 0.5,
    "prepare.images_per_class": None,
    "autoattack.images": 1,
    "autoattack.radii": {"L2": [30.0]},
    "masking.images": 2,
    "pag_score.images": 2,
    "pag_score.judged_images": 2,
}


def project_with(path: Path, archive: object, module: str, overrides: dict[str, object]) -> ProjectCopy:
    """A copy of the project that takes a small archive, which lies in `path`, for the published one."""
    project = ProjectCopy(path / "project", {**TINY, **overrides})
    downloads = project.path / "data/downloads"
    downloads.mkdir()
    (path / archive.name).rename(downloads / archive.name)
    code = project.path / "pag_core/datasets" / module
    text, published = (
        code.read_text(encoding="utf-8"),
        {"stl10.py": stl10, "tiny_imagenet.py": tiny_imagenet}.get(module),
    )
    true = published.ARCHIVE if published else cifar.CIFAR100.archive
    assert text.count(f"{true.size:_}") == text.count(true.md5) == 1
    code.write_text(text.replace(f"{true.size:_}", str(archive.size)).replace(true.md5, archive.md5), encoding="utf-8")
    return project


def train_and_attack(project: ProjectCopy) -> None:
    project.stage("heuristic", "cm")
    for name in ("train", "autoattack"):
        project.stage(name, "--baseline")
        project.stage(name)
    found = project.metrics("autoattack")
    assert found["attack"] == "standard" and {"clean", "L2 30.0"} == set(found["model"])


def test_cifar100(tmp_path: Path) -> None:
    small, _ = small_cifar(tmp_path, cifar.CIFAR100, 100, (4, 2))
    project = project_with(tmp_path, small.archive, "cifar.py", {"dataset": "cifar100"})
    assert "200 train, 200 validation, 200 test images (3, 32, 32) of 100 classes" in project.stage("prepare").stdout
    train_and_attack(project)
    for name in ("masking", "pag_score", "figures"):
        project.stage(name)
    assert len(list((project.path / "figures").glob("*.png"))) == 4


def test_stl10(tmp_path: Path) -> None:
    archive, _ = small_stl10(tmp_path, (4, 2))
    project = project_with(tmp_path, archive, "stl10.py", {"dataset": "stl10"})
    assert "20 train, 20 validation, 20 test images (3, 96, 96) of 10 classes" in project.stage("prepare").stdout
    train_and_attack(project)


def test_tiny_imagenet(tmp_path: Path) -> None:
    ids = [f"n{number:08}" for number in range(200)]
    archive, _ = small_tiny_imagenet(tmp_path, ids, [f"word {number}" for number in range(200)], (2, 1))
    project = project_with(
        tmp_path, archive, "tiny_imagenet.py", {"dataset": "tiny_imagenet", "prepare.image_size": 32}
    )
    assert "200 train, 200 validation, 200 test images (3, 32, 32) of 200 classes" in project.stage("prepare").stdout
    assert read_dataset(project.path / "data/tiny_imagenet.zarr").class_names[199] == "word 199"
    train_and_attack(project)


def test_a_damaged_archive_ends_the_stage_with_a_message(tmp_path: Path) -> None:
    archive, _ = small_stl10(tmp_path, (1, 1))
    project = project_with(tmp_path, archive, "stl10.py", {"dataset": "stl10"})
    path = project.path / "data/downloads" / archive.name
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    done = project.stage("prepare", check=False)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert re.search(r"prepare: DatasetError: data/downloads/stl10_binary.tar.gz has the MD5", done.stderr)
    assert not (project.path / "data/stl10.zarr").exists()
