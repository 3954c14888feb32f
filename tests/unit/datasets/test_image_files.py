"""Which files of an image folder are read: what Pillow reads, in folders below a class too, and a word on all the others."""

import os
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets.folder import make_dataset as torchvision_files

from pag_core.datasets import image_files
from pag_core.datasets.splits import split
from pag_core.errors import DatasetError
from tests.fixtures.read_folder import read_folder
from tests.fixtures.samples import FOLDER, content_fingerprint, save_png


def load(folder, images_per_class=None):
    return read_folder(folder, images_per_class=images_per_class)


def pixels_of(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).transpose(2, 0, 1)


def test_folders_that_were_read_whole_are_read_as_before(tmp_path):
    """Fingerprints that the former code, which read the files of a class folder alone, gave for these images."""
    draws = np.random.default_rng(5)
    for part, count in (("train", 9), ("test", 4)):
        for name in ("Zebra", "ant", "bee-2", "été"):
            (tmp_path / part / name).mkdir(parents=True)
            for number in range(count):
                image = Image.fromarray(draws.integers(0, 256, size=(6, 6, 3), dtype=np.uint8))
                suffix = (".png", ".BMP", ".ppm", ".tif", ".pgm")[number % 5]
                grey = number % 4 == 3 or suffix == ".pgm"
                image = image.convert("L") if grey else image
                image.save(tmp_path / part / name / f"{'ab'[number % 2]}{number * 7 % 10}{suffix}")
    for most, expected in (
        (None, "fc0d5419104df13de188d41bb286b03592cb10fadfe253870882be78c7baf4d2"),
        (3, "154495f921577fd45cbb57ba7f22c834ae44772c0805172d7e4b3fe48148f615"),
    ):
        raw = load(tmp_path, most)
        splits = split(raw, validation_fraction=0.34, test_fraction=0.5, images_per_class=most, seed=1)
        assert content_fingerprint(raw.class_names, splits) == expected


@pytest.mark.parametrize("suffix", [".jfif", ".jpe", ".avif", ".gif", ".jp2", ".tga", ".qoi", ".pcx", ".JPEG", ".dib"])
def test_every_format_that_pillow_reads_is_read(make_folder, suffix):
    folder = make_folder(FOLDER)
    path = folder / "train/ant" / f"00{suffix}"
    Image.open(folder / "train/ant/2.png").save(path)
    assert np.array_equal(load(folder).train.images[1], pixels_of(path)) and len(load(folder).train) == 7


def test_folders_below_a_class_are_read_in_torchvisions_order(make_folder, capsys):
    folder = make_folder(FOLDER)
    below = ("ant/b/x.png", "ant/b-1/y.png", "ant/b/c/z.jpg", "ant/A/10.png", "ant/A/9.png", "bee/1/0.png")
    for number, place in enumerate(below):
        save_png(folder / "train" / place, seed=number)
    (folder / "train/ant/d").mkdir()
    save_png(folder / "elsewhere/linked.png", seed=9)
    (folder / "train/bee/link").symlink_to(folder / "elsewhere")
    raw = load(folder)
    wanted = torchvision_files(str(folder / "train"), {"ant": 0, "bee": 1}, extensions=(".png", ".jpg"))
    assert len(wanted) == 13 and raw.train.labels.tolist() == [label for _, label in wanted]
    for image, (path, _) in zip(raw.train.images, wanted, strict=True):
        assert np.array_equal(image, pixels_of(path)), path
    assert "7 images from folders below their class's" in capsys.readouterr().out
    assert np.array_equal(load(folder, 4).train.images[3], pixels_of(folder / "train/ant/A/10.png"))


def test_files_that_are_not_read_are_counted_by_kind(make_folder, capsys):
    folder = make_folder(FOLDER)
    load(folder)
    assert capsys.readouterr().out == ""
    for place in ("train/ant/a.txt", "train/ant/b.TXT", "test/bee/more/c.txt", "train/bee/film.mp4", "train/bee/README",
                  "train/bee/thesis.pdf", "train/bee/clip.mpg", "train/list.csv", "test/0.png"):  # fmt: skip
        (folder / place).parent.mkdir(exist_ok=True)
        (folder / place).write_bytes(b"no image")
    os.mkfifo(folder / "train/ant/pipe.png")
    raw = load(folder)
    assert (len(raw.train), len(raw.test)) == (6, 4)
    assert capsys.readouterr().out == (
        f"{folder}: 10 files were not read: 3 .txt, 1 .csv beside the class folders, 1 .mp4, 1 .mpg, 1 .pdf, 1 .png beside "
        "the class folders, 1 no regular file, 1 without a suffix\n"
    )


def test_many_kinds_are_cut(make_folder, capsys):
    folder = make_folder(FOLDER)
    for number in range(30):
        (folder / "train/ant" / f"scan.{number:02}").touch()
    load(folder)
    assert "30 files were not read: 1 .00, " in (said := capsys.readouterr().out)
    assert said.endswith(", 1 .09, 20 of 20 other kinds\n")


def test_hidden_files_are_skipped(make_folder, capsys):
    folder = make_folder(FOLDER)
    before = load(folder)
    hidden = ("train/ant/._0.png", "train/ant/.DS_Store", "test/bee/Thumbs.db", "train/bee/desktop.ini", "train/._ant",
              "._train", "train/.ipynb_checkpoints/0.png", "train/ant/.cache/0.png", "train/__MACOSX/ant/0.png")  # fmt: skip
    for place in hidden:
        (folder / place).parent.mkdir(exist_ok=True, parents=True)
        (folder / place).write_bytes(b"\0\5\x16\7")
    (folder / "train/ant/.#0.png").symlink_to("user@host.1234")
    after = load(folder)
    assert after.class_names == before.class_names and np.array_equal(after.train.images, before.train.images)
    assert capsys.readouterr().out == ""


def test_images_with_further_frames_are_counted(make_folder, capsys):
    folder = make_folder(FOLDER)
    frames = [Image.open(folder / "train/bee" / f"{number}.png") for number in range(3)]
    for name in ("a.gif", "a.tiff", "a.webp", "a.png"):
        options = {"lossless": True} if name == "a.webp" else {}
        frames[0].save(folder / "train/ant" / name, save_all=True, append_images=frames[1:], **options)
    (folder / "train/ant/b.gif").write_bytes((folder / "train/ant/a.gif").read_bytes())
    images = load(folder).train.images
    for place, name in ((4, "a.png"), (5, "a.tiff"), (6, "a.webp")):
        assert np.array_equal(images[place], np.asarray(frames[0]).transpose(2, 0, 1)), name
    assert np.array_equal(images[3], pixels_of(folder / "train/ant/a.gif"))
    assert capsys.readouterr().out == f"{folder}: 5 images read by their first frame alone\n"


@pytest.mark.parametrize("place", ["train/bee/3.png", "train/bee/more", "train/cat", "test"])
def test_a_dead_link_is_refused(make_folder, place):
    folder = make_folder(FOLDER)
    if place == "test":
        (folder / "test").rename(folder / "away")
    (folder / place).symlink_to(folder / "gone")
    with pytest.raises(
        DatasetError, match=rf"{place} is a link to .*gone, which is not there; mend or remove the link"
    ):
        load(folder)


def test_a_link_to_a_folder_that_holds_it_is_refused(make_folder):
    folder = make_folder(FOLDER)
    (folder / "train/bee/again").symlink_to("..")
    with pytest.raises(DatasetError, match="bee/again is a link to a folder that holds it; remove the link"):
        load(folder)


def test_a_folder_that_cannot_be_listed_is_refused(make_folder, monkeypatch):
    folder, scan = make_folder(FOLDER), os.scandir
    (folder / "train/bee/locked").mkdir()

    def refused(path):
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refused)
    with pytest.raises(DatasetError, match=r"bee/locked cannot be listed .*Permission denied"):
        load(folder)


@pytest.mark.parametrize("suffix", [".heic", ".HEIF", ".jxl"])
def test_a_picture_that_pillow_cannot_decode_is_refused(make_folder, suffix):
    folder = make_folder(FOLDER)
    (folder / "test/bee" / f"9{suffix}").touch()
    with pytest.raises(DatasetError, match=rf"bee/9{suffix}: .*Pillow.* cannot decode {suffix.lower()}; convert"):
        load(folder, images_per_class=1)


def test_a_pillow_built_without_a_format_is_refused_not_passed_over(make_folder, monkeypatch):
    folder = make_folder(FOLDER)
    (folder / "train/ant/2.png").rename(folder / "train/ant/2.avif")
    known = {suffix: kind for suffix, kind in Image.registered_extensions().items() if kind != "AVIF"}
    monkeypatch.setattr(Image, "registered_extensions", lambda: known)
    with pytest.raises(DatasetError, match=r"ant/2.avif: .* cannot decode .avif; convert"):
        load(folder)


def test_a_class_without_a_readable_image_says_what_it_holds(make_folder):
    folder = make_folder({**FOLDER, "train": {"ant": [(6, 6)], "bee": []}})
    for name in ("a.txt", "b.txt", "c.mp4"):
        (folder / "train/bee" / name).touch()
    with pytest.raises(
        DatasetError, match=r"train/bee holds no image, but 2 .txt, 1 .mp4; remove the class or fill it"
    ):
        load(folder)


# --- splits and class names


@pytest.mark.parametrize("name", ["val", "validation", "valid"])
def test_a_validation_folder_is_the_test_split_where_there_is_none(make_folder, capsys, name):
    folder = make_folder(FOLDER)
    before = load(folder)
    (folder / "test").rename(folder / name)
    after = load(folder)
    assert np.array_equal(after.test.images, before.test.images)
    assert capsys.readouterr().out == f"{folder}: {name} is the test split, as there is no test\n"


def test_a_validation_folder_beside_a_test_folder_is_said_not_to_be_used(make_folder, capsys):
    folder = make_folder(FOLDER | {"val": FOLDER["test"], "extra": {}})
    (folder / "extra").mkdir()
    assert len(load(folder).test) == 4
    assert capsys.readouterr().out == (
        f"{folder}: not used: val (validation images are taken out of train, prepare.validation_fraction of them)\n"
        f"{folder}: not used: extra\n"
    )


def test_two_folders_that_may_be_the_test_split_are_refused(make_folder):
    folder = make_folder({"train": FOLDER["train"], "val": FOLDER["test"], "validation": FOLDER["test"]})
    with pytest.raises(DatasetError, match=r"has no test, and val, validation .* rename the one to test on to test"):
        load(folder)


def test_a_test_folder_without_classes_beside_a_validation_folder_says_so(make_folder):
    """As ImageNet has it: test images without labels."""
    folder = make_folder({"train": FOLDER["train"], "val": FOLDER["test"]})
    save_png(folder / "test/0.png")
    with pytest.raises(DatasetError, match=r"test holds no class.*rename or remove it, and val is the test split"):
        load(folder)


def spelt(name, form):
    return unicodedata.normalize(form, name)


def test_names_that_differ_in_unicode_composition_alone_are_one_class(make_folder):
    names = ("Käse", "éclair")
    plain = make_folder({part: {spelt(name, "NFC"): [(6, 6)] * 2 for name in names} for part in FOLDER})
    wanted = load(plain)
    for path in (plain / "train").iterdir():
        path.rename(path.with_name(spelt(path.name, "NFD")))
    assert sorted(path.name for path in (plain / "train").iterdir()) != sorted(wanted.class_names)
    raw = load(plain)
    assert raw.class_names == wanted.class_names == tuple(spelt(name, "NFC") for name in names)
    assert np.array_equal(raw.train.images, wanted.train.images)
    (plain / "test" / spelt("éclair", "NFD")).mkdir()
    words = r"test holds two folders of the name 'éclair', written 'e\\u0301clair' and '\\xe9clair'; merge or rename"
    with pytest.raises(DatasetError, match=words):
        load(plain)


def test_what_was_found_from_outside(tmp_path):
    """Of 24 images 12 were read: .jfif, .avif and a folder below the class were passed over."""
    draws = np.random.default_rng(3)
    for part, numbers in (("train", range(3, 8)), ("test", range(3, 4))):
        for name in ("cat", "dog"):
            for file in ("2024/0000.png", "0001.jfif", "0002.avif", *(f"{number:04}.png" for number in numbers)):
                path = tmp_path / part / name / file
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(draws.integers(0, 256, size=(8, 8, 3), dtype=np.uint8)).save(path)
    raw = load(tmp_path)
    assert (len(raw.train), len(raw.test)) == (16, 8)


def test_hidden_names():
    hidden = ["._a.png", ".DS_Store", "Thumbs.db", "thumbs.db", "desktop.ini", "__MACOSX", ".git"]
    assert all(image_files.is_hidden(name) for name in hidden)
    assert not any(image_files.is_hidden(name) for name in ("a.png", "_a.png", "Thumbs", "macosx"))
    assert Path("._a.png").suffix == ".png"
