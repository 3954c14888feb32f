"""The prepared dataset on disk: a Zarr v3 group per split, with class names and a content fingerprint, shard by shard."""

import contextlib
import hashlib
import shutil
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr
from numpy.typing import NDArray
from zarr.codecs import Crc32cCodec, ZstdCodec
from zarr.errors import ZarrUserWarning

from pag_core.compute.processes import ranks, this_process
from pag_core.datasets.labelled_images import SPLITS, LabelledImages
from pag_core.errors import DatasetError, ParamsError, RankLost
from pag_core.pipeline.artifacts import digest, file_record, replacing_file, replacing_folder
from pag_core.pipeline.checkpoint import RunFolder
from pag_core.pipeline.loop import progress_bar

# a shard is what is written, checked and read together: few files for DVC, and little memory
IMAGES_PER_SHARD = 16384
BYTES_PER_SHARD = 2**25
HASH_BYTES = 16  # by which images that are equal to the pixel are found


class Split:
    """One split: images uint8 [N, C, H, W] and labels int64 [N]."""

    def __init__(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        self._images: torch.Tensor | None = images
        self.labels = labels

    def __len__(self) -> int:
        return len(self.images)

    @property
    def images(self) -> torch.Tensor:
        """All images, in memory; raises DatasetError where they are not what was prepared."""
        assert self._images is not None
        return self._images

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """[C, H, W]."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    def to(self, device: torch.device) -> "Split":
        """The split on `device`."""
        return Split(self.images.to(device), self.labels.to(device))

    def first(self, count: int, key: str) -> slice:
        """The first `count` images; raises ParamsError, naming the parameter `key`, if there are fewer."""
        if count > len(self):
            raise ParamsError(
                f"params.yaml: {key} is {count}, but the split has {len(self)} images; set it to at most {len(self)}"
            )
        return slice(0, count)

    def pixels(self, indices: torch.Tensor | slice = slice(None)) -> torch.Tensor:
        """The images of `indices` as float32 [N, C, H, W] in [0, 1], contiguous."""
        return (self.chosen(indices).to(torch.float32) / 255).contiguous()

    def chosen(self, indices: torch.Tensor | slice) -> torch.Tensor:
        """The images of `indices`."""
        return self.images[indices]


class StoredSplit(Split):
    """A split whose images are read, and checked, when they are first asked for: for a slice the shards that it lies in."""

    def __init__(
        self, path: Path, name: str, array: "zarr.Array[Any]", labels: torch.Tensor, digests: list[str]
    ) -> None:
        self._images = None
        self.labels = labels
        self._path, self._name, self._array, self._digests = path, name, array, digests

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def images(self) -> torch.Tensor:
        if self._images is None:
            self._images = self._shards(0, len(self._digests))
        return self._images

    @property
    def image_shape(self) -> tuple[int, int, int]:
        channels, height, width = self._array.shape[1:]
        return channels, height, width

    def chosen(self, indices: torch.Tensor | slice) -> torch.Tensor:
        if self._images is not None or not isinstance(indices, slice):
            return self.images[indices]
        start, stop, step = indices.indices(len(self))
        size = self._array.chunks[0]
        first, last = start // size, max(start // size, -(-stop // size))
        if last - first == len(self._digests):
            return self.images[indices]
        return self._shards(first, last)[start - first * size : stop - first * size : step]

    def _shards(self, first: int, last: int) -> torch.Tensor:
        size = self._array.chunks[0]
        stop = min(last * size, len(self))
        found = np.empty((stop - first * size, *self._array.shape[1:]), np.uint8)
        for number in range(first, last):
            rows = slice(number * size, min((number + 1) * size, len(self)))
            with _naming_damage(self._path, f"shard {number} of the {self._name} images: "):
                pixels = np.asarray(self._array[rows])
            if _sha256(pixels) != self._digests[number]:
                raise DatasetError(
                    f"{self._path} has changed since it was prepared (shard {number} of the {self._name} images); remove it "
                    "and run the prepare stage again"
                )
            found[rows.start - first * size : rows.stop - first * size] = pixels
        return torch.from_numpy(found)


@dataclass(frozen=True)
class Dataset:
    """A prepared dataset: class names, content fingerprint (SHA-256), image shape [C, H, W], and its splits."""

    class_names: tuple[str, ...]
    fingerprint: str
    splits: dict[str, Split]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.splits["train"].image_shape

    @property
    def classes(self) -> int:
        return len(self.class_names)


def consolidate_metadata(folder: Path) -> None:
    """Gather the metadata of a Zarr group into its root, so that it opens with one read."""
    with warnings.catch_warnings():
        # Zarr warns that other implementations may not read it; the metadata of each array stays beside it
        warnings.simplefilter("ignore", ZarrUserWarning)
        zarr.consolidate_metadata(folder)


def _sha256(pixels: NDArray[np.uint8]) -> str:
    return hashlib.sha256(np.ascontiguousarray(pixels).data).hexdigest()


def shards_of(count: int, shape: tuple[int, ...]) -> list[slice]:
    """The rows of each shard of `count` images of `shape` [C, H, W]."""
    size = max(1, min(count, IMAGES_PER_SHARD, BYTES_PER_SHARD // int(np.prod(shape))))
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def fingerprint(class_names: tuple[str, ...], splits: dict[str, LabelledImages]) -> str:
    """SHA-256 over class names, and of every split its shape, its labels, and the SHA-256 of the pixels of each shard."""
    shards = {
        name: [_sha256(part.read(rows.start, rows.stop)) for rows in shards_of(len(part), part.shape[1:])]
        for name, part in splits.items()
    }
    return _fingerprint(
        class_names,
        {name: part.shape for name, part in splits.items()},
        {name: part.labels for name, part in splits.items()},
        shards,
    )


def _fingerprint(
    class_names: tuple[str, ...],
    shapes: dict[str, tuple[int, ...]],
    labels: dict[str, NDArray[np.int64]],
    shards: dict[str, list[str]],
) -> str:
    parts = [
        [name, list(shapes[name]), hashlib.sha256(labels[name].astype("<i8").tobytes()).hexdigest(), shards[name]]
        for name in SPLITS
    ]
    return digest([list(class_names), parts])


@dataclass(frozen=True)
class Written:
    """What was seen as a dataset was written.

    `repeated` says how many images of the validation and of the test split are in the training split too, pixel for pixel,
    `changes` how many of all images were changed in which way as they were read.
    """

    repeated: dict[str, int]
    changes: Counter[str]


def write_dataset(
    path: Path,
    class_names: tuple[str, ...],
    splits: dict[str, LabelledImages],
    provenance: dict[str, Any],
    *,
    folder: RunFolder,
    processes: int = 1,
) -> Written:
    """Write a prepared dataset to `path`, whole or not at all, shard by shard, so that few images are in memory.

    It grows in `folder`, where a killed run finds its finished shards. All `processes` take their share; the bytes do not
    depend on their number. Only rank 0 returns; raises RankLost if another failed.
    """
    growing = folder.path / "dataset"
    work = {
        f"{name}-{number}": (name, number, rows)
        for name in SPLITS
        for number, rows in enumerate(shards_of(len(splits[name]), splits[name].shape[1:]))
    }
    if this_process().leads:
        folder.forget_claims()
        _create(growing, splits)
    still_open = sum(folder.load_unit(unit) is None for unit in work)
    with progress_bar("prepare", sum(map(len, splits.values())), 0, "image") as bar, ranks(processes, units=still_open):
        root = zarr.open_group(growing, mode="r+")
        for unit, (name, number, rows) in work.items():
            if folder.claim(unit) and not _holds(growing, folder.load_unit(unit)):
                folder.save_unit(unit, _write_shard(growing, root, name, number, splits[name], rows, folder))
            bar.update(rows.stop - rows.start)
    found = {unit: folder.load_unit(unit) for unit in work}
    if absent := [unit for unit, result in found.items() if result is None]:
        raise RankLost(f"no process has written {absent[0]}; finished work is kept, run again to resume")
    shards = {name: [found[unit]["sha256"] for unit, (of, *_) in work.items() if of == name] for name in SPLITS}  # type: ignore[index]
    stated: dict[str, Any] = {
        "class_names": list(class_names),
        "fingerprint": _fingerprint(
            class_names,
            {name: splits[name].shape for name in SPLITS},
            {name: splits[name].labels for name in SPLITS},
            shards,
        ),
        "shards": shards,
        "provenance": provenance,
    }
    zarr.open_group(growing, mode="r+").attrs.update(stated)
    consolidate_metadata(growing)
    written = Written(
        _repeated(folder, work), sum((Counter(result["changes"]) for result in found.values() if result), Counter())
    )
    with replacing_folder(path) as partial:
        partial.rmdir()
        shutil.move(growing, partial)
    return written


def _create(growing: Path, splits: dict[str, LabelledImages]) -> None:
    """The arrays of all splits, with the labels; those of a run that was killed stay."""
    if (growing / "zarr.json").exists():
        return
    with replacing_folder(growing) as partial:
        root = zarr.create_group(partial, zarr_format=3)
        for name, part in splits.items():
            size = shards_of(len(part), part.shape[1:])[0].stop
            codecs: Any = {"compressors": [ZstdCodec(), Crc32cCodec()]}
            root.create_array(
                f"{name}/images", shape=part.shape, dtype="uint8", chunks=(size, *part.shape[1:]), **codecs
            )
            labels = root.create_array(
                f"{name}/labels", shape=part.labels.shape, dtype="int64", chunks=part.labels.shape, **codecs
            )
            labels[:] = part.labels


def _write_shard(
    growing: Path, root: Any, name: str, number: int, part: LabelledImages, rows: slice, folder: RunFolder
) -> dict[str, Any]:
    """Write one shard; its record, with the hash of each image beside it."""
    changes = part.changes
    changes.clear()
    pixels = np.ascontiguousarray(part.read(rows.start, rows.stop))
    root[f"{name}/images"][rows] = pixels
    hashes = b"".join(hashlib.blake2b(image, digest_size=HASH_BYTES).digest() for image in pixels)
    with replacing_file(folder.path / "hashes" / f"{name}-{number}") as partial:
        partial.write_bytes(hashes)
    file = f"{name}/images/c/{number}/0/0/0"
    return {
        "sha256": _sha256(pixels),
        "changes": dict(changes),
        "files": {file: file_record(growing / file)},
    }


def _holds(growing: Path, record: dict[str, Any] | None) -> bool:
    """Whether a shard of an earlier run is still what was written."""
    return record is not None and all(
        (growing / name).exists() and file_record(growing / name) == stated for name, stated in record["files"].items()
    )


def _repeated(folder: RunFolder, work: dict[str, tuple[str, int, slice]]) -> dict[str, int]:
    def hashes(split: str) -> Iterator[bytes]:
        for unit, (name, *_) in work.items():
            if name == split:
                whole = (folder.path / "hashes" / unit).read_bytes()
                yield from (whole[start : start + HASH_BYTES] for start in range(0, len(whole), HASH_BYTES))

    known = set(hashes("train"))
    return {split: sum(one in known for one in hashes(split)) for split in ("validation", "test")}


@contextlib.contextmanager
def _naming_damage(path: Path, what: str = "") -> Iterator[None]:
    """What goes wrong in the body is damage of the prepared dataset `path`, of a part that `what` says."""
    try:
        yield
    except FileNotFoundError as error:
        raise DatasetError(
            f"{path} does not hold a prepared dataset; run the prepare stage (dvc repro prepare)"
        ) from error
    except (ValueError, KeyError, RuntimeError, TypeError, AttributeError) as error:
        raise DatasetError(f"{path} is damaged ({what}{error}); remove it and run the prepare stage again") from error


def read_dataset(path: Path) -> Dataset:
    """A prepared dataset, checked against its fingerprint; each shard of images is read, and checked, when it is asked for.

    Raises DatasetError if it is missing, unreadable or changed since it was made.
    """
    with _naming_damage(path):
        root: Any = zarr.open_group(path, mode="r", use_consolidated=True)
        class_names = tuple(str(name) for name in root.attrs["class_names"])
        stated = str(root.attrs["fingerprint"])
        if "shards" not in root.attrs:
            raise DatasetError(f"{path} is of an earlier version; run the prepare stage again (dvc repro prepare)")
        shards = {name: list(root.attrs["shards"][name]) for name in SPLITS}
        arrays = {name: root[f"{name}/images"] for name in SPLITS}
        labels = {name: np.asarray(root[f"{name}/labels"]) for name in SPLITS}
    shapes = {name: array.shape for name, array in arrays.items()}
    found = _fingerprint(class_names, shapes, labels, shards)
    if found != stated:
        raise DatasetError(
            f"{path} has changed since it was prepared (fingerprint {found[:12]}, not {stated[:12]}); "
            "remove it and run the prepare stage again"
        )
    splits: dict[str, Split] = {
        name: StoredSplit(path, name, array, torch.from_numpy(labels[name]), shards[name])
        for name, array in arrays.items()
    }
    return Dataset(class_names, found, splits)
