"""The gradient store: target gradients g(x, c) on disk as Zarr v3.

`none` (vanilla), `representatives` (OI, CM: one image per class) and `neighbours` (NN: indices of training images) compute
`g(x, c) = r - x` when read. Of SBG, gradients are stored, quantised, one shard per run of images: `dense` has those of
every class, `sparse` those of some classes of each training image, and `online` none for training, but the teacher that
makes them in the step. All three have every class of the held-out test images.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import zarr
from zarr.codecs import Crc32cCodec

from pag_core.datasets.prepared import Dataset, consolidate_metadata
from pag_core.errors import StoreError
from pag_core.gradient_store.manifest import read_manifest, require_made_from, store_header, write_manifest
from pag_core.gradient_store.shards import ShardedArray, checked
from pag_core.gradient_store.targets import DenseGradients, NeighbourGradients, RepresentativeGradients, TargetGradients
from pag_core.gradient_store.writer import WRITE_ZEROS
from pag_core.pipeline.artifacts import replacing_folder

# kinds whose gradients are on disk
STORED = ("dense", "sparse", "online")


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
            codes, scales = (
                stored_array(path, manifest, f"{split}/{name}").resident(device) for name in ("gradient", "scale")
            )
            return DenseGradients(codes, scales, kept_classes(path, manifest, split))
        case "representatives" as kind:
            names = [kind]
        case "neighbours" as kind:
            names = [f"{split}/{kind}"]
        case kind:
            raise StoreError(f"{path} holds no gradients (kind {kind!r}): it stands for vanilla training")
    content = SmallStore(kind, {name: _read_whole(path, name, device) for name in names})
    return content.gradients(dataset, split, device)


def stored_array(path: Path, manifest: dict[str, Any], name: str) -> ShardedArray:
    """An array of the store `path`, whose shards are here or at the address that its manifest states."""
    return ShardedArray(path, name, manifest.get("address"))


def kept_classes(path: Path, manifest: dict[str, Any], split: str) -> torch.Tensor | None:
    """The classes of a sparse store's training images, int64 [N, k] on the CPU; None where every class is kept."""
    if manifest["kind"] != "sparse" or split != "train":
        return None
    return stored_array(path, manifest, f"{split}/classes").resident(torch.device("cpu")).long()


def _read_whole(path: Path, name: str, device: torch.device) -> torch.Tensor:
    root = zarr.open_group(path, mode="r", use_consolidated=True)
    return torch.from_numpy(checked(path, name, lambda: root[name][:])).to(device)  # type: ignore[index]
