"""One Image (OI, Section 4.1): the representative of a class is one training image of it; `g(x, c) = r_c - x`."""

import torch

from pag_core.compute.randomness import generator
from pag_core.datasets.prepared import Split


def one_image_representatives(train: Split, classes: int, *, seed: int) -> torch.Tensor:
    """One training image for each class, drawn by `seed`: float32 [classes, C, H, W] in [0, 1]."""
    chosen = []
    for label in range(classes):
        members = torch.nonzero(train.labels == label).flatten()
        draw = torch.randint(len(members), (), generator=generator("cpu", seed, "one image", label))
        chosen.append(int(members[draw]))
    return train.pixels(torch.tensor(chosen))
