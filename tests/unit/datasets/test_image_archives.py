"""Image folders whose splits are archives, and classes that are chosen: as folders of the same images are read."""

import errno
import io
import re
import shutil
import subprocess
import tarfile
import unicodedata
from pathlib import Path

import pytest

from pag_core.errors import DatasetError
from tests.fixtures.project_copy import forks
from tests.fixtures.read_folder import read_folder
from tests.fixtures.samples import FOLDER, ROOT, save_png
from tests.fixtures.small_experiment import archived, as_folders


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    """Archives are unpacked in .cache of the current folder."""
    monkeypatch.chdir(tmp_path)
    yield
    assert not list(tmp_path.glob(".cache/unpacked-*"))


def load(place, classes=None):
    return read_folder(place, classes=classes)


@pytest.fixture
def pictures(make_folder):
    """An image folder with images below a class folder and hidden files."""
    folder = make_folder(FOLDER)
    for number, place in enumerate(("train/ant/2024/0.png", "train/ant/2024/may/0.png", "test/bee/2024/0.png")):
        save_png(folder / place, seed=number)
    for place in (
        "train/ant/._0.png",
        "train/bee/.DS_Store",
        "train/.git/x",
        "test/__MACOSX/ant/0.png",
        "train/ant/.x/0.png",
    ):
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        (folder / place).write_bytes(b"\0\5\x16\7")
    return folder


def test_files_below_a_class_are_read_and_hidden_ones_are_not(pictures):
    wanted = load(pictures)
    found = load(archived(pictures))
    assert (len(found.train), len(found.test)) == (8, 5) and found.class_names == ("ant", "bee")
    assert (found.train.images == wanted.train.images).all() and (found.test.images == wanted.test.images).all()


@pytest.mark.parametrize("archives", [False, True], ids=["folders", "archives"])
def test_images_beside_the_class_folders_are_counted(pictures, archives, capsys):
    save_png(pictures / "train/lost.png")
    assert len(load(archived(pictures) if archives else pictures, ("ant", "bee")).train) == 8
    assert "1 file was not read: 1 .png beside the class folders" in capsys.readouterr().out


@pytest.mark.parametrize("archives", [False, True], ids=["folders", "archives"])
def test_classes_are_chosen(tmp_path, archives):
    pictures = as_folders(tmp_path / "pictures")
    every = load(pictures)
    found = load(archived(pictures) if archives else pictures, ("eel", "cat"))
    assert found.class_names == ("cat", "eel")
    for part, whole in ((found.train, every.train), (found.test, every.test)):
        kept = whole.labels != every.class_names.index("dog")
        assert (part.images == whole.images[kept]).all() and (part.labels == whole.labels[kept] // 2).all()


@pytest.mark.parametrize("ending", ["", ".tar.xz"], ids=["folders", "archives"])
@pytest.mark.parametrize(
    ("classes", "split", "words"),
    [
        (("cat", "fish", "gnu"), "train", "lacks fish, gnu of prepare.classes; it holds cat, dog, eel"),
        (("cat", "eel"), "test", "lacks eel of prepare.classes; it holds cat, dog"),
    ],
)
def test_a_class_that_is_not_there_is_refused(tmp_path, ending, classes, split, words):
    images = as_folders(tmp_path / "pictures")
    shutil.rmtree(images / "test/eel")
    if ending:
        # of an archive only the wanted classes are unpacked
        words = words.replace(", dog", "").replace(", eel", "")
        archived(images)
    with pytest.raises(DatasetError) as caught:
        load(images, classes)
    assert str(caught.value) == f"{images / split}{ending} {words}"


@pytest.mark.parametrize("archives", [False, True], ids=["folders", "archives"])
@pytest.mark.parametrize("name", ["val", "validation", "valid"])
def test_validation_images_stand_for_test_images_that_are_not_there(tmp_path, pictures, archives, name, capsys):
    wanted = load(pictures)
    if archives:
        (pictures / "test").rename(pictures / name)
        for split in ("train", name):
            with tarfile.open(pictures / f"{split}.tar.gz", "w:gz") as file:
                file.add(pictures / split, split)
            (pictures / split).rename(tmp_path / split)
    else:
        (pictures / "test").rename(pictures / name)
    capsys.readouterr()
    found = load(pictures)
    assert capsys.readouterr().out.startswith(f"{pictures}: {name} is the test split, as there is no test\n")
    assert (found.test.images == wanted.test.images).all()


def test_validation_images_beside_test_images_are_said_not_to_be_used(make_folder, capsys):
    pictures = archived(make_folder(FOLDER | {"val": FOLDER["test"]}))
    load(pictures)
    assert capsys.readouterr().out.startswith(f"{pictures}: not used: val (validation images are taken out of train")


def test_the_one_of_several_archives_that_is_read_is_named(pictures, capsys):
    for ending in ("gz", "xz"):
        with tarfile.open(pictures / f"train.tar.{ending}", f"w:{ending}") as file:
            file.add(pictures / "train", "train")
    load(pictures)
    assert f"{pictures}: train is read, and not train.tar.gz, train.tar.xz\n" in capsys.readouterr().out
    shutil.rmtree(pictures / "train")
    load(pictures)
    assert f"{pictures}: train.tar.gz is read, and not train.tar.xz\n" in capsys.readouterr().out


def with_members(folder, *members):
    """train.tar of the images in `folder` and further members, whose names and links are given."""
    with tarfile.open(folder / "train.tar", "w") as file:
        file.add(folder / "train", "train")
        for name, kind, target in members:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, target
            file.addfile(member, io.BytesIO())
    (folder / "train").rename(folder / "away")


def test_links_within_an_archive_are_followed(pictures):
    with_members(
        pictures,
        ("train/bee/7.png", tarfile.SYMTYPE, "../ant/0.png"),
        ("train/bee/8.png", tarfile.LNKTYPE, "train/ant/1.png"),
    )
    images = load(pictures).train.images
    assert len(images) == 10 and (images[8] == images[0]).all() and (images[9] == images[1]).all()


@pytest.mark.parametrize(
    ("kind", "target", "words"),
    [
        (tarfile.SYMTYPE, "gone.png", "is a link to gone.png, and the archive holds no such file"),
        (tarfile.SYMTYPE, "7.png", "is a link to 7.png, and the archive holds no such file"),
        (tarfile.SYMTYPE, "../ant", r"is a link to ../ant, and the archive holds no such file"),
        (tarfile.LNKTYPE, "train/bee/gone.png", "is a link to train/bee/gone.png, and the archive holds no such file"),
        (tarfile.FIFOTYPE, "", "is no file"),
    ],
)
def test_what_is_no_file_in_an_archive_is_refused_by_name(pictures, kind, target, words):
    with_members(pictures, ("train/bee/7.png", kind, target))
    with pytest.raises(DatasetError, match=rf"train.tar: train/bee/7.png {words}; make the archive anew without it"):
        load(pictures)


def test_a_hidden_member_that_is_no_file_does_not_matter(pictures):
    with_members(pictures, ("train/bee/.#7.png", tarfile.SYMTYPE, "user@host.1234"))
    assert len(load(pictures).train) == 8


@pytest.mark.parametrize("archives", [False, True], ids=["folders", "archives"])
def test_classes_are_known_in_either_unicode_composition(make_folder, archives):
    composed, apart = (unicodedata.normalize(form, "Käse") for form in ("NFC", "NFD"))
    pictures = make_folder(
        {"train": {apart: [(6, 6)], "ant": [(6, 6)]}, "test": {composed: [(6, 6)], "ant": [(6, 6)], "other": [(6, 6)]}}
    )
    if archives:
        archived(pictures)
    for asked in (composed, apart):
        assert load(pictures, (asked, "ant")).class_names == (composed, "ant")


def test_two_spellings_of_a_class_in_an_archive_are_refused(make_folder):
    spellings = [unicodedata.normalize(form, "Käse") for form in ("NFC", "NFD")]
    pictures = archived(make_folder({part: {name: [(6, 6)] for name in spellings} for part in ("train", "test")}))
    with pytest.raises(
        DatasetError, match=r"train.tar.xz holds two folders of the name 'Käse'.*; merge or rename them"
    ):
        load(pictures)


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
    with pytest.raises(DatasetError, match=rf"(?s){archive} cannot be read to its end \(.*\); it is cut off"):
        load(images)


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
    with pytest.raises(DatasetError, match=rf"(?s){archive} cannot be read to its end \(.*\); it is cut off, damaged"):
        load(images)


def test_a_full_disk_is_not_taken_for_damage(tmp_path, monkeypatch):
    images = archived_as(tmp_path / "pictures", "gz")

    def full(path, content):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        load(images)


@pytest.mark.parametrize("member", ["../out.png", "train/../../out.png", "/out.png", "train/ant/../../../out.png"])
def test_a_member_that_leads_outside_is_left_out(tmp_path, pictures, member):
    with_members(pictures, (member, tarfile.REGTYPE, ""))
    assert len(load(pictures).train) == 8 and not list(tmp_path.rglob("out.png"))


def test_an_image_that_cannot_be_read_is_named_by_its_archive(pictures):
    (pictures / "train/bee/7.png").write_bytes(b"no image")
    archived(pictures)
    place = re.escape(str(pictures / "train.tar.xz/bee/7.png"))
    with pytest.raises(DatasetError, match=f"^{place} cannot be read as an image"):
        load(pictures)


def test_an_archive_without_classes_is_refused(pictures):
    archived(pictures)
    (pictures / "train.tar.xz").replace(pictures / "test.tar.xz")
    with tarfile.open(pictures / "train.tar.gz", "w:gz") as file:
        file.add(pictures / "test.tar.xz", "train/test.tar.xz")
    with pytest.raises(DatasetError, match=r"train\.tar\.gz holds no train/CLASS/IMAGE"):
        load(pictures)


@pytest.mark.slow
def test_hidden_files_are_no_change_for_dvc(tmp_path, make_folder):
    """Of images within the checkout: the stage prepare would run again."""
    make_folder(FOLDER)
    shutil.copy(ROOT / ".dvcignore", tmp_path)
    (tmp_path / "dvc.yaml").write_text(
        "stages:\n  prepare:\n    cmd: touch made\n    deps: [folder]\n    outs: [made]\n"
    )

    def dvc(*arguments):
        return subprocess.run(
            [f"{forks()}/dvc", *arguments], cwd=tmp_path, capture_output=True, text=True, check=True
        ).stdout

    dvc("init", "--no-scm")
    dvc("repro")
    for place in ("train/ant/._0.png", "train/.DS_Store", "test/bee/Thumbs.db", "__MACOSX/train/ant/._0.png"):
        (tmp_path / "folder" / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "folder" / place).touch()
    assert "up to date" in dvc("status")
    save_png(tmp_path / "folder/train/ant/2024/0.png")
    assert "folder" in dvc("status")
