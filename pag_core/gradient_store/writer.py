"""Writing a store of score-based gradients, quantised, shard by shard, here or to an address."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import zarr
from zarr.codecs import Crc32cCodec
from zarr.core.array_spec import ArrayConfigLike

from pag_core.datasets.prepared import Dataset, consolidate_metadata
from pag_core.errors import StoreError
from pag_core.gradient_store.manifest import store_header, write_manifest
from pag_core.gradient_store.remote import RemoteShards
from pag_core.params.sections import GradientStoreParams
from pag_core.pipeline.artifacts import file_record, replacing_folder

TEACHER = "teacher"  # the diffusion model in a store of kind online

# otherwise a chunk of zeros would not be written, and a missing file would be no sign of damage
WRITE_ZEROS: ArrayConfigLike = {"write_empty_chunks": True}


def quantised(gradients: torch.Tensor, dtype: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes of `dtype` [B, classes, C, H, W] and scales float32 [B, classes] with `g = code * scale`, on their device.

    int8 spreads the largest absolute value of each (image, class) over 127; float16 and float32 over 1. A gradient that is
    not finite has a scale that is not, which `GradientWriter.write_shard` refuses.
    """
    largest = gradients.abs().flatten(2).amax(2)
    steps = 127 if dtype == "int8" else 1
    scales = largest / steps
    codes = gradients / torch.where(scales > 0, scales, 1)[..., None, None, None]
    if dtype == "int8":
        codes = codes.round()
    return codes.to(getattr(torch, dtype)), scales.to(torch.float32)


@dataclass(frozen=True)
class ShardContent:
    """A shard on the CPU: codes [N, k, C, H, W] and scales [N, k] as `quantised` gives them.

    `classes` int64 [N, k] are those kept of each image, its own first; None where all are.
    """

    codes: torch.Tensor
    scales: torch.Tensor
    classes: torch.Tensor | None = None


class GradientWriter:
    """Writes a store of gradients shard by shard into a folder of its own; `finish` makes it a store.

    With `params.address` a shard is sent there once it is written, below a name that `folder` gives, and removed here.

    A shard is written whole by one writer, so several processes may each write other shards of one store; the one that
    `leads` makes it first, and removes what a killed writer left.
    """

    def __init__(
        self,
        folder: Path,
        dataset: Dataset,
        *,
        images: dict[str, int],
        params: GradientStoreParams,
        leads: bool = True,
    ) -> None:
        """`images` is the number of images of each split; those of `train` keep `params.classes_per_image` classes each."""
        self.folder = folder
        self.dataset = dataset
        self.images = images
        self.params = params
        self.remote = None
        if params.address is not None:
            self.remote = RemoteShards(f"{params.address.rstrip('/')}/{folder.parent.name}.zarr")
        if leads and not (folder / "zarr.json").exists():
            with replacing_folder(folder) as partial:
                root = zarr.create_group(partial, zarr_format=3)
                for split, count in images.items():
                    self._create_arrays(root, split, count)
                consolidate_metadata(partial)
        if leads:
            for orphan in folder.rglob("*.partial"):
                orphan.unlink()
        self.root = zarr.open_group(folder, mode="r+", use_consolidated=True)

    def kept(self, split: str) -> int | None:
        """How many classes of each image of `split` are kept; None is all."""
        return self.params.classes_per_image if split == "train" else None

    def _create_arrays(self, root: zarr.Group, split: str, count: int) -> None:
        params, image_shape = self.params, self.dataset.image_shape
        kept = self.kept(split) or self.dataset.classes
        root.create_array(
            f"{split}/gradient",
            shape=(count, kept, *image_shape),
            dtype=params.dtype,
            chunks=(params.images_per_chunk, kept, *image_shape),
            shards=(params.images_per_shard, kept, *image_shape),
            compressors=[Crc32cCodec()],
        )
        tables = {"scale": "float32"} if self.kept(split) is None else {"scale": "float32", "classes": "int32"}
        for name, dtype in tables.items():
            root.create_array(
                f"{split}/{name}",
                shape=(count, kept),
                dtype=dtype,
                chunks=(params.images_per_shard, kept),
                compressors=[Crc32cCodec()],
            )

    def shards(self) -> list[tuple[str, int, slice]]:
        """Every shard as (split, number, its images)."""
        return [
            (split, number, slice(start, min(start + self.params.images_per_shard, count)))
            for split, count in self.images.items()
            for number, start in enumerate(range(0, count, self.params.images_per_shard))
        ]

    def files_of(self, split: str, number: int) -> list[str]:
        """The files of a shard, relative to the store: its gradients, its scales, and its classes where some are kept."""
        tables = ["scale"] if self.kept(split) is None else ["scale", "classes"]
        return [f"{split}/gradient/c/{number}/0/0/0/0", *(f"{split}/{name}/c/{number}/0" for name in tables)]

    def write_shard(self, split: str, images: slice, content: ShardContent) -> dict[str, dict[str, Any]]:
        """Write one whole shard, and return the records of its files; raises StoreError if a gradient is not finite."""
        if not content.scales.isfinite().all():
            raise StoreError("a gradient to be stored is not finite; what made it has diverged")
        self._array(f"{split}/gradient")[images] = content.codes.numpy()
        self._array(f"{split}/scale")[images] = content.scales.numpy()
        if content.classes is not None:
            self._array(f"{split}/classes")[images] = content.classes.numpy()
        names = self.files_of(split, images.start // self.params.images_per_shard)
        records = {name: file_record(self.folder / name) for name in names}
        if self.remote is not None:
            for name in names:
                self.remote.send(self.folder / name, name)
                (self.folder / name).unlink()
        return records

    def holds(self, records: dict[str, dict[str, Any]]) -> bool:
        """Whether files are still what was written: here by their SHA-256, at an address by their size."""
        if self.remote is not None:
            return all(self.remote.size(name) == record["bytes"] for name, record in records.items())
        return all(
            (self.folder / name).exists() and file_record(self.folder / name) == record
            for name, record in records.items()
        )

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
        *,
        teacher: Path | None = None,
    ) -> None:
        """Write the manifest and move the store to `path`, with a copy of the folder `teacher` if there is one.

        Raises StoreError if a shard was not written.
        """
        expected = [name for split, number, _ in self.shards() for name in self.files_of(split, number)]
        there = {} if self.remote is None else self.remote.sizes()
        absent = [
            name for name in expected if name not in finished or not (name in there or (self.folder / name).exists())
        ]
        if absent:
            raise StoreError(f"{len(absent)} of {len(expected)} shard files were not written, {absent[0]} the first")
        content: dict[str, Any] = {"dtype": self.params.dtype, "images": self.images, "measured": measured}
        if self.remote is not None:
            # complete at its address too, for whoever reads it without the manifest
            for metadata in sorted(self.folder.rglob("zarr.json")):
                self.remote.send(metadata, str(metadata.relative_to(self.folder)))
            content["address"] = self.remote.address
        if teacher is not None:
            shutil.copytree(teacher, self.folder / TEACHER, dirs_exist_ok=True)
        kind = "online" if "train" not in self.images else "dense" if self.kept("train") is None else "sparse"
        write_manifest(self.folder, {**store_header(self.dataset, source, kind, provenance), **content}, finished)
        with replacing_folder(path) as partial:
            partial.rmdir()
            shutil.move(self.folder, partial)
