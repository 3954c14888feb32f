"""Feeding a training run with images: all in memory, a map of a raw copy, or windows of shuffled shards."""

import math
from dataclasses import replace

import numpy as np
import torch

from pag_core.datasets.prepared import AHEAD, Dataset, Split, StoredSplit
from pag_core.params.sections import FeedParams
from pag_core.pipeline.budget import Need, chosen_mode
from pag_core.pipeline.checkpoint import RunFolder
from pag_core.pipeline.raw_copies import mapped_copy


class HostSplit(Split):
    """A split whose images, on the CPU, are too many for the GPU that works on them, or are a map of a file."""

    ahead = AHEAD

    def __init__(self, images: torch.Tensor, labels: torch.Tensor, *, mapped: bool) -> None:
        super().__init__(images, labels)
        self.mapped = mapped

    @property
    def held_bytes(self) -> int:
        return 0 if self.mapped else self._images.nbytes

    def to(self, device: torch.device) -> "HostSplit":
        return HostSplit(self._images, self.labels.to(device), mapped=self.mapped)

    def chosen(self, indices: torch.Tensor | slice) -> torch.Tensor:
        if isinstance(indices, slice):
            return self._images[indices]
        pinned = self.device.type == "cuda"
        found = torch.empty((len(indices), *self.image_shape), dtype=self._images.dtype, pin_memory=pinned)
        return torch.index_select(self._images, 0, indices.cpu(), out=found)


def open_images(
    dataset: Dataset,
    device: torch.device,
    *,
    params: FeedParams,
    folder: RunFolder,
    processes: int = 1,
    run: int | None = None,
) -> Dataset:
    """`dataset` with its training split on `device` in the way that `params` asks for or memory allows; one line says which.

    The raw copy is beside `folder`. `processes` of this machine share its memory. Windows are of `feed.window_shards` shards,
    or hold what windows of so many runs of `run` images each touch, where target gradients give the order. Raises ParamsError
    where a mode does not fit, and DatasetError where a shard is not what was prepared.
    """
    train = dataset.splits["train"]
    assert isinstance(train, StoredSplit)
    touched = 1 if run is None else math.ceil(run / train.per_shard) + 1
    copy = folder.path.parent / f"images-{dataset.fingerprint[:20]}.raw"
    whole, shape = len(train) * math.prod(train.image_shape), (len(train), *train.image_shape)
    need = Need("pixels", whole, 0, train.bytes_per_shard, train.shards, per_window=touched)
    choice = chosen_mode(params, need, device, copy, processes=processes, of=f"{len(train)} images")
    fed: Split
    if choice.mode == "window":
        fed = train.to(device).windows_of((params.window_shards or 1) * touched)
    elif choice.mode == "memory_map":
        parts = (images.numpy() for _, images in train.parts())
        fed = HostSplit(mapped_copy(copy, parts, np.uint8, shape), train.labels.to(device), mapped=True)
    else:
        place = device if choice.on_gpu else torch.device("cpu")
        images = torch.empty(shape, dtype=torch.uint8, device=place)
        for rows, part in train.parts():
            images[rows] = part
        labels = train.labels.to(device)
        fed = Split(images, labels) if place == device else HostSplit(images, labels, mapped=False)
    return replace(dataset, splits={**dataset.splits, "train": fed})
