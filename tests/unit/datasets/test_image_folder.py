"""Image folders: what PIL reads, or a refusal that names the file."""

import os
import shutil
import struct

import numpy as np
import pytest
from PIL import Image, ImageFile

from pag_core.errors import DatasetError
from tests.fixtures.read_folder import read_folder
from tests.fixtures.samples import FOLDER as GOOD

SIX = [(6, 6)] * 3


def load(folder, image_size=None, images_per_class=None):
    return read_folder(folder, image_size=image_size, images_per_class=images_per_class)


def test_image_folder_reads_what_pil_reads(make_folder):
    folder = make_folder(GOOD)
    (folder / "train" / "ant" / "notes.txt").write_text("no image")
    (folder / "train" / ".hidden").mkdir()
    raw = load(folder)
    assert raw.class_names == ("ant", "bee")
    assert raw.train.labels.tolist() == [0, 0, 0, 1, 1, 1] and raw.test.labels.tolist() == [0, 0, 1, 1]
    for row, (name, number) in enumerate([("ant", 0), ("ant", 1), ("ant", 2), ("bee", 0), ("bee", 1), ("bee", 2)]):
        pixels = np.asarray(Image.open(folder / "train" / name / f"{number}.png"))
        assert np.array_equal(raw.train.images[row], pixels.transpose(2, 0, 1))


def test_grey_images_become_rgb(make_folder):
    folder = make_folder(GOOD)
    grey = np.random.default_rng(1).integers(0, 256, size=(6, 6), dtype=np.uint8)
    Image.fromarray(grey).save(folder / "train" / "ant" / "0.png")
    assert np.array_equal(load(folder).train.images[0], np.stack([grey] * 3))


@pytest.mark.parametrize(
    ("size", "scaled", "box"),
    [
        # by hand: the shorter side becomes 8, the longer side keeps the ratio, the centre is cropped
        ((16, 8), (16, 8), (4, 0, 12, 8)),
        ((6, 12), (8, 16), (0, 4, 8, 12)),
        ((10, 15), (8, 12), (0, 2, 8, 10)),
        ((4, 4), (8, 8), (0, 0, 8, 8)),
        ((8, 8), (8, 8), (0, 0, 8, 8)),
    ],
)
def test_resize_and_crop_against_pil(make_folder, size, scaled, box):
    folder = make_folder({"train": {"ant": [size], "bee": [(8, 8)]}, "test": {"ant": [(9, 9)], "bee": [(8, 10)]}})
    raw = load(folder, image_size=8)
    expected = Image.open(folder / "train" / "ant" / "0.png").resize(scaled, Image.Resampling.BICUBIC).crop(box)
    assert np.array_equal(raw.train.images[0], np.asarray(expected).transpose(2, 0, 1))
    assert raw.test.images.shape == (2, 3, 8, 8)


def test_a_crop_is_said(make_folder, capsys):
    """Of what would be cut off the user hears; a square that is scaled loses nothing."""
    folder = make_folder(
        {"train": {"ant": [(9, 9), (9, 9)], "bee": [(8, 4)]}, "test": {"ant": [(4, 4)], "bee": [(4, 5)]}}
    )
    load(folder, image_size=4)
    assert "2 images of unequal sides cropped to their center" in capsys.readouterr().out


def test_image_folder_caps_each_class(make_folder):
    folder = make_folder(GOOD)
    whole, capped = load(folder), load(folder, images_per_class=2)
    assert capped.train.labels.tolist() == [0, 0, 1, 1]
    assert np.array_equal(capped.train.images, whole.train.images[[0, 1, 3, 4]])


def spoil_unreadable(folder):
    (folder / "train" / "bee" / "1.png").write_bytes(b"not an image")


def spoil_truncated(folder):
    path = folder / "train" / "bee" / "2.png"
    path.write_bytes(path.read_bytes()[:60])


def spoil_test_classes(folder):
    (folder / "test" / "bee").rename(folder / "test" / "wasp")


@pytest.mark.parametrize(
    ("content", "spoil", "words"),
    [
        ({"train": {"ant": SIX}, "test": {"ant": SIX}}, None, "only the class 'ant'.*at least two"),
        ({"train": {"ant": SIX, "bee": []}, "test": GOOD["test"]}, None, "bee holds no image"),
        (GOOD, spoil_unreadable, "bee/1.png cannot be read"),
        (GOOD, spoil_truncated, "bee/2.png cannot be read"),
        (GOOD, spoil_test_classes, "same classes.*bee, wasp"),
        (GOOD, lambda folder: shutil.rmtree(folder / "test"), "test is not a folder"),
        (GOOD, lambda folder: shutil.rmtree(folder), "train is not a folder.*train/CLASS"),
        ({**GOOD, "train": {"ant": SIX, "bee": [(6, 6), (7, 6)]}}, None, "bee/1.png is 7x6.*6x6.*prepare.image_size"),
        ({**GOOD, "test": {"ant": [(7, 7)], "bee": [(7, 7)]}}, None, "prepare.image_size"),
    ],
)
def test_unusable_folders_are_refused_by_name(make_folder, content, spoil, words):
    folder = make_folder(content)
    if spoil:
        spoil(folder)
    with pytest.raises(DatasetError, match=words):
        load(folder)


def test_an_empty_class_folder_list_is_refused(tmp_path):
    (tmp_path / "train").mkdir()
    with pytest.raises(DatasetError, match="holds no class"):
        load(tmp_path)


def save_in_place_of(folder, image, name="0.png", **options):
    """The first training image of the class ant in the file `name`; the others of the fixture stay."""
    (folder / "train/ant/0.png").unlink()
    image.save(folder / "train/ant" / name, **options)


def test_sixteen_bits_are_scaled(make_folder, capsys):
    folder = make_folder(GOOD)
    values = np.array([0, 128, 129, 256, 257, 34_729, 65_406, 65_535] * 4 + [1, 2, 3, 4], dtype=np.uint16).reshape(6, 6)
    save_in_place_of(folder, Image.fromarray(values))
    found = load(folder).train.images[0]
    expected = np.floor(values / 65_535 * 255 + 0.5)
    assert np.array_equal(found, np.stack([expected] * 3)) and 0 < found.mean() < 200
    assert "1 images of 16 bits scaled to 8" in capsys.readouterr().out


def test_sixteen_bits_of_a_portable_graymap_are_scaled(make_folder):
    """PIL opens it as integers of 32 bits."""
    folder = make_folder(GOOD)
    values = np.arange(36, dtype=np.uint16).reshape(6, 6) * 1800
    (folder / "train/ant/0.png").unlink()
    (folder / "train/ant/0.pgm").write_bytes(b"P5 6 6 65535\n" + values.astype(">u2").tobytes())
    expected = np.floor(values / 65_535 * 255 + 0.5)
    assert np.array_equal(load(folder).train.images[0], np.stack([expected] * 3))


def test_a_class_whose_name_is_not_utf8_is_refused(make_folder):
    folder = make_folder(GOOD)
    for split in ("train", "test"):
        os.rename(os.fsencode(folder / split / "ant"), os.fsencode(folder / split) + b"/caf\xe9")  # noqa: PTH104
    with pytest.raises(DatasetError, match=r"'caf\\udce9' is not UTF-8; rename it"):
        load(folder)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_as_their_exif_says(make_folder, capsys, orientation):
    """Against the definition: which corner of the stored pixels is the top left one, and whether rows are columns."""
    folder = make_folder(GOOD)
    pixels = np.random.default_rng(3).integers(0, 256, size=(6, 6, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    save_in_place_of(folder, Image.fromarray(pixels), exif=exif)
    upright = {
        1: pixels, 2: pixels[:, ::-1], 3: pixels[::-1, ::-1], 4: pixels[::-1], 5: pixels.transpose(1, 0, 2),
        6: pixels.transpose(1, 0, 2)[:, ::-1], 7: pixels[::-1, ::-1].transpose(1, 0, 2), 8: pixels.transpose(1, 0, 2)[::-1],
    }[orientation]  # fmt: skip
    assert np.array_equal(load(folder).train.images[0], upright.transpose(2, 0, 1))
    assert ("1 images turned as their EXIF says" in capsys.readouterr().out) == (orientation > 1)


RGBA = np.random.default_rng(4).integers(0, 255, size=(6, 6, 4), dtype=np.uint8)


def with_transparent_colour():
    image = Image.fromarray(RGBA[..., :3]).convert("P")
    image.info["transparency"] = image.getpixel((2, 2))
    return image


@pytest.mark.parametrize(
    ("image", "name", "words"),
    [
        (Image.fromarray(RGBA), "0.png", "ant/0.png is transparent"),
        (Image.fromarray(RGBA).convert("LA"), "0.png", "ant/0.png is transparent"),
        (with_transparent_colour(), "0.png", "ant/0.png is transparent"),
        (Image.fromarray(np.ones((6, 6), np.float32)), "0.tiff", "ant/0.tiff holds floats.*8 or 16 bits"),
        (Image.fromarray(np.ones((6, 6), np.int32)), "0.tiff", "ant/0.tiff holds integers of 32 bits"),
    ],
)
def test_values_that_cannot_be_shown_in_eight_bits_are_refused(make_folder, image, name, words):
    folder = make_folder(GOOD)
    save_in_place_of(folder, image, name)
    with pytest.raises(DatasetError, match=words):
        load(folder)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "1", "L", "CMYK"])
def test_opaque_images_of_any_mode_are_read(make_folder, mode):
    folder = make_folder(GOOD)
    image = Image.fromarray(RGBA[..., :3]).convert(mode)
    save_in_place_of(folder, image, "0.tiff" if mode == "CMYK" else "0.png")
    assert np.array_equal(load(folder).train.images[0], np.asarray(image.convert("RGB")).transpose(2, 0, 1))


def exif_with_text_for_resolution(orientation):
    """Orientation beside an XResolution of text, which Pillow reads and does not write back."""
    entries = struct.pack("<HHII", 274, 3, 1, orientation) + struct.pack("<HHI4s", 282, 2, 3, b"72\0\0")
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + entries + struct.pack("<I", 0)


@pytest.mark.parametrize(
    ("name", "options"), [("0.jpg", {"quality": 100}), ("0.webp", {"lossless": True}), ("0.png", {})]
)
def test_tags_that_pillow_cannot_write_back_do_not_matter(make_folder, capsys, name, options):
    folder = make_folder(GOOD)
    pixels = np.random.default_rng(3).integers(0, 256, size=(6, 6, 3), dtype=np.uint8)
    save_in_place_of(folder, Image.fromarray(pixels), name, exif=exif_with_text_for_resolution(6), **options)
    stored = np.asarray(Image.open(folder / "train/ant" / name))
    assert np.array_equal(load(folder).train.images[0], np.rot90(stored, -1).transpose(2, 0, 1))
    assert "1 images turned as their EXIF says" in capsys.readouterr().out


@pytest.mark.parametrize("orientation", [0, 9])
def test_an_orientation_that_means_nothing_turns_nothing(make_folder, capsys, orientation):
    folder = make_folder(GOOD)
    before = load(folder).train.images[0]
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.open(folder / "train/ant/0.png").save(folder / "train/ant/0.png", exif=exif)
    assert np.array_equal(load(folder).train.images[0], before) and capsys.readouterr().out == ""


def test_a_turned_tiff_is_turned_once(make_folder, capsys):
    folder = make_folder(GOOD)
    pixels = np.random.default_rng(3).integers(0, 256, size=(6, 6, 3), dtype=np.uint8)
    save_in_place_of(folder, Image.fromarray(pixels), "0.tiff", tiffinfo={274: 6})
    assert np.array_equal(load(folder).train.images[0], np.rot90(pixels, -1).transpose(2, 0, 1))
    assert "1 images turned as their EXIF says" in capsys.readouterr().out


@pytest.mark.parametrize(
    "kind", [TypeError, KeyError, struct.error, NotImplementedError, RuntimeError, EOFError, MemoryError]
)
def test_no_exception_of_pillow_leaves_without_the_files_name(make_folder, monkeypatch, kind):
    folder, read = make_folder(GOOD), ImageFile.ImageFile.load

    def failing(self):
        if self.filename.endswith("bee/1.png"):
            raise kind("of the library")
        return read(self)

    monkeypatch.setattr(ImageFile.ImageFile, "load", failing)
    with pytest.raises(
        DatasetError, match=rf"bee/1.png cannot be read as an image \(.*{kind.__name__}.*of the library"
    ):
        load(folder)
