"""The prepared dataset on disk: a Zarr v3 group per split, with class names and a content fingerprint."""

import contextlib
import hashlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr
from zarr.codecs import Crc32cCodec, ZstdCodec
from zarr.errors import ZarrUserWarning

from pag_core.datasets.labelled_images import SPLITS, LabelledImages
from pag_core.errors import DatasetError, ParamsError
from pag_core.pipeline.artifacts import replacing_folder

# up to this size a split is one shard, so that DVC handles few files
IMAGES_PER_SHARD = 16384


@dataclass(frozen=True)
class Split:
    """One split in memory: images uint8 [N, C, H, W], labels int64 [N]."""

    images: torch.Tensor
    labels: torch.Tensor

    def __len__(self) -> int:
        return len(self.images)

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
        return (self.images[indices].to(torch.float32) / 255).contiguous()


@dataclass(frozen=True)
class Dataset:
    """A prepared dataset: class names, content fingerprint (SHA-256), image shape [C, H, W], and its splits."""

    class_names: tuple[str, ...]
    fingerprint: str
    splits: dict[str, Split]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        channels, height, width = self.splits["train"].images.shape[1:]
        return channels, height, width

    @property
    def classes(self) -> int:
        return len(self.class_names)


def consolidate_metadata(folder: Path) -> None:
    """Gather the metadata of a Zarr group into its root, so that it opens with one read."""
    with warnings.catch_warnings():
        # Zarr warns that other implementations may not read it; the metadata of each array stays beside it
        warnings.simplefilter("ignore", ZarrUserWarning)
        zarr.consolidate_metadata(folder)


def fingerprint(class_names: tuple[str, ...], splits: dict[str, LabelledImages]) -> str:
    """SHA-256 over class names, shapes, pixels and labels of every split."""
    total = hashlib.sha256("\n".join(class_names).encode())
    for name in SPLITS:
        part = splits[name]
        total.update(f"\n{name}{part.images.shape}".encode())
        total.update(np.ascontiguousarray(part.images).tobytes())
        total.update(np.ascontiguousarray(part.labels, dtype="<i8").tobytes())
    return total.hexdigest()


def write_dataset(
    path: Path, class_names: tuple[str, ...], splits: dict[str, LabelledImages], provenance: dict[str, Any]
) -> None:
    """Write a prepared dataset to `path`, whole or not at all."""
    with replacing_folder(path) as partial:
        root = zarr.create_group(partial, zarr_format=3)
        root.attrs.update(
            {
                "class_names": list(class_names),
                "fingerprint": fingerprint(class_names, splits),
                "provenance": provenance,
            }
        )
        for name in SPLITS:
            part = splits[name]
            shard = min(len(part), IMAGES_PER_SHARD)
            for key, array in (("images", part.images), ("labels", part.labels)):
                stored = root.create_array(
                    f"{name}/{key}",
                    shape=array.shape,
                    dtype=array.dtype,
                    chunks=(shard, *array.shape[1:]),
                    compressors=[ZstdCodec(), Crc32cCodec()],
                )
                stored[:] = array
        consolidate_metadata(partial)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """The group of a prepared dataset; what goes wrong in the body is its damage."""
    try:
        yield zarr.open_group(path, mode="r", use_consolidated=True)
    except FileNotFoundError as error:
        raise DatasetError(
            f"{path} does not hold a prepared dataset; run the prepare stage (dvc repro prepare)"
        ) from error
    except (ValueError, KeyError, RuntimeError, TypeError) as error:
        raise DatasetError(f"{path} is damaged ({error}); remove it and run the prepare stage again") from error


def read_labels(path: Path) -> Dataset:
    """A prepared dataset with its labels and shapes alone, which takes no time: its images are on the device `meta`.

    What it holds is not checked against its fingerprint. Raises DatasetError if it is missing or unreadable.
    """
    with _opened(path) as root:
        splits = {
            name: Split(
                torch.empty(root[f"{name}/images"].shape, dtype=torch.uint8, device="meta"),
                torch.from_numpy(np.asarray(root[f"{name}/labels"])),
            )
            for name in SPLITS
        }
        return Dataset(tuple(map(str, root.attrs["class_names"])), str(root.attrs["fingerprint"]), splits)


def read_dataset(path: Path) -> Dataset:
    """Read a prepared dataset into memory and check it against its fingerprint.

    Raises DatasetError if it is missing, unreadable or changed since it was made.
    """
    with _opened(path) as root:
        raw = {
            name: LabelledImages(np.asarray(root[f"{name}/images"]), np.asarray(root[f"{name}/labels"]))
            for name in SPLITS
        }
        class_names = tuple(str(name) for name in root.attrs["class_names"])
        stated = str(root.attrs["fingerprint"])
    found = fingerprint(class_names, raw)
    if found != stated:
        raise DatasetError(
            f"{path} has changed since it was prepared (fingerprint {found[:12]}, not {stated[:12]}); "
            "remove it and run the prepare stage again"
        )
    splits = {name: Split(torch.from_numpy(part.images), torch.from_numpy(part.labels)) for name, part in raw.items()}
    return Dataset(class_names, found, splits)
