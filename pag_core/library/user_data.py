"""A user's images and a prepared split as torch datasets, whose indices are those of target gradients."""

from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset, TensorDataset

from pag_core.datasets.prepared import Split, read_dataset
from pag_core.errors import DatasetError


class Indexed(Dataset[tuple[Any, ...]]):
    """A map-style dataset whose items have their index after image and label, by which targets are asked for."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        return (*self.dataset[index], index)


def prepared_split(path: str | Path, split: str = "train") -> TensorDataset:
    """The images float32 [N, C, H, W] in [0, 1] and labels int64 [N] of a split of data/DATASET.zarr.

    Item i is the image of row i in every store of the pipeline: `prepare` has shuffled the split, so that the publisher's order
    is another. Raises DatasetError if it is missing or damaged.
    """
    splits = read_dataset(Path(path)).splits
    if split not in splits:
        raise DatasetError(f"{path} has no split {split!r}; it has {', '.join(splits)}")
    return TensorDataset(splits[split].pixels(), splits[split].labels)


def as_split(images: torch.Tensor, labels: torch.Tensor) -> tuple[Split, int]:
    """Plain tensors as the split that sources work on, and the number of classes.

    `images` uint8, or float in [0, 1], [N, C, H, W]; `labels` int64 [N], of which each class from 0 to the last has one.
    Raises DatasetError for any other.
    """
    if images.dim() != 4 or labels.shape != images.shape[:1] or labels.dtype != torch.int64 or len(labels) == 0:
        raise DatasetError(
            f"images must be [N, C, H, W] with labels int64 [N], not {list(images.shape)} with {labels.dtype} "
            f"{list(labels.shape)}"
        )
    if absent := [label for label, count in enumerate(torch.bincount(labels).tolist()) if count == 0]:
        raise DatasetError(f"no image has the label {absent[0]}; number the classes from 0 on without a gap")
    return Split(in_255(images), labels), int(labels.max()) + 1


def in_255(images: torch.Tensor) -> torch.Tensor:
    """Images uint8, or float in [0, 1] as 0 to 255, as `Split` has them; raises DatasetError as `require_pixels`."""
    require_pixels(images)
    return images if images.dtype == torch.uint8 else images.float() * 255


def require_pixels(images: torch.Tensor) -> None:
    """Raise DatasetError unless images are uint8, or float in [0, 1]."""
    if images.dtype != torch.uint8 and not (images.is_floating_point() and images.min() >= 0 and images.max() <= 1):
        raise DatasetError(
            f"images must be uint8, or float in [0, 1], not {images.dtype} from {float(images.min()):g} to "
            f"{float(images.max()):g}; normalization belongs inside the network"
        )
