"""Any folder of images, `train/CLASS/` and `test/CLASS/`."""

from collections import Counter
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile

from pag_core.datasets.image_files import (
    VALIDATION_NAMES,
    class_folders,
    entries,
    images_below,
    kind_of,
    listed_kinds,
    name_of_test_split,
)
from pag_core.datasets.labelled_images import LabelledImages, RawDataset
from pag_core.datasets.resizing import square
from pag_core.errors import DatasetError

# by the EXIF orientation of the stored pixels, which are turned alone: Pillow cannot write back every tag that it reads
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def load(folder: Path, *, image_size: int | None, images_per_class: int | None) -> RawDataset:
    """Read every image as RGB uint8 [N, 3, H, W], its shorter side resized to `image_size` and the centre cropped.

    With `images_per_class` only the first images of each class are read: those of its folder by file name, then those of the
    folders below it. Where there is no `test`, a folder for validation is the test split. Grey images of 16 bits are scaled
    to 8, images are turned as their EXIF orientation says, and of several frames the first is read; lines of output say so,
    and how many files of which kind were not read.
    Raises DatasetError that names the folder or file: no such folder, fewer than two classes, a class without images,
    classes of the splits that differ, an unreadable image, one whose values have no stated range (floats, 32 bits), one that
    is transparent, or images of different sizes without `image_size`.
    """
    changes: Counter[str] = Counter()
    unread: Counter[str] = Counter()
    parts = _splits(folder)
    classes = {split: _classes(path) for split, path in parts.items()}
    if odd := sorted(classes["train"].keys() ^ classes["test"].keys()):
        raise DatasetError(
            f"{folder}: train and {parts['test'].name} must hold the same classes; only one of them has {', '.join(odd)}"
        )
    for path in parts.values():
        unread.update(f"{kind_of(entry)} beside the class folders" for entry in entries(path) if not entry.is_dir())
    train, test = (
        _read_split(classes[split], image_size, images_per_class, changes, unread) for split in ("train", "test")
    )
    if changes:
        print(
            f"{folder}: " + ", ".join(f"{count} images {what}" for what, count in sorted(changes.items())), flush=True
        )
    if count := unread.total():
        print(f"{folder}: {count} file{'s were' if count > 1 else ' was'} not read: {listed_kinds(unread)}", flush=True)
    if train.images.shape[1:] != test.images.shape[1:]:
        raise DatasetError(
            f"{folder}: training images are {train.images.shape[1:]}, test images {test.images.shape[1:]} "
            "(channels, height, width); set prepare.image_size"
        )
    return RawDataset(class_names=tuple(classes["train"]), train=train, test=test)


def _splits(folder: Path) -> dict[str, Path]:
    """Where both splits lie; a line of output names the folders that are not used."""
    there = [path.name for path in entries(folder) if path.is_dir()] if folder.is_dir() else []
    test = name_of_test_split(there, folder)
    if unused := [name for name in there if name not in ("train", test, *VALIDATION_NAMES)]:
        print(f"{folder}: not used: {', '.join(unused)}", flush=True)
    return {"train": folder / "train", "test": folder / test}


def _classes(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise DatasetError(f"{folder} is not a folder; image_folder must hold train/CLASS/* and test/CLASS/*")
    found = class_folders(folder)
    if len(found) < 2:
        said = f"only the class {next(iter(found))!r}" if found else "no class"
        beside = [name for name in VALIDATION_NAMES if folder.name == "test" and (folder.parent / name).is_dir()]
        remedy = f"; rename or remove it, and {beside[0]} is the test split" if len(beside) == 1 else ""
        raise DatasetError(f"{folder} holds {said}; a classifier needs at least two class folders{remedy}")
    return found


def _read_split(
    classes: dict[str, Path],
    image_size: int | None,
    images_per_class: int | None,
    changes: Counter[str],
    unread: Counter[str],
) -> LabelledImages:
    images: list[NDArray[np.uint8]] = []
    labels: list[int] = []
    for label, folder in enumerate(classes.values()):
        for path in images_below(folder, unread)[:images_per_class]:
            image = _read_image(path, image_size, changes)
            if images and image.shape != images[0].shape:
                raise DatasetError(
                    f"{path} is {image.shape[2]}x{image.shape[1]} pixels, the images before it "
                    f"{images[0].shape[2]}x{images[0].shape[1]}; set prepare.image_size to resize all"
                )
            if path.parent != folder:
                changes["from folders below their class's"] += 1
            images.append(image)
            labels.append(label)
    return LabelledImages(np.stack(images), np.asarray(labels, dtype=np.int64))


def _read_image(path: Path, image_size: int | None, changes: Counter[str]) -> NDArray[np.uint8]:
    try:
        with Image.open(path) as file:
            # the layers of a PSD are merged in its first frame
            if getattr(file, "is_animated", False) and file.format != "PSD":
                changes["read by their first frame alone"] += 1
            if _orientation(file) in TURNS:
                changes["turned as their EXIF says"] += 1
            file.load()
            # of a TIFF none is left: Pillow turns it as it loads
            turn = TURNS.get(_orientation(file))
            image = _as_rgb(path, file if turn is None else file.transpose(turn), _holds_16_bits(file), changes)
        if image_size is not None:
            image = square(image, image_size)
    except DatasetError:
        raise
    except Exception as error:  # Pillow's readers raise of many kinds
        raise DatasetError(
            f"{path} cannot be read as an image ({type(error).__name__}: {error}); replace or remove it"
        ) from error
    return np.asarray(image, dtype=np.uint8).transpose(2, 0, 1)


def _orientation(file: ImageFile.ImageFile) -> int:
    orientation: int = file.getexif().get(ExifTags.Base.Orientation, 1)
    return orientation


def _holds_16_bits(file: ImageFile.ImageFile) -> bool:
    """Whether what PIL may open as integers of 32 bits has 16 in the file: grey PNG, and PGM with values up to 65,535."""
    return file.mode.startswith("I;16") or (file.mode == "I" and file.format in ("PNG", "PPM"))


def _as_rgb(path: Path, image: Image.Image, of_16_bits: bool, changes: Counter[str]) -> Image.Image:
    """RGB of 8 bits. PIL's own conversion would clip 16 bits to white, floats to black, and drop transparency."""
    if image.has_transparency_data and (
        image.mode.startswith("I") or np.asarray(image.convert("RGBA"))[..., 3].min() < 255
    ):
        raise DatasetError(f"{path} is transparent in places; put it on a background and save it without transparency")
    if of_16_bits:
        changes["of 16 bits scaled to 8"] += 1
        return Image.fromarray(np.rint(np.asarray(image) / 257).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise DatasetError(
            f"{path} holds {'floats' if image.mode == 'F' else 'integers of 32 bits'}, whose range is not stated; save it "
            "with 8 or 16 bits"
        )
    return image.convert("RGB")
