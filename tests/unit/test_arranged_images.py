"""Folders and archives of images, arranged for an experiment: made once, known by their content, the user's left alone."""

import errno
import shutil
import tarfile
import time
from pathlib import Path

import pytest
import typer

from experiments import images as images_module
from experiments.images import arrange_images
from pag_core.pipeline.artifacts import write_json
from tests.small_experiment import NAMES, archived, as_folders, in_two_threads, run


def test_two_commands_arrange_images_once(tmp_path, monkeypatch):
    pictures, extracted = as_folders(tmp_path / "pictures"), []

    def slow(place, content):
        time.sleep(0.5)
        extracted.append(place)
        write_json(place, content)

    monkeypatch.setattr(images_module, "write_json", slow)
    one, two = in_two_threads(lambda: arrange_images(pictures, tmp_path / "work", None))
    assert one == two and len(extracted) == 1 and (one / "origin.json").exists()


def test_images_are_arranged_anew_only_where_they_change(tmp_path):
    archives, work = archived(as_folders(tmp_path / "pictures")), tmp_path / "work"
    place = arrange_images(archives, work, ["cat", "dog"])
    assert sorted(path.name for path in (place / "train").iterdir()) == ["cat", "dog"]
    assert len(list((place / "train/cat").iterdir())) == 20
    marker = place / "train/cat/marker"
    marker.touch()
    assert arrange_images(archives, work, ["cat", "dog"]) == place and marker.exists()
    other = arrange_images(archives, work, None)
    assert other != place and marker.exists()
    assert sorted(path.name for path in (other / "test").iterdir()) == sorted(NAMES)


def test_added_and_changed_images_are_seen(tmp_path):
    """Folders are linked, not copied, and known by their content."""
    images, work = as_folders(tmp_path / "pictures"), tmp_path / "work"
    place = arrange_images(images, work, ["eel", "dog"])
    assert (place / "test/eel").is_symlink() and len(list((place / "test/eel").iterdir())) == 6
    shutil.copytree(images, tmp_path / "moved")
    assert arrange_images(tmp_path / "moved", work, ["eel", "dog"]) == place
    first = next((images / "train/dog").iterdir())
    seen = {place}
    for change in (
        lambda: shutil.copy(first, images / "train/dog/another.png"),
        lambda: first.write_bytes(first.read_bytes()[:-1] + b"x"),
        lambda: first.rename(first.with_name("renamed.png")),
        lambda: (images / "test/eel" / next((images / "test/eel").iterdir()).name).unlink(),
    ):
        change()
        seen.add(arrange_images(images, work, ["eel", "dog"]))
    assert len(seen) == 5
    shutil.copy(images / "train/dog/renamed.png", images / "train/cat/unused.png")
    assert arrange_images(images, work, ["eel", "dog"]) in seen


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.glob("*/*/*.png")}


@pytest.mark.parametrize("fate", ["edited", "removed"])
def test_equal_images_elsewhere_are_linked_where_they_lie_now(tmp_path, fate):
    first, second, work = as_folders(tmp_path / "first"), tmp_path / "second", tmp_path / "work"
    shutil.copytree(first, second)
    before = contents(second)
    # a class without images, which is not in the fingerprint
    (first / "train/ant").mkdir()
    place = arrange_images(first, work, None)
    # of a command that was killed
    place.with_name(f".{place.name}.link.partial").symlink_to(first)
    if fate == "edited":
        next((first / "train/cat").iterdir()).write_bytes(b"another")
    else:
        shutil.rmtree(first)
    assert arrange_images(second, work, None) == place and contents(place) == before
    assert {path.name: path.readlink() for path in (place / "train").iterdir()} == {
        name: second / "train" / name for name in NAMES
    }
    assert sorted(path.name for path in work.iterdir()) == sorted([place.name, "locks"])


@pytest.mark.parametrize("ending", ["", ".tar.xz"], ids=["folders", "archives"])
@pytest.mark.parametrize(
    ("classes", "split", "words"),
    [
        (["cat", "fish", "gnu"], "train", "lacks fish, gnu of the description's classes; it holds cat, dog, eel"),
        (["cat", "eel"], "test", "lacks eel of the description's classes; it holds cat, dog"),
    ],
)
def test_a_class_that_is_not_there_is_refused(tmp_path, ending, classes, split, words):
    images, work = as_folders(tmp_path / "pictures"), tmp_path / "work"
    shutil.rmtree(images / "test/eel")
    if ending:
        archived(images)
    with pytest.raises(typer.BadParameter) as caught:
        arrange_images(images, work, classes)
    assert str(caught.value) == f"{images / split}{ending} {words}" and list(work.glob("images-*")) == []
    assert arrange_images(images, work, ["cat", "dog"]).exists()


def archived_as(folder, kind):
    images = as_folders(folder)
    with tarfile.open(images / f"train.tar.{kind}".strip("."), f"w:{kind}") as file:
        file.add(images / "train", "train")
    shutil.rmtree(images / "train")
    return images


@pytest.mark.parametrize(("kind", "kept"), [("", 0), ("gz", 0), ("gz", 0.6), ("bz2", 0.6), ("xz", 0.6)])
def test_an_archive_that_was_cut_off_is_refused_by_name(tmp_path, kind, kept):
    images = archived_as(tmp_path / "pictures", kind)
    archive = images / f"train.tar.{kind}".strip(".")
    content = archive.read_bytes()
    archive.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(typer.BadParameter, match=rf"(?s){archive} cannot be read to its end \(.*\); it is cut off"):
        arrange_images(images, tmp_path / "work", None)
    assert list((tmp_path / "work").glob("images-*")) == []


@pytest.mark.parametrize("kind", ["", "gz", "bz2", "xz"])
def test_an_archive_that_is_damaged_in_the_middle_is_refused_by_name(tmp_path, kind):
    images = archived_as(tmp_path / "pictures", kind)
    archive = images / f"train.tar.{kind}".strip(".")
    content = bytearray(archive.read_bytes())
    # in a plain archive the name of a member, which has a checksum as its content has not
    start = len(content) // 2 if kind else content.index(b"train/", len(content) // 2)
    for place in range(start, start + 100):
        content[place] ^= 0xFF
    archive.write_bytes(content)
    with pytest.raises(
        typer.BadParameter, match=rf"(?s){archive} cannot be read to its end \(.*\); it is cut off, damaged"
    ):
        arrange_images(images, tmp_path / "work", None)
    assert list((tmp_path / "work").glob("images-*")) == []


def test_a_full_disk_is_not_taken_for_damage(tmp_path, monkeypatch):
    images = archived_as(tmp_path / "pictures", "gz")

    def full(path, content):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        arrange_images(images, tmp_path / "work", None)


@pytest.mark.slow
@pytest.mark.parametrize("nested", ["work", "work/images", "work/images/deeper", "."])
def test_images_and_working_folder_lie_apart(tmp_path, nested):
    images = as_folders(tmp_path / nested)
    before = sorted(path for path in tmp_path.rglob("*.png"))
    done = run(tmp_path, images)
    assert done.returncode == 2 and "is apart" in done.stderr.replace("\n", " "), done.stderr
    assert sorted(path for path in tmp_path.rglob("*.png")) == before and len(before) == 78


def test_a_link_into_the_working_folder_does_not_hide_it(tmp_path):
    images = as_folders(tmp_path / "work/images")
    (tmp_path / "link").symlink_to(images)
    with pytest.raises(typer.BadParameter, match="is apart"):
        arrange_images(tmp_path / "link", tmp_path / "work", None)
    (tmp_path / "half").mkdir()
    for split in ("train", "test"):
        (tmp_path / "half" / split).symlink_to(images / split)
    with pytest.raises(typer.BadParameter, match="is apart"):
        arrange_images(tmp_path / "half", tmp_path / "work", None)
    assert len(list(images.rglob("*.png"))) == 78


def test_a_folder_of_the_users_is_never_replaced(tmp_path):
    images, work = as_folders(tmp_path / "pictures"), tmp_path / "work"
    place = arrange_images(images, work, None)
    shutil.rmtree(place)
    place.mkdir()
    (place / "mine.txt").touch()
    with pytest.raises(typer.BadParameter, match="was not made by this program"):
        arrange_images(images, work, None)
    assert (place / "mine.txt").exists()
