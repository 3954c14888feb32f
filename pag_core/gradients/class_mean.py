"""Class Mean (CM, Section 4.1): the representative of a class is the mean of its training images; `g(x, c) = r_c - x`."""

import torch

from pag_core.datasets.prepared import Split


def class_mean_representatives(train: Split, classes: int, *, factor: float) -> torch.Tensor:
    """`factor` times the mean training image of each class: float32 [classes, C, H, W], [0, 1] at factor 1."""
    means = [train.images[train.labels == label].to(torch.float64).mean(0) / 255 for label in range(classes)]
    return (factor * torch.stack(means)).to(torch.float32)
