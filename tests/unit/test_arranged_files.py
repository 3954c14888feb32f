"""Which files of folders and archives are arranged for an experiment: all below a class but hidden ones."""

import io
import shutil
import subprocess
import sys
import tarfile
import unicodedata

import pytest
import typer

from experiments.by_hand import ByHand
from experiments.images import arrange_images
from pag_core.datasets import image_folder
from pag_core.errors import DatasetError
from tests.samples import FOLDER, ROOT, save_png
from tests.small_experiment import archived


def load(place):
    return image_folder.load(place, image_size=None, images_per_class=None)


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


@pytest.mark.parametrize("archives", [False, True], ids=["folders", "archives"])
def test_files_below_a_class_are_arranged_and_hidden_ones_are_not(tmp_path, pictures, archives):
    wanted = load(pictures)
    place = arrange_images(archived(pictures) if archives else pictures, tmp_path / "work", None)
    found = load(place)
    assert (len(found.train), len(found.test)) == (8, 5) and found.class_names == ("ant", "bee")
    assert (found.train.images == wanted.train.images).all() and (found.test.images == wanted.test.images).all()
    assert sorted(path.name for path in (place / "train").iterdir()) == ["ant", "bee"]
    if archives:
        assert not [path for path in place.rglob("*") if path.name.startswith(".") or path.name == "__MACOSX"]


@pytest.mark.parametrize("archives", [False, True], ids=["folders", "archives"])
def test_images_beside_the_class_folders_are_counted(tmp_path, pictures, archives, capsys):
    save_png(pictures / "train/lost.png")
    place = arrange_images(archived(pictures) if archives else pictures, tmp_path / "work", ["ant", "bee"])
    assert len(load(place).train) == 8
    assert "1 file was not read: 1 .png beside the class folders" in capsys.readouterr().out


def test_an_archive_that_was_arranged_by_other_rules_is_arranged_anew(tmp_path, pictures, monkeypatch):
    archived(pictures)
    place = arrange_images(pictures, tmp_path / "work", None)
    monkeypatch.setattr("experiments.images.EXTRACTED", "the files of a class folder alone")
    assert arrange_images(pictures, tmp_path / "work", None) != place


def test_hidden_files_do_not_make_other_images_and_files_behind_links_do(tmp_path, pictures):
    save_png(tmp_path / "elsewhere/0.png")
    (pictures / "train/bee/link").symlink_to(tmp_path / "elsewhere")
    place = arrange_images(pictures, tmp_path / "work", None)
    (pictures / "train/ant/.DS_Store").write_bytes(b"another")
    assert arrange_images(pictures, tmp_path / "work", None) == place
    save_png(tmp_path / "elsewhere/0.png", seed=5)
    assert arrange_images(pictures, tmp_path / "work", None) != place


def test_hidden_files_do_not_make_other_runs_by_hand(tmp_path, plain_params, pictures):
    """Of a folder that the parameter image_folder names, without the runner's `--images`."""
    params = {**plain_params, "dataset": "image_folder", "image_folder": str(pictures)}

    def name():
        return ByHand(params, tmp_path / "work", lambda program: "code").folder("prepare").name

    before = name()
    (pictures / "train/ant/.DS_Store").touch()
    assert name() == before
    save_png(pictures / "train/ant/2024/0.png", seed=8)
    assert name() != before


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
    place = arrange_images(pictures, tmp_path / "work", None)
    assert capsys.readouterr().out == f"{pictures}: {name} is the test split, as there is no test\n"
    assert (load(place).test.images == wanted.test.images).all()


def test_validation_images_beside_test_images_are_said_not_to_be_used(tmp_path, make_folder, capsys):
    pictures = make_folder(FOLDER | {"val": FOLDER["test"]})
    arrange_images(pictures, tmp_path / "work", None)
    assert capsys.readouterr().out.startswith(f"{pictures}: not used: val (validation images are taken out of train")


def test_the_one_of_several_archives_that_is_read_is_named(tmp_path, pictures, capsys):
    for ending in ("gz", "xz"):
        with tarfile.open(pictures / f"train.tar.{ending}", f"w:{ending}") as file:
            file.add(pictures / "train", "train")
    arrange_images(pictures, tmp_path / "work", None)
    assert f"{pictures}: train is read, and not train.tar.gz, train.tar.xz\n" in capsys.readouterr().out


def with_members(folder, *members):
    """train.tar of the images in `folder` and further members, whose names and links are given."""
    with tarfile.open(folder / "train.tar", "w") as file:
        file.add(folder / "train", "train")
        for name, kind, target in members:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, target
            file.addfile(member, io.BytesIO())
    (folder / "train").rename(folder / "away")


def test_links_within_an_archive_are_followed(tmp_path, pictures):
    with_members(
        pictures,
        ("train/bee/7.png", tarfile.SYMTYPE, "../ant/0.png"),
        ("train/bee/8.png", tarfile.LNKTYPE, "train/ant/1.png"),
    )
    images = load(arrange_images(pictures, tmp_path / "work", None)).train.images
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
def test_what_is_no_file_in_an_archive_is_refused_by_name(tmp_path, pictures, kind, target, words):
    with_members(pictures, ("train/bee/7.png", kind, target))
    with pytest.raises(
        typer.BadParameter, match=rf"train.tar: train/bee/7.png {words}; make the archive anew without it"
    ):
        arrange_images(pictures, tmp_path / "work", None)
    assert not list((tmp_path / "work").glob("images-*"))


def test_a_hidden_member_that_is_no_file_does_not_matter(tmp_path, pictures):
    with_members(pictures, ("train/bee/.#7.png", tarfile.SYMTYPE, "user@host.1234"))
    assert len(load(arrange_images(pictures, tmp_path / "work", None)).train) == 8


def test_a_dead_link_among_folders_is_refused(tmp_path, pictures):
    (pictures / "train/bee/7.png").symlink_to("gone.png")
    with pytest.raises(DatasetError, match=r"bee/7.png is a link to gone.png, which is not there"):
        arrange_images(pictures, tmp_path / "work", None)


@pytest.mark.parametrize("archives", [False, True], ids=["folders", "archives"])
def test_classes_are_known_in_either_unicode_composition(tmp_path, make_folder, archives):
    composed, apart = (unicodedata.normalize(form, "Käse") for form in ("NFC", "NFD"))
    pictures = make_folder(
        {"train": {apart: [(6, 6)], "ant": [(6, 6)]}, "test": {composed: [(6, 6)], "ant": [(6, 6)], "other": [(6, 6)]}}
    )
    if archives:
        archived(pictures)
    for asked in (composed, apart):
        assert load(arrange_images(pictures, tmp_path / "work", [asked, "ant"])).class_names == (composed, "ant")


def test_two_spellings_of_a_class_in_an_archive_are_refused(tmp_path, make_folder):
    spellings = [unicodedata.normalize(form, "Käse") for form in ("NFC", "NFD")]
    pictures = archived(make_folder({part: {name: [(6, 6)] for name in spellings} for part in ("train", "test")}))
    with pytest.raises(
        DatasetError, match=r"train.tar.xz holds two folders of the name 'Käse'.*; merge or rename them"
    ):
        arrange_images(pictures, tmp_path / "work", None)


@pytest.mark.slow
def test_hidden_files_are_no_change_for_dvc(tmp_path, make_folder):
    """Of images within the checkout: the stage prepare would run again."""
    make_folder(FOLDER)
    shutil.copy(ROOT / ".dvcignore", tmp_path)
    (tmp_path / "dvc.yaml").write_text(
        "stages:\n  prepare:\n    cmd: touch made\n    deps: [folder]\n    outs: [made]\n"
    )

    def dvc(*arguments):
        command = [sys.executable, "-m", "dvc", *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout

    dvc("init", "--no-scm")
    dvc("repro")
    for place in ("train/ant/._0.png", "train/.DS_Store", "test/bee/Thumbs.db", "__MACOSX/train/ant/._0.png"):
        (tmp_path / "folder" / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "folder" / place).touch()
    assert "up to date" in dvc("status")
    save_png(tmp_path / "folder/train/ant/2024/0.png")
    assert "folder" in dvc("status")
