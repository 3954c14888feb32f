"""What a user gets wrong, through the real stages: each message names the value, the place and the remedy."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from PIL import Image

from pag_core.params.values import Source
from tests.fixtures.project_copy import SMALL, ProjectCopy

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProjectCopy]:
    overrides = {**SMALL, "source": "nn", "objective.output": "logit", "lambda": 1.0, "train.epochs": 1}
    copy = ProjectCopy(tmp_path_factory.mktemp("refusals"), overrides)
    copy.stage("prepare")
    copy.stage("heuristic", "nn")
    yield copy


def refusal(project: ProjectCopy, stage: str, *arguments: str) -> str:
    """The message with which a stage refuses; it must end with 1 and print no traceback."""
    done = project.stage(stage, *arguments, check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({"source": "sgb"}, ["source", "'sgb'", ", ".join(get_args(Source)), "did you mean 'sbg'"]),
        ({"train.epoch": 3}, ["train.epoch is an unknown key", "epochs", "did you mean 'epochs'"]),
        ({"lambda": -1}, ["lambda", "-1"]),
        ({"lambda": 0, "control": "other_image"}, ["control is other_image", "lambda 0", "control: null"]),
    ],
)
def test_parameters(project: ProjectCopy, overrides: dict[str, object], expected: list[str]) -> None:
    original = (project.path / "params.yaml").read_bytes()
    project.set(overrides)
    try:
        message = refusal(project, "train")
    finally:
        (project.path / "params.yaml").write_bytes(original)
    for part in expected:
        assert part in message


def flip_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x40
    path.write_bytes(content)


@pytest.fixture
def store(project: ProjectCopy) -> Iterator[Path]:
    """The store, put back as it was afterwards."""
    path, kept = project.path / "data/gradients/nn.zarr", project.path / "kept"
    shutil.copytree(path, kept)
    yield path
    shutil.rmtree(path)
    kept.rename(path)


def test_flipped_byte(project: ProjectCopy, store: Path) -> None:
    flip_byte(store / "train/neighbors/c/0/0")
    assert "nn.zarr: train/neighbors is damaged" in refusal(project, "train")


def test_deleted_shard(project: ProjectCopy, store: Path) -> None:
    (store / "train/neighbors/c/0/0").unlink()
    message = refusal(project, "train")
    assert "train/neighbors/c/0/0 is missing" in message and "run its stage again" in message


def test_store_of_other_data(project: ProjectCopy, store: Path) -> None:
    project.set({"seed": 1})
    try:
        project.stage("prepare")
        assert "made from other data" in refusal(project, "train")
    finally:
        project.set({"seed": 3407})
        project.stage("prepare")


def image_folder(root: Path, classes: dict[str, int]) -> Path:
    """A folder of random images, so many per class and split."""
    random = np.random.default_rng(0)
    for split in ("train", "test"):
        for name, count in classes.items():
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{number}.png")
    return root


@pytest.mark.parametrize(
    ("classes", "spoil", "expected"),
    [
        ({"cat": 2}, None, ["only the class 'cat'", "at least two"]),
        ({"cat": 2, "dog": 0}, None, ["dog holds no image"]),
        ({"cat": 9, "dog": 9}, "train/dog/1.png", ["train/dog/1.png cannot be read as an image"]),
    ],
)
def test_image_folders(
    project: ProjectCopy, tmp_path: Path, classes: dict[str, int], spoil: str | None, expected: list[str]
) -> None:
    folder = image_folder(tmp_path / "images", classes)
    if spoil:
        (folder / spoil).write_bytes(b"not an image")
    original = (project.path / "params.yaml").read_bytes()
    project.set({"dataset": "image_folder", "image_folder": str(folder)})
    try:
        message = refusal(project, "prepare")
    finally:
        (project.path / "params.yaml").write_bytes(original)
    for part in expected:
        assert part in message
    assert not (project.path / "data/image_folder.zarr").exists()
