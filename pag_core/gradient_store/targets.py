"""Target gradients g(x, c) of one split, whatever their source: one way to ask for rows of them."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

import torch

from pag_core.datasets.prepared import Split, plain_order


@dataclass(frozen=True)
class GradientBatch:
    """Target gradients as they are stored: codes [B, K, C, H, W], times a scale [B, K] if they are quantised."""

    codes: torch.Tensor
    scales: torch.Tensor | None = None

    def dequantised(self) -> torch.Tensor:
        """g(x, c) up to a positive factor, float [B, K, C, H, W]."""
        if self.scales is None:
            return self.codes
        return self.codes.to(self.scales.dtype) * self.scales[..., None, None, None]

    def norms(self) -> torch.Tensor:
        """|g(x, c)| over pixels, float [B, K]."""
        codes = self.codes if self.scales is None else self.codes.to(self.scales.dtype)
        lengths: torch.Tensor = codes.flatten(2).norm(dim=2)
        return lengths if self.scales is None else lengths * self.scales

    def with_codes(self, codes: torch.Tensor) -> "GradientBatch":
        """Other codes (an augmentation's) of the same scales."""
        return replace(self, codes=codes)

    def to(self, device: torch.device) -> "GradientBatch":
        """The same on `device`; a copy from pinned memory is not waited for."""
        scales = None if self.scales is None else self.scales.to(device, non_blocking=True)
        return GradientBatch(self.codes.to(device, non_blocking=True), scales)


class Targets(ABC):  # noqa: B024
    """Target gradients of one split as training draws them: stored ones (`TargetGradients`), or those of a teacher.

    An image's gradients are numbered by slots, which are its classes, unless `kept_classes` (int64 [N, k] on the CPU) says
    that a sparse store keeps k classes of each image: its own at slot 0, then others drawn at random.

    `ahead` is how many batches a reader should ask for in advance, in one background thread and in the order of training;
    0 if they are on the device already. `window` is the number of shards within which an epoch's order mixes images; 0
    stands for all.
    """

    ahead = 0
    window = 0
    kept_classes: torch.Tensor | None = None

    def slots(self, classes: int) -> int:
        """How many of `classes` an image has a gradient of."""
        return classes if self.kept_classes is None else self.kept_classes.shape[1]

    def classes_of(self, image_indices: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
        """The classes int64 [B, K] of `slots` int64 [B, K], on the CPU."""
        if self.kept_classes is None:
            return slots
        return self.kept_classes[image_indices].gather(1, slots)

    def weights_of(self, slots: torch.Tensor, classes: int) -> torch.Tensor | None:
        """What each term of Eq. 5 counts, float32 [B, K], one on average over an image's slots; None where all count alike.

        Of `classes` C, k are kept. An image's own class is always among them and counts k/C; each other is with probability
        (k - 1)/(C - 1) and counts (k/C) (C - 1)/(k - 1). So over the draws of the store the weighted sum has the expectation
        that it has where all classes are kept.
        """
        if self.kept_classes is None:
            return None
        kept = self.kept_classes.shape[1]
        own = kept / classes
        return torch.where(slots == 0, own, own * (classes - 1) / (kept - 1))

    def epoch_order(self, images: int, *, seed: int, epoch: int) -> torch.Tensor:
        """The order in which an epoch visits the images: int64 [images] on the CPU, a stream of its own each epoch."""
        return plain_order(images, seed=seed, epoch=epoch)

    def close(self) -> None:  # noqa: B027
        """End what runs in the background; what is asked for later starts it again."""


class TargetGradients(Targets):
    """Target gradients that are stored, or computed from what is stored."""

    @abstractmethod
    def rows(self, image_indices: torch.Tensor, slots: torch.Tensor, *, epoch: int = 0) -> GradientBatch:
        """g(x, c) for images int64 [B] and slots int64 [B, K], up to a positive factor.

        Where `ahead` is not 0 the indices are on the CPU, and the rows may be, in pinned memory beside a GPU.
        """

    def __call__(self, image_indices: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
        """As `rows`, dequantised: float32 [B, K, C, H, W]."""
        return self.rows(image_indices, slots).dequantised()


class RepresentativeGradients(TargetGradients):
    """`g(x, c) = r_c - x` (OI and CM, Section 4.1)."""

    def __init__(self, representatives: torch.Tensor, split: Split) -> None:
        self.representatives = representatives
        self.split = split

    def rows(self, image_indices: torch.Tensor, slots: torch.Tensor, *, epoch: int = 0) -> GradientBatch:
        return GradientBatch(self.representatives[slots] - self.split.pixels(image_indices)[:, None])


class NeighborGradients(TargetGradients):
    """`g(x, c) = r(x, c) - x` (NN, Eq. 6); the representatives are training images."""

    def __init__(self, neighbors: torch.Tensor, split: Split, train: Split) -> None:
        self.neighbors = neighbors
        self.split = split
        self.train = train

    def rows(self, image_indices: torch.Tensor, slots: torch.Tensor, *, epoch: int = 0) -> GradientBatch:
        chosen = self.neighbors[image_indices].gather(1, slots).long()
        nearest: torch.Tensor = self.train.pixels(chosen.flatten()).unflatten(0, tuple(chosen.shape))
        return GradientBatch(nearest - self.split.pixels(image_indices)[:, None])


class DenseGradients(TargetGradients):
    """Stored gradients in one array: codes [N, k, C, H, W] times a scale [N, k], on one device.

    `kept_classes` as the base says; None where k are all classes. `ahead` and `pinned` are for codes on the CPU (in
    memory, or a map of a file) that feed a GPU or may have to wait for a disk. Only the rows asked for are read.
    """

    def __init__(
        self,
        codes: torch.Tensor,
        scales: torch.Tensor,
        kept_classes: torch.Tensor | None = None,
        *,
        ahead: int = 0,
        pinned: bool = False,
    ) -> None:
        self.codes = codes
        self.scales = scales
        self.kept_classes = kept_classes
        self.ahead = ahead
        self.pinned = pinned

    def rows(self, image_indices: torch.Tensor, slots: torch.Tensor, *, epoch: int = 0) -> GradientBatch:
        places = (image_indices[:, None] * self.codes.shape[1] + slots).flatten()
        return gathered_rows(self.codes, self.scales, places, tuple(slots.shape), pinned=self.pinned)


def gathered_rows(
    codes: torch.Tensor, scales: torch.Tensor, places: torch.Tensor, shape: tuple[int, ...], *, pinned: bool
) -> GradientBatch:
    """Rows `places` int64 [B*K] of codes [N, k, C, H, W] and scales [N, k] whose first two axes are joined."""
    flat = codes.view(-1, codes[0, 0].numel())
    found = torch.empty(len(places), flat.shape[1], dtype=flat.dtype, device=flat.device, pin_memory=pinned)
    torch.index_select(flat, 0, places, out=found)
    factors = torch.empty(len(places), dtype=scales.dtype, device=scales.device, pin_memory=pinned)
    torch.index_select(scales.view(-1), 0, places, out=factors)
    return GradientBatch(found.view(*shape, *codes.shape[2:]), factors.view(shape))
