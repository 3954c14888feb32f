"""Any folder of images, `train/CLASS/` and `test/CLASS/`, or the archives `train.tar.*` and `test.tar.*` of them."""

import contextlib
import functools
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile

from pag_core.compute.processes import this_process
from pag_core.datasets.image_archives import unpack
from pag_core.datasets.image_files import (
    VALIDATION_NAMES,
    class_folders,
    composed,
    entries,
    images_below,
    kind_of,
    listed_kinds,
    name_of_test_split,
)
from pag_core.datasets.labelled_images import LabelledImages, RawDataset
from pag_core.datasets.resizing import square
from pag_core.errors import DatasetError
from pag_core.pipeline.artifacts import replacing_folder
from pag_core.pipeline.locks import locked

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


def load(
    folder: Path,
    place: Path,
    *,
    image_size: int | None,
    images_per_class: int | None,
    classes: tuple[str, ...] | None = None,
) -> RawDataset:
    """Every image as RGB uint8 [N, 3, H, W], read when asked for: its shorter side resized to `image_size`, the centre cropped.

    Archives are unpacked into `place` once. Only images of `classes` are taken, None takes all. With `images_per_class` only
    the first of each class are: those of its folder by file name, then those of the folders below it. Where there is no `test`,
    images for validation are the test split. Lines of output say so, and how many files of which kind are not read.
    Raises DatasetError that names the folder or file: no such folder, fewer than two classes, a class without images,
    classes of the splits that differ, one of `classes` that is not there, an archive that cannot be read, images of different
    sizes without `image_size`; and when it is read, as `ImageFiles` does.
    """
    wanted = None if classes is None else tuple(composed(name) for name in classes)
    parts = _split_folders(folder, place, wanted)
    archives = {split: folder / name for split, (_, name) in parts.items()}
    with _naming(archives, {split: path for split, (path, _) in parts.items()}):
        return _listed(folder, parts, archives, wanted, image_size, images_per_class)


def state_of(folder: Path) -> dict[str, list[int]]:
    """Size and time of change (ns) of every file below `folder`, by its path: by these work that was begun is known."""
    found = {}
    for place, _, names in os.walk(folder, followlinks=True):
        for path in (Path(place, name) for name in names):
            if path.exists():
                found[path.relative_to(folder).as_posix()] = [path.stat().st_size, path.stat().st_mtime_ns]
    return found


@dataclass
class ImageFiles:
    """Images that are decoded when they are asked for; `changes` counts by kind what was done to those that were.

    Grey images of 16 bits are scaled to 8, images are turned as their EXIF orientation says, and of several frames the first is
    read. `read` raises DatasetError that names the file: one that cannot be read, whose values have no stated range (floats,
    32 bits), that is transparent, or of another size than the first where nothing resizes them.
    """

    paths: list[Path]
    image_size: int | None
    unpacked: Path  # a folder of the files
    shown: Path  # what stands for it in messages, where it was unpacked
    changes: Counter[str] = field(default_factory=Counter)

    @functools.cached_property
    def shape(self) -> tuple[int, ...]:
        """[N, 3, H, W], for which the first image is read."""
        with _naming({"": self.shown}, {"": self.unpacked}):
            return len(self.paths), *_read_image(self.paths[0], self.image_size, Counter()).shape

    def read(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """The images of `rows` of the paths."""
        images = np.empty((len(rows), *self.shape[1:]), np.uint8)
        with _naming({"": self.shown}, {"": self.unpacked}):
            for number, path in enumerate(self.paths[row] for row in rows):
                image = _read_image(path, self.image_size, self.changes)
                if image.shape != self.shape[1:]:
                    raise DatasetError(
                        f"{path} is {image.shape[2]}x{image.shape[1]} pixels, {self.paths[0]} {self.shape[3]}x{self.shape[2]}; "
                        "set prepare.image_size to resize all"
                    )
                images[number] = image
        return images


def _listed(
    folder: Path,
    parts: dict[str, tuple[Path, str]],
    archives: dict[str, Path],
    wanted: tuple[str, ...] | None,
    image_size: int | None,
    images_per_class: int | None,
) -> RawDataset:
    unread: Counter[str] = Counter()
    classes = {split: _classes(path, wanted) for split, (path, _) in parts.items()}
    if odd := sorted(classes["train"].keys() ^ classes["test"].keys()):
        raise DatasetError(
            f"{folder}: train and {parts['test'][0].name} must hold the same classes; only one of them has {', '.join(odd)}"
        )
    for path, _ in parts.values():
        unread.update(f"{kind_of(entry)} beside the class folders" for entry in entries(path) if not entry.is_dir())
    found = {}
    below = 0
    for split, (path, _) in parts.items():
        paths: list[Path] = []
        labels: list[int] = []
        for label, place in enumerate(classes[split].values()):
            of_class = images_below(place, unread)[:images_per_class]
            below += sum(image.parent != place for image in of_class)
            paths += of_class
            labels += [label] * len(of_class)
        source = ImageFiles(paths, image_size, path, archives[split])
        found[split] = LabelledImages(source, np.asarray(labels, dtype=np.int64))
    if this_process().leads:
        if below:
            print(f"{folder}: {below} images from folders below their class's", flush=True)
        if count := unread.total():
            print(
                f"{folder}: {count} file{'s were' if count > 1 else ' was'} not read: {listed_kinds(unread)}",
                flush=True,
            )
    if found["train"].shape[1:] != found["test"].shape[1:]:
        raise DatasetError(
            f"{folder}: training images are {found['train'].shape[1:]}, test images {found['test'].shape[1:]} "
            "(channels, height, width); set prepare.image_size"
        )
    return RawDataset(class_names=tuple(classes["train"]), train=found["train"], test=found["test"])


def _split_folders(folder: Path, place: Path, wanted: tuple[str, ...] | None) -> dict[str, tuple[Path, str]]:
    """Where both splits lie, archives unpacked in `place`, and what stands there; lines of output name what is not used."""
    there = [path.name for path in entries(folder)] if folder.is_dir() else []
    # a folder before an archive
    found = {name: path for name in there for path in [folder / name] if path.is_dir()}
    archives = {name.split(".tar")[0]: folder / name for name in reversed(there) if ".tar" in name}
    found = {name: path for name, path in archives.items() if name in ("train", "test", *VALIDATION_NAMES)} | found
    test = name_of_test_split(list(found), folder)
    used = {"train": found.get("train", folder / "train"), "test": found.get(test, folder / test)}
    known = ("train", test, *VALIDATION_NAMES)
    unused = [name for name in there if (folder / name).is_dir() and name not in known]
    if unused and this_process().leads:
        print(f"{folder}: not used: {', '.join(unused)}", flush=True)
    for path in used.values():
        others = [name for name in there if name.split(".tar")[0] == path.name.split(".tar")[0] != name != path.name]
        if others and this_process().leads:
            print(f"{folder}: {path.name} is read, and not {', '.join(others)}", flush=True)
    return {
        split: (_unpacked(path, place, wanted) if path.is_file() else path, path.name) for split, path in used.items()
    }


def _unpacked(archive: Path, place: Path, wanted: tuple[str, ...] | None) -> Path:
    """The folder of an archive's images in `place`, by one process, once."""
    folder = place / "unpacked" / archive.name.split(".tar")[0]
    with locked(place / "locks" / folder.name):
        if not folder.exists():
            with replacing_folder(folder) as partial:
                unpack(archive, partial, wanted)
    return folder


@contextlib.contextmanager
def _naming(archives: dict[str, Path], unpacked: dict[str, Path]) -> Iterator[None]:
    """In the message of a DatasetError the path of an archive in the place of that of its unpacked images."""
    try:
        yield
    except DatasetError as error:
        text = str(error)
        for split, archive in archives.items():
            text = text.replace(str(unpacked[split]), str(archive))
        raise DatasetError(text) from error


def _classes(folder: Path, wanted: tuple[str, ...] | None) -> dict[str, Path]:
    if not folder.is_dir():
        raise DatasetError(
            f"{folder} is not a folder; image_folder must hold train/CLASS/* and test/CLASS/*, or train.tar.* and test.tar.*"
        )
    found = class_folders(folder)
    if missing := [name for name in wanted or () if name not in found]:
        raise DatasetError(
            f"{folder} lacks {', '.join(missing)} of prepare.classes; it holds {', '.join(found) or 'none'}"
        )
    if wanted is not None:
        found = {name: path for name, path in found.items() if name in wanted}
    if len(found) < 2:
        said = f"only the class {next(iter(found))!r}" if found else "no class"
        beside = [name for name in VALIDATION_NAMES if folder.name == "test" and (folder.parent / name).is_dir()]
        remedy = f"; rename or remove it, and {beside[0]} is the test split" if len(beside) == 1 else ""
        raise DatasetError(f"{folder} holds {said}; a classifier needs at least two class folders{remedy}")
    return found


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
            if image.width != image.height:
                changes["of unequal sides cropped to their center"] += 1
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
