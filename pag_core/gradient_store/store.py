"""The gradient store: target gradients g(x, c) on disk as Zarr v3.

`none` (vanilla), `representatives` (OI, CM: one image per class) and `neighbors` (NN: indices of training images) compute
`g(x, c) = r - x` when read. Of SBG, gradients are stored, quantised, one shard per run of images: `dense` has those of
every class, `sparse` those of some classes of each training image, and `online` none for training, but the teacher that
makes them in the step. All three have every class of the held-out test images.
"""

import functools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import zarr
from zarr.codecs import Crc32cCodec

from pag_core.datasets.labelled_images import listed_classes
from pag_core.datasets.prepared import Dataset, consolidate_metadata
from pag_core.errors import StoreError
from pag_core.gradient_store.manifest import read_manifest, store_header, write_manifest
from pag_core.gradient_store.remote import RemoteShards
from pag_core.gradient_store.shards import ShardedArray, checked
from pag_core.gradient_store.targets import DenseGradients, NeighborGradients, RepresentativeGradients, TargetGradients
from pag_core.gradient_store.writer import WRITE_ZEROS
from pag_core.pipeline.artifacts import replacing_folder

# kinds whose gradients are on disk
STORED = ("dense", "sparse", "online")


@dataclass(frozen=True)
class SmallStore:
    """The content of a store whose gradients are computed when read: its kind, and its arrays by name.

    `none` has no arrays; `representatives` float32 [classes, C, H, W]; `neighbors` has `SPLIT/neighbors` int32
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
            case "neighbors":
                train = dataset.splits["train"].to(device)
                return NeighborGradients(self.arrays[f"{split}/neighbors"].to(device), images, train)
            case kind:
                raise StoreError(f"a store of kind {kind!r} holds no gradients: it stands for vanilla training")


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
        write_manifest(partial, store_header(dataset, source, content.kind, provenance), {})


class GradientStore:
    """A finished store, opened once: its `manifest` is read and checked then, and handed on with it.

    Raises StoreError if it is damaged or incomplete.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.manifest = read_manifest(path)

    @functools.cached_property
    def _root(self) -> zarr.Group:
        return zarr.open_group(self.path, mode="r", use_consolidated=True)

    def require_made_from(self, dataset: Dataset, inputs: dict[str, str] | None = None) -> None:
        """Raise StoreError unless the store was made from `dataset` and from these `inputs` (SHA-256 by name)."""
        if tuple(self.manifest["class_names"]) != dataset.class_names:
            raise StoreError(
                f"{self.path} was made for the classes {listed_classes(self.manifest['class_names'])}, the dataset has "
                f"{listed_classes(dataset.class_names)}; run its stage again"
            )
        if self.manifest["dataset"] != dataset.fingerprint:
            raise StoreError(
                f"{self.path} was made from other data (fingerprint {self.manifest['dataset'][:12]}, the dataset has "
                f"{dataset.fingerprint[:12]}); run its stage again"
            )
        for name, fingerprint in (inputs or {}).items():
            stated = self.manifest["provenance"]["inputs"].get(name)
            if stated != fingerprint:
                raise StoreError(
                    f"{self.path} was made with another {name} (SHA-256 {str(stated)[:12]}, now {fingerprint[:12]}); "
                    "run its stage again"
                )

    @property
    def images_per_shard(self) -> int | None:
        """Of training images, where their gradients are stored."""
        kind = self.manifest["kind"]
        return None if kind not in STORED or kind == "online" else self._sharded("train/gradient").per_shard

    def stored(self, split: str) -> tuple[ShardedArray, ShardedArray, torch.Tensor | None]:
        """Codes, scales, and the kept classes int64 [N, k] on the CPU, None where all are, of a kind in `STORED`."""
        codes, scales = (self._sharded(f"{split}/{name}") for name in ("gradient", "scale"))
        if self.manifest["kind"] != "sparse" or split != "train":
            return codes, scales, None
        return codes, scales, self._sharded(f"{split}/classes").resident(torch.device("cpu")).long()

    def gradients(
        self, dataset: Dataset, split: str, device: torch.device, *, inputs: dict[str, str] | None = None
    ) -> TargetGradients:
        """The target gradients of `split` (`train` or `test`), resident on `device`.

        Raises StoreError if the store is damaged, vanilla, or made from another dataset, other classes or other `inputs`
        (SHA-256 by name) than these.
        """
        self.require_made_from(dataset, inputs)
        match self.manifest["kind"]:
            case "online" if split == "train":
                raise StoreError(
                    f"{self.path} holds no gradients of training images: their teacher is asked in the step"
                )
            case kind if kind in STORED:
                codes, scales, kept = self.stored(split)
                return DenseGradients(codes.resident(device), scales.resident(device), kept)
            case "representatives" as kind:
                name = kind
            case "neighbors" as kind:
                name = f"{split}/{kind}"
            case kind:
                raise StoreError(f"{self.path} holds no gradients (kind {kind!r}): it stands for vanilla training")
        values = torch.from_numpy(checked(self.path, name, lambda: self._root[name][:]))  # type: ignore[index]
        return SmallStore(kind, {name: values}).gradients(dataset, split, device)

    def _sharded(self, name: str) -> ShardedArray:
        address = self.manifest.get("address")
        return ShardedArray(self.path, self._root, name, None if address is None else RemoteShards(address))
