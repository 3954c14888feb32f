"""What every dataset loader returns."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pag_core.errors import DatasetError

SPLITS = ("train", "validation", "test")


def listed_classes(names: Sequence[str]) -> str:
    """The names of classes as a sentence has them: all of ten, else the first ten and how many there are."""
    if len(names) <= 10:
        return ", ".join(names)
    return f"{', '.join(names[:10])} ... ({len(names)} classes)"


@dataclass(frozen=True)
class LabelledImages:
    """Images uint8 [N, C, H, W] (0 to 255) with labels int64 [N]; raises DatasetError if the two do not agree."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]

    def __post_init__(self) -> None:
        if self.images.dtype != np.uint8 or self.images.ndim != 4:
            raise DatasetError(f"images must be uint8 [N, C, H, W], not {self.images.dtype} {self.images.shape}")
        if self.labels.dtype != np.int64 or self.labels.shape != self.images.shape[:1]:
            raise DatasetError(
                f"labels must be int64 [{len(self.images)}], not {self.labels.dtype} {list(self.labels.shape)}"
            )

    def __len__(self) -> int:
        return len(self.images)

    def take(self, indices: NDArray[Any]) -> "LabelledImages":
        """The images of `indices`, in their order."""
        return LabelledImages(self.images[indices], self.labels[indices])

    def of_labels(self, kept: Sequence[int]) -> "LabelledImages":
        """The images with the labels `kept` (sorted), which are numbered from 0 on."""
        part = self.take(np.flatnonzero(np.isin(self.labels, kept)))
        return LabelledImages(part.images, np.searchsorted(kept, part.labels).astype(np.int64))


@dataclass(frozen=True)
class RawDataset:
    """A dataset as its publisher divides it; `test` is None if it is not divided."""

    class_names: tuple[str, ...]
    train: LabelledImages
    test: LabelledImages | None

    def of_classes(self, names: Sequence[str] | None) -> "RawDataset":
        """The same with the images of these classes alone, None keeps all; raises DatasetError for a name of none."""
        if names is None:
            return self
        if missing := [name for name in names if name not in self.class_names]:
            raise DatasetError(
                f"prepare.classes has {', '.join(missing)}, which is not one of: {listed_classes(self.class_names)}"
            )
        kept = [label for label, name in enumerate(self.class_names) if name in names]
        train, test = (None if part is None else part.of_labels(kept) for part in (self.train, self.test))
        assert train is not None
        return RawDataset(tuple(self.class_names[label] for label in kept), train, test)
