"""Class Mean (CM, Section 4.1): the representative of a class is the mean of its training images; `g(x, c) = r_c - x`."""

import torch

from pag_core.datasets.prepared import Split


def class_mean_representatives(train: Split, classes: int, *, factor: float) -> torch.Tensor:
    """`factor` times the mean training image of each class: float32 [classes, C, H, W], [0, 1] at factor 1."""
    # of integers, so that the sums are exact however the images come
    sums = torch.zeros(classes, *train.image_shape, dtype=torch.float64, device=train.device)
    for rows, images in train.parts():
        labels = train.labels[rows]
        for label in labels.unique().tolist():
            members = images[labels.to(images.device) == label]
            sums[label] += (
                (members.to(torch.float64) if members.is_floating_point() else members).sum(0).to(sums.device)
            )
    counts = torch.bincount(train.labels, minlength=classes)
    return (factor * (sums / counts[:, None, None, None] / 255)).to(torch.float32)
