"""The gradient store: target gradients g(x, c) on disk as Zarr v3.

`none` (vanilla), `representatives` (OI, CM: one image per class) and `neighbours` (NN: indices of training images) compute
`g(x, c) = r - x` when read. Of SBG, gradients are stored, quantised, one shard per run of images: `dense` has those of
every class, `sparse` those of some classes of each training image, and `online` none for training, but the teacher that
makes them in the step. All three have every class of the held-out test images.
"""

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import zarr
from zarr.codecs import Crc32cCodec
from zarr.core.array_spec import ArrayConfigLike

from pag_core.datasets.prepared import Dataset, consolidate_metadata
from pag_core.errors import StoreError
from pag_core.gradient_store.manifest import read_manifest, require_made_from, write_manifest
from pag_core.gradient_store.shards import ShardedArray, checked
from pag_core.gradient_store.targets import DenseGradients, NeighbourGradients, RepresentativeGradients, TargetGradients
from pag_core.params.sections import GradientStoreParams
from pag_core.pipeline.artifacts import replacing_folder

TEACHER = "teacher"  # the diffusion model in a store of kind online
# kinds whose gradients are on disk
STORED = ("dense", "sparse", "online")

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

    def write_shard(self, split: str, images: slice, content: ShardContent) -> None:
        """Write one whole shard; raises StoreError if a gradient is not finite."""
        if not content.scales.isfinite().all():
            raise StoreError("a gradient to be stored is not finite; the diffusion model that made it has diverged")
        self._array(f"{split}/gradient")[images] = content.codes.numpy()
        self._array(f"{split}/scale")[images] = content.scales.numpy()
        if content.classes is not None:
            self._array(f"{split}/classes")[images] = content.classes.numpy()

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
        if absent := [name for name in expected if name not in finished or not (self.folder / name).exists()]:
            raise StoreError(f"{len(absent)} of {len(expected)} shard files were not written, {absent[0]} the first")
        if teacher is not None:
            shutil.copytree(teacher, self.folder / TEACHER, dirs_exist_ok=True)
        kind = "online" if "train" not in self.images else "dense" if self.kept("train") is None else "sparse"
        header = _header(self.dataset, source, kind, provenance)
        content = {"dtype": self.params.dtype, "images": self.images, "measured": measured}
        write_manifest(self.folder, {**header, **content}, finished)
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
        case "online" if split == "train":
            raise StoreError(f"{path} holds no gradients of training images: their teacher is asked in the step")
        case kind if kind in STORED:
            codes, scales = (ShardedArray(path, f"{split}/{name}").resident(device) for name in ("gradient", "scale"))
            return DenseGradients(codes, scales, kept_classes(path, manifest, split))
        case "representatives" as kind:
            names = [kind]
        case "neighbours" as kind:
            names = [f"{split}/{kind}"]
        case kind:
            raise StoreError(f"{path} holds no gradients (kind {kind!r}): it stands for vanilla training")
    content = SmallStore(kind, {name: _read_whole(path, name, device) for name in names})
    return content.gradients(dataset, split, device)


def kept_classes(path: Path, manifest: dict[str, Any], split: str) -> torch.Tensor | None:
    """The classes of a sparse store's training images, int64 [N, k] on the CPU; None where every class is kept."""
    if manifest["kind"] != "sparse" or split != "train":
        return None
    return ShardedArray(path, f"{split}/classes").resident(torch.device("cpu")).long()


def _read_whole(path: Path, name: str, device: torch.device) -> torch.Tensor:
    root = zarr.open_group(path, mode="r", use_consolidated=True)
    return torch.from_numpy(checked(path, name, lambda: root[name][:])).to(device)  # type: ignore[index]
