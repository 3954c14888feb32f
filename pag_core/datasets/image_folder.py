"""Any folder of images `train/CLASS/*` and `test/CLASS/*`."""

from collections import Counter
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile, ImageOps, UnidentifiedImageError
from torchvision.datasets.folder import IMG_EXTENSIONS

from pag_core.datasets.labelled_images import LabelledImages, RawDataset
from pag_core.datasets.resizing import square
from pag_core.errors import DatasetError


def load(folder: Path, *, image_size: int | None, images_per_class: int | None) -> RawDataset:
    """Read every image as RGB uint8 [N, 3, H, W], its shorter side resized to `image_size` and the centre cropped.

    With `images_per_class` only the first images of each class, by file name, are read. Grey images of 16 bits are scaled
    to 8, images are turned as their EXIF orientation says, and a line of output says so.
    Raises DatasetError that names the folder or file: no such folder, fewer than two classes, a class without images,
    classes of the splits that differ, an unreadable image, one whose values have no stated range (floats, 32 bits), one that
    is transparent, or images of different sizes without `image_size`.
    """
    changes: Counter[str] = Counter()
    names = {split: _class_names(folder / split) for split in ("train", "test")}
    if names["train"] != names["test"]:
        odd = sorted(set(names["train"]) ^ set(names["test"]))
        raise DatasetError(
            f"{folder}: train and test must hold the same classes; only one of them has {', '.join(odd)}"
        )
    train, test = (
        _read_split(folder / split, names["train"], image_size, images_per_class, changes)
        for split in ("train", "test")
    )
    if changes:
        print(
            f"{folder}: " + ", ".join(f"{count} images {what}" for what, count in sorted(changes.items())), flush=True
        )
    if train.images.shape[1:] != test.images.shape[1:]:
        raise DatasetError(
            f"{folder}: training images are {train.images.shape[1:]}, test images {test.images.shape[1:]} "
            "(channels, height, width); set prepare.image_size"
        )
    return RawDataset(class_names=names["train"], train=train, test=test)


def _class_names(folder: Path) -> tuple[str, ...]:
    if not folder.is_dir():
        raise DatasetError(f"{folder} is not a folder; image_folder must hold train/CLASS/* and test/CLASS/*")
    names = tuple(sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")))
    if len(names) < 2:
        found = f"only the class {names[0]!r}" if names else "no class"
        raise DatasetError(f"{folder} holds {found}; a classifier needs at least two class folders")
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError:
            raise DatasetError(f"{folder}: the name of the class folder {name!r} is not UTF-8; rename it") from None
    return names


def _read_split(
    folder: Path,
    class_names: tuple[str, ...],
    image_size: int | None,
    images_per_class: int | None,
    changes: Counter[str],
) -> LabelledImages:
    images: list[NDArray[np.uint8]] = []
    labels: list[int] = []
    for label, name in enumerate(class_names):
        paths = sorted(path for path in (folder / name).iterdir() if path.suffix.lower() in IMG_EXTENSIONS)
        if not paths:
            raise DatasetError(
                f"{folder / name} holds no image ({', '.join(IMG_EXTENSIONS)}); remove the class or fill it"
            )
        for path in paths[:images_per_class]:
            image = _read_image(path, image_size, changes)
            if images and image.shape != images[0].shape:
                raise DatasetError(
                    f"{path} is {image.shape[2]}x{image.shape[1]} pixels, the images before it "
                    f"{images[0].shape[2]}x{images[0].shape[1]}; set prepare.image_size to resize all"
                )
            images.append(image)
            labels.append(label)
    return LabelledImages(np.stack(images), np.asarray(labels, dtype=np.int64))


def _read_image(path: Path, image_size: int | None, changes: Counter[str]) -> NDArray[np.uint8]:
    try:
        with Image.open(path) as file:
            if file.getexif().get(ExifTags.Base.Orientation, 1) != 1:
                changes["turned as their EXIF says"] += 1
            image = _as_rgb(path, ImageOps.exif_transpose(file), _holds_16_bits(file), changes)
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
        raise DatasetError(f"{path} cannot be read as an image ({error}); replace or remove it") from error
    if image_size is not None:
        image = square(image, image_size)
    return np.asarray(image, dtype=np.uint8).transpose(2, 0, 1)


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
