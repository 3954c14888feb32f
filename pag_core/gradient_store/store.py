"""The gradient store: target gradients g(x, c) on disk as Zarr v3.

Four kinds: `none` (vanilla), `representatives` (OI, CM: one image per class), `neighbours` (NN: indices of training
images) and `dense` (SBG: every gradient, quantised, one shard per run of images). The first three compute
`g(x, c) = r - x` when read.
"""

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr
from numpy.typing import NDArray
from zarr.codecs import Crc32cCodec
from zarr.core.array_spec import ArrayConfigLike

from pag_core.datasets.prepared import Dataset, consolidate_metadata
from pag_core.errors import StoreError
from pag_core.gradient_store.manifest import read_manifest, require_made_from, write_manifest
from pag_core.gradient_store.shards import ShardedArray, checked
from pag_core.gradient_store.targets import DenseGradients, NeighbourGradients, RepresentativeGradients, TargetGradients
from pag_core.pipeline.artifacts import replacing_folder

# otherwise a chunk of zeros would not be written, and a missing file would be no sign of damage
WRITE_ZEROS: ArrayConfigLike = {"write_empty_chunks": True}


def quantised(gradients: torch.Tensor, dtype: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes of `dtype` [B, classes, C, H, W] and scales float32 [B, classes] with `g = code * scale`, on their device.

    int8 spreads the largest absolute value of each (image, class) over 127; float16 and float32 over 1. A gradient that is
    not finite has a scale that is not, which `DenseStoreWriter.write_shard` refuses.
    """
    largest = gradients.abs().flatten(2).amax(2)
    steps = 127 if dtype == "int8" else 1
    scales = largest / steps
    codes = gradients / torch.where(scales > 0, scales, 1)[..., None, None, None]
    if dtype == "int8":
        codes = codes.round()
    return codes.to(getattr(torch, dtype)), scales.to(torch.float32)


@dataclass(frozen=True)
class SmallStore:
    """The content of a store whose gradients are computed when read: its kind, and its arrays by name.

    `none` has no arrays; `representatives` float32 [classes, C, H, W]; `neighbours` has `SPLIT/neighbours` int32
    [images, classes], indices of training images.
    """

    kind: str
    arrays: dict[str, torch.Tensor] = field(default_factory=dict)

    def gradients(self, dataset: Dataset, split: str, device: torch.device) -> TargetGradients:
        """The target gradients of `split` on `device`; raises StoreError if there are none (vanilla training)."""
        images = dataset.splits[split].to(device)
        match self.kind:
            case "representatives":
                return RepresentativeGradients(self.arrays["representatives"].to(device), images)
            case "neighbours":
                train = dataset.splits["train"].to(device)
                return NeighbourGradients(self.arrays[f"{split}/neighbours"].to(device), images, train)
            case kind:
                raise StoreError(f"a store of kind {kind!r} holds no gradients: it stands for vanilla training")


def _header(dataset: Dataset, source: str, kind: str, provenance: dict[str, Any]) -> dict[str, Any]:
    return {
        "source": source,
        "kind": kind,
        "class_names": list(dataset.class_names),
        "dataset": dataset.fingerprint,
        "image_shape": list(dataset.image_shape),
        "provenance": provenance,
    }


def write_small_store(
    path: Path, dataset: Dataset, source: str, content: SmallStore, provenance: dict[str, Any]
) -> None:
    """Write a store whose gradients are computed when read, whole or not at all."""
    with replacing_folder(path) as partial:
        root = zarr.create_group(partial, zarr_format=3)
        for name, tensor in content.arrays.items():
            values = tensor.cpu().numpy()
            array = root.create_array(
                name,
                shape=values.shape,
                dtype=values.dtype,
                chunks=values.shape,
                compressors=[Crc32cCodec()],
                config=WRITE_ZEROS,
            )
            array[:] = values
        consolidate_metadata(partial)
        write_manifest(partial, _header(dataset, source, content.kind, provenance), {})


class DenseStoreWriter:
    """Writes a dense store shard by shard into a folder of its own; `finish` makes it a store.

    A shard is written whole by one writer, so several processes may each write other shards of one store; the one that
    `leads` makes it first, and removes what a killed writer left.
    """

    def __init__(
        self,
        folder: Path,
        dataset: Dataset,
        *,
        images: dict[str, int],
        dtype: str,
        images_per_shard: int,
        images_per_chunk: int,
        leads: bool = True,
    ) -> None:
        self.folder = folder
        self.dataset = dataset
        self.images = images
        self.dtype = dtype
        self.images_per_shard = images_per_shard
        if leads and not (folder / "zarr.json").exists():
            with replacing_folder(folder) as partial:
                root = zarr.create_group(partial, zarr_format=3)
                for split, count in images.items():
                    self._create_arrays(root, split, count, images_per_chunk)
                consolidate_metadata(partial)
        if leads:
            for orphan in folder.rglob("*.partial"):
                orphan.unlink()
        self.root = zarr.open_group(folder, mode="r+", use_consolidated=True)

    def _create_arrays(self, root: zarr.Group, split: str, count: int, images_per_chunk: int) -> None:
        classes, image_shape = self.dataset.classes, self.dataset.image_shape
        root.create_array(
            f"{split}/gradient",
            shape=(count, classes, *image_shape),
            dtype=self.dtype,
            chunks=(images_per_chunk, classes, *image_shape),
            shards=(self.images_per_shard, classes, *image_shape),
            compressors=[Crc32cCodec()],
        )
        root.create_array(
            f"{split}/scale",
            shape=(count, classes),
            dtype="float32",
            chunks=(self.images_per_shard, classes),
            compressors=[Crc32cCodec()],
        )

    def shards(self) -> list[tuple[str, int, slice]]:
        """Every shard as (split, number, its images)."""
        return [
            (split, number, slice(start, min(start + self.images_per_shard, count)))
            for split, count in self.images.items()
            for number, start in enumerate(range(0, count, self.images_per_shard))
        ]

    def files_of(self, split: str, number: int) -> list[str]:
        """The files of a shard, relative to the store: its gradients and its scales."""
        return [f"{split}/gradient/c/{number}/0/0/0/0", f"{split}/scale/c/{number}/0"]

    def write_shard(self, split: str, images: slice, codes: NDArray[Any], scales: NDArray[np.float32]) -> None:
        """Write one whole shard as `quantised` gives it; raises StoreError if a gradient is not finite."""
        if not np.isfinite(scales).all():
            raise StoreError("a gradient to be stored is not finite; the diffusion model that made it has diverged")
        self._array(f"{split}/gradient")[images] = codes
        self._array(f"{split}/scale")[images] = scales

    def _array(self, name: str) -> "zarr.Array[Any]":
        array = self.root[name]
        assert isinstance(array, zarr.Array)
        # the setting is Zarr's, not the store's: an array that is opened again has lost it
        return array.with_config(WRITE_ZEROS)

    def finish(
        self,
        path: Path,
        source: str,
        provenance: dict[str, Any],
        measured: dict[str, float],
        finished: dict[str, dict[str, Any]],
    ) -> None:
        """Write the manifest and move the store to `path`; raises StoreError if a shard was not written."""
        expected = [name for split, number, _ in self.shards() for name in self.files_of(split, number)]
        if absent := [name for name in expected if name not in finished or not (self.folder / name).exists()]:
            raise StoreError(f"{len(absent)} of {len(expected)} shard files were not written, {absent[0]} the first")
        header = _header(self.dataset, source, "dense", provenance)
        write_manifest(
            self.folder, {**header, "dtype": self.dtype, "images": self.images, "measured": measured}, finished
        )
        with replacing_folder(path) as partial:
            partial.rmdir()
            shutil.move(self.folder, partial)


def open_gradients(
    path: Path, dataset: Dataset, split: str, device: torch.device, *, inputs: dict[str, str] | None = None
) -> TargetGradients:
    """The target gradients of `split` (`train` or `test`), resident on `device`.

    Raises StoreError if the store is damaged, incomplete, vanilla, or made from another dataset, other classes or
    other `inputs` (SHA-256 by name) than these.
    """
    manifest = read_manifest(path)
    require_made_from(path, manifest, dataset, inputs)
    match manifest["kind"]:
        case "dense":
            codes, scales = (ShardedArray(path, f"{split}/{name}").resident(device) for name in ("gradient", "scale"))
            return DenseGradients(codes, scales)
        case "representatives" as kind:
            names = [kind]
        case "neighbours" as kind:
            names = [f"{split}/{kind}"]
        case kind:
            raise StoreError(f"{path} holds no gradients (kind {kind!r}): it stands for vanilla training")
    content = SmallStore(kind, {name: _read_whole(path, name, device) for name in names})
    return content.gradients(dataset, split, device)


def _read_whole(path: Path, name: str, device: torch.device) -> torch.Tensor:
    root = zarr.open_group(path, mode="r", use_consolidated=True)
    return torch.from_numpy(checked(path, name, lambda: root[name][:])).to(device)  # type: ignore[index]
