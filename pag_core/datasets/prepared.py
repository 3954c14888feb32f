"""The prepared dataset on disk: a Zarr v3 group per split, with class names and a content fingerprint, shard by shard."""

import contextlib
import hashlib
import math
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr
from numpy.typing import NDArray
from zarr.errors import ZarrUserWarning

from pag_core.compute.randomness import generator
from pag_core.datasets.labelled_images import SPLITS, LabelledImages
from pag_core.errors import DatasetError, ParamsError
from pag_core.pipeline.artifacts import digest, read_json, write_json

# a shard is what is written, checked and read together: few files for DVC, and little memory
IMAGES_PER_SHARD = 16384
BYTES_PER_SHARD = 2**25
HELD = 2  # shards that a reader of the images in their order keeps
AHEAD = 4  # batches that a background thread fetches before they are trained on


class Split:
    """One split in memory: images uint8 [N, C, H, W] and labels int64 [N], on one device.

    Others hold their images elsewhere: `ahead` is how many batches a reader should ask for in advance, in one background
    thread, and `window` the number of shards within which an epoch's order mixes images; 0 stands for all.
    """

    ahead = 0
    window = 0

    def __init__(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        self._images = images
        self.labels = labels

    @property
    def images(self) -> torch.Tensor:
        """All images."""
        return self._images

    def __len__(self) -> int:
        return len(self._images)

    @property
    def device(self) -> torch.device:
        """Where labels are, and pixels are given."""
        return self.labels.device

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """[C, H, W]."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    @property
    def held_bytes(self) -> int:
        """Of images in memory, on the device or the host, at most."""
        return self.images.nbytes

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

    def part(self, rows: slice) -> "Split":
        """The images of `rows` as a split in memory."""
        return Split(self.chosen(rows).to(self.device), self.labels[rows])

    def pixels(self, indices: torch.Tensor | slice = slice(None)) -> torch.Tensor:
        """The images of `indices` as float32 [N, C, H, W] in [0, 1], contiguous, on the device."""
        return self.as_pixels(self.chosen(indices))

    def as_pixels(self, chosen: torch.Tensor) -> torch.Tensor:
        """What `chosen` gave, as `pixels` has it; a copy from pinned memory is not waited for."""
        return (chosen.to(self.device, non_blocking=True).to(torch.float32) / 255).contiguous()

    def chosen(self, indices: torch.Tensor | slice) -> torch.Tensor:
        """The images of `indices` where they are held."""
        return self._images[indices]

    def parts(self) -> Iterator[tuple[slice, torch.Tensor]]:
        """The rows and the images of one part after the other: of a split on disk a shard at a time."""
        yield slice(0, len(self)), self._images

    def epoch_order(self, *, seed: int, epoch: int) -> torch.Tensor:
        """The order in which an epoch visits the images: int64 [N] on the CPU, a stream of its own each epoch."""
        return plain_order(len(self), seed=seed, epoch=epoch)


def plain_order(images: int, *, seed: int, epoch: int) -> torch.Tensor:
    """A permutation of all images for `epoch`: int64 [images] on the CPU."""
    return torch.randperm(images, generator=generator("cpu", seed, "order", epoch))


def shard_order(shards: int, *, seed: int, epoch: int) -> torch.Tensor:
    """The order in which an epoch with windows reads the shards: int64 [shards]."""
    return torch.randperm(shards, generator=generator("cpu", seed, "shard order", epoch))


def window_order(rows: list[slice], window: int, *, seed: int, epoch: int) -> torch.Tensor:
    """All images of the first window of shards, shuffled, then those of the next: int64 [images] on the CPU.

    `rows` are those of each shard.
    """
    mixing = generator("cpu", seed, "window order", epoch)
    parts = []
    for shards in shard_order(len(rows), seed=seed, epoch=epoch).split(window):
        members = torch.cat([torch.arange(rows[number].start, rows[number].stop) for number in shards.tolist()])
        parts.append(members[torch.randperm(len(members), generator=mixing)])
    return torch.cat(parts)


class StoredSplit(Split):
    """A split on disk: the shards of the images that are asked for are read, each checked, and the last `held` kept.

    So few images are in memory where they are asked for in their order, or in that of `epoch_order` with a `window`, with which
    an epoch visits the shards in a shuffled order. Raises DatasetError, when images are asked for, where a shard is damaged,
    missing or not what was prepared.
    """

    def __init__(
        self,
        path: Path,
        name: str,
        array: "zarr.Array[Any]",
        digests: list[str],
        labels: torch.Tensor,
        *,
        held: int = HELD,
        window: int = 0,
    ) -> None:
        self.labels = labels
        self.held = held
        self.window = window
        self.ahead = AHEAD if window else 0
        self.per_shard: int = array.chunks[0]
        self.shards = len(digests)
        self._content = path, name, array, digests
        self._read: dict[int, torch.Tensor] = {}
        self._reading = threading.Lock()

    @property
    def image_shape(self) -> tuple[int, int, int]:
        channels, height, width = self._content[2].shape[1:]
        return channels, height, width

    @property
    def images(self) -> torch.Tensor:
        """All of them, read anew each time."""
        return self.chosen(slice(None))

    @property
    def bytes_per_shard(self) -> int:
        return self.per_shard * math.prod(self.image_shape)

    @property
    def held_bytes(self) -> int:
        return min(self.held, self.shards) * self.bytes_per_shard

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device) -> "StoredSplit":
        if self.device == device:  # and with it what it keeps
            return self
        return StoredSplit(*self._content, self.labels.to(device), held=self.held, window=self.window)

    def windows_of(self, shards: int) -> "StoredSplit":
        """The same with windows of that many shards, of which two are kept."""
        window = min(shards, self.shards)
        return StoredSplit(*self._content, self.labels, held=2 * window + 1, window=window)

    def epoch_order(self, *, seed: int, epoch: int) -> torch.Tensor:
        if not self.window:
            return super().epoch_order(seed=seed, epoch=epoch)
        return window_order(list(map(self.rows, range(self.shards))), self.window, seed=seed, epoch=epoch)

    def chosen(self, indices: torch.Tensor | slice) -> torch.Tensor:
        if isinstance(indices, slice):
            indices = torch.arange(*indices.indices(len(self)))
        places = indices.cpu()
        if len(places) and not 0 <= int(places.min()) <= int(places.max()) < len(self):
            raise IndexError(f"images {int(places.min())} to {int(places.max())} of a split that has {len(self)}")
        found = torch.empty((len(places), *self.image_shape), dtype=torch.uint8)
        numbers = places // self.per_shard
        for number in numbers.unique().tolist():
            here = numbers == number
            found[here] = self._shard(number)[places[here] - number * self.per_shard]
        return found

    def parts(self) -> Iterator[tuple[slice, torch.Tensor]]:
        for number in range(self.shards):
            yield self.rows(number), self._shard(number)

    def rows(self, number: int) -> slice:
        """The rows of a shard."""
        return slice(number * self.per_shard, min((number + 1) * self.per_shard, len(self)))

    def _shard(self, number: int) -> torch.Tensor:
        with self._reading:
            pixels = self._read.pop(number, None)
            # room for it first
            while len(self._read) >= self.held:
                del self._read[next(iter(self._read))]
            self._read[number] = pixels = self._checked(number) if pixels is None else pixels
            return pixels

    def _checked(self, number: int) -> torch.Tensor:
        path, name, array, digests = self._content
        with _naming_damage(path, f"shard {number} of the {name} images: "):
            pixels = np.asarray(array[self.rows(number)])
        if sha256(pixels) != digests[number]:
            raise DatasetError(
                f"{path} has changed since it was prepared (shard {number} of the {name} images); remove it and run the "
                "prepare stage again"
            )
        return torch.from_numpy(pixels)


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
    """Gather the metadata of a Zarr group into its root, so that it opens with one read; the bytes are always the same."""
    with warnings.catch_warnings():
        # Zarr warns that other implementations may not read it; the metadata of each array stays beside it
        warnings.simplefilter("ignore", ZarrUserWarning)
        zarr.consolidate_metadata(folder)
    # it lists arrays in the order in which it happened to read them
    root = folder / "zarr.json"
    write_json(root, read_json(root))


def sha256(pixels: NDArray[np.uint8]) -> str:
    """Of the pixels of a shard."""
    return hashlib.sha256(np.ascontiguousarray(pixels).data).hexdigest()


def shards_of(count: int, shape: tuple[int, ...]) -> list[slice]:
    """The rows of each shard of `count` images of `shape` [C, H, W]."""
    size = max(1, min(count, IMAGES_PER_SHARD, BYTES_PER_SHARD // int(np.prod(shape))))
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def fingerprint(class_names: tuple[str, ...], splits: dict[str, LabelledImages]) -> str:
    """SHA-256 over class names, and of every split its shape, its labels, and the SHA-256 of the pixels of each shard."""
    shards = {
        name: [sha256(part.read(rows.start, rows.stop)) for rows in shards_of(len(part), part.shape[1:])]
        for name, part in splits.items()
    }
    return fingerprint_of(class_names, {name: (part.shape, part.labels, shards[name]) for name, part in splits.items()})


def fingerprint_of(
    class_names: tuple[str, ...], splits: dict[str, tuple[tuple[int, ...], NDArray[np.int64], list[str]]]
) -> str:
    """As `fingerprint`, where the SHA-256 of the shards are known: of each split shape, labels and these."""
    parts = []
    for name in SPLITS:
        shape, labels, shards = splits[name]
        parts.append([name, list(shape), hashlib.sha256(labels.astype("<i8").tobytes()).hexdigest(), shards])
    return digest([list(class_names), parts])


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
    found = fingerprint_of(class_names, {name: (arrays[name].shape, labels[name], shards[name]) for name in SPLITS})
    if found != stated:
        raise DatasetError(
            f"{path} has changed since it was prepared (fingerprint {found[:12]}, not {stated[:12]}); "
            "remove it and run the prepare stage again"
        )
    splits: dict[str, Split] = {
        name: StoredSplit(path, name, array, shards[name], torch.from_numpy(labels[name]))
        for name, array in arrays.items()
    }
    return Dataset(class_names, found, splits)
