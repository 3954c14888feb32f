"""`prepare` shard by shard: kill -9 at three moments, several processes, and damage that the stages which read it name."""

import shutil
import sys

import numpy as np
import pytest
from PIL import Image

from tests.faults.test_killed_stages import contents, kill_after
from tests.fixtures.project_copy import SMALL, ProjectCopy

pytestmark = pytest.mark.slow

COMMAND, UNITS = ["stages/prepare.py"], "prepare-*/units/*.json"
PREPARED = "data/image_folder.zarr"
IMAGES_PER_SHARD = 16


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A folder of images, of which `prepare` makes 17 shards."""
    overrides = {**SMALL, "dataset": "image_folder", "prepare.images_per_class": None, "source": "none", "processes": 1}
    project = ProjectCopy(tmp_path_factory.mktemp("prepared") / "pag", overrides)
    draws = np.random.default_rng(3)
    for split, count in (("train", 70), ("test", 12)):
        for name in ("ant", "bee", "cat"):
            folder = project.path / "data/image_folder" / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = draws.integers(0, 256, size=(32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    code = project.path / "pag_core/datasets/prepared.py"
    text = code.read_text(encoding="utf-8")
    assert "\nIMAGES_PER_SHARD = 16384\n" in text
    code.write_text(text.replace("= 16384\n", f"= {IMAGES_PER_SHARD}\n"), encoding="utf-8")
    project.stage("prepare")
    return project


def test_killed_three_times_it_ends_in_the_same_bytes(project):
    expected = contents(project.path, [PREPARED])
    assert sum("/images/c/" in name for name in expected) == 17
    shutil.rmtree(project.path / PREPARED)
    for kill in range(3):
        there = len(list((project.path / ".cache").glob(UNITS)))
        assert kill_after(project, COMMAND, UNITS, there + 1), f"it ended before its kill {kill + 1}"
        assert not (project.path / PREPARED).exists()
    project.run(sys.executable, *COMMAND)
    assert contents(project.path, [PREPARED]) == expected
    assert not list((project.path / ".cache").glob("prepare-*"))


def test_the_bytes_do_not_depend_on_the_number_of_processes(project):
    expected = contents(project.path, [PREPARED])
    shutil.rmtree(project.path / PREPARED)
    project.set({"processes": 3})
    project.stage("prepare")
    project.set({"processes": 1})
    assert contents(project.path, [PREPARED]) == expected


def test_an_edited_image_begins_anew(project):
    """What was begun with another image is not gone on with."""
    expected = contents(project.path, [PREPARED])
    shutil.rmtree(project.path / PREPARED)
    assert kill_after(project, COMMAND, UNITS, 2)
    first = project.path / "data/image_folder/train/ant/0.png"
    before = first.read_bytes()
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(first)
    project.stage("prepare")
    assert contents(project.path, [PREPARED]) != expected
    first.write_bytes(before)
    shutil.rmtree(project.path / PREPARED)
    project.stage("prepare")
    assert contents(project.path, [PREPARED]) == expected
    shutil.rmtree(project.path / ".cache")


@pytest.mark.parametrize("fault", ["flipped", "missing"])
@pytest.mark.parametrize(
    ("split", "shard", "stage"),
    [
        ("train", 5, ["train", "--baseline"]),
        ("train", 3, ["diffusion"]),
        ("train", 0, ["heuristic", "cm"]),
        ("train", 2, ["heuristic", "nn"]),
        ("train", 0, ["pag_score"]),
        ("validation", 1, ["validation", "--baseline"]),
        ("test", 0, ["autoattack", "--baseline"]),
        ("test", 0, ["foolbox", "--baseline"]),
        ("test", 0, ["masking"]),
        ("test", 0, ["pag_score"]),
    ],
)
def test_a_damaged_shard_is_named_by_the_stage_that_reads_it(project, split, shard, stage, fault):
    if not (project.path / "data/baseline").exists():
        project.set({"validation.images": 20, "pag_score.reference": "cm"})
        for made in (["train", "--baseline"], ["heuristic", "none"], ["heuristic", "cm"], ["train"]):
            project.stage(*made)
    file = project.path / PREPARED / split / "images/c" / str(shard) / "0/0/0"
    whole = file.read_bytes()
    if fault == "missing":
        file.unlink()
    else:
        file.write_bytes(whole[:500] + bytes([whole[500] ^ 1]) + whole[501:])
    done = project.stage(*stage, check=False)
    file.write_bytes(whole)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr[-2000:]
    assert "DatasetError" in done.stderr and PREPARED in done.stderr and "run the prepare stage again" in done.stderr
    assert f"shard {shard} of the {split} images" in done.stderr


def test_what_a_stage_does_not_read_does_not_end_it(project):
    """Test images beyond those that are attacked, and the training images, may be anything to an attack."""
    moved = project.path / PREPARED / "train"
    moved.rename(project.path / "aside")
    (moved / "labels").mkdir(parents=True)
    shutil.copytree(project.path / "aside/labels", moved / "labels", dirs_exist_ok=True)
    shutil.copy(project.path / "aside/images/zarr.json", (moved / "images").mkdir() or moved / "images/zarr.json")
    try:
        project.stage("autoattack", "--baseline")
    finally:
        shutil.rmtree(moved)
        (project.path / "aside").rename(moved)
