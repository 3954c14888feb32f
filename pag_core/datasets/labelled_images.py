"""What every dataset loader returns."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from pag_core.errors import DatasetError

SPLITS = ("train", "validation", "test")


def listed_classes(names: Sequence[str]) -> str:
    """The names of classes as a sentence has them: all of ten, else the first ten and how many there are."""
    if len(names) <= 10:
        return ", ".join(names)
    return f"{', '.join(names[:10])} ... ({len(names)} classes)"


class ImageSource(Protocol):
    """Images uint8 [N, C, H, W] of which `read` gives those of some rows; `shape` is that of all."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def read(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]: ...


@dataclass(frozen=True)
class LabelledImages:
    """Images uint8 [N, C, H, W] (0 to 255) with labels int64 [N]; raises DatasetError if the two do not agree.

    `source` holds them, or reads them when they are asked for; with `rows` int64 [N] it is these of it, in their order.
    """

    source: NDArray[np.uint8] | ImageSource
    labels: NDArray[np.int64]
    rows: NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.source, np.ndarray) and (self.source.dtype != np.uint8 or self.source.ndim != 4):
            raise DatasetError(f"images must be uint8 [N, C, H, W], not {self.source.dtype} {self.source.shape}")
        count = self.source.shape[0] if self.rows is None else len(self.rows)
        if self.labels.dtype != np.int64 or self.labels.shape != (count,):
            raise DatasetError(f"labels must be int64 [{count}], not {self.labels.dtype} {list(self.labels.shape)}")

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shape(self) -> tuple[int, ...]:
        """[N, C, H, W]."""
        return len(self), *self.source.shape[1:]

    @property
    def images(self) -> NDArray[np.uint8]:
        """All of them, in memory."""
        return self.read(0, len(self))

    def read(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Those from `start` to before `stop`, in memory."""
        if isinstance(self.source, np.ndarray):
            return self.source[slice(start, stop) if self.rows is None else self.rows[start:stop]]
        return self.source.read(np.arange(start, stop) if self.rows is None else self.rows[start:stop])

    @property
    def changes(self) -> Counter[str]:
        """How many images were changed in which way as they were read."""
        return cast("Counter[str]", getattr(self.source, "changes", Counter()))

    def take(self, indices: NDArray[Any]) -> "LabelledImages":
        """The images of `indices`, in their order; none is read."""
        rows = np.arange(len(self)) if self.rows is None else self.rows
        return LabelledImages(self.source, self.labels[indices], rows[indices])

    def of_labels(self, kept: Sequence[int]) -> "LabelledImages":
        """The images with the labels `kept` (sorted), which are numbered from 0 on."""
        part = self.take(np.flatnonzero(np.isin(self.labels, kept)))
        return LabelledImages(part.source, np.searchsorted(kept, part.labels).astype(np.int64), part.rows)


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
