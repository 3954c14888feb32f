"""Nearest Neighbor (NN, Section 4.1, Eq. 6): the image's nearest among a limited sample of each class, never itself."""

import torch

from pag_core.compute.randomness import generator
from pag_core.datasets.prepared import Split
from pag_core.errors import DatasetError

ROWS_AT_ONCE = 1024


def class_samples(train: Split, classes: int, *, samples_per_class: int, seed: int) -> torch.Tensor:
    """Indices into `train` of the sets D_y of Eq. 6, drawn by `seed`: int64 [classes, samples].

    Every class gives equally many: `samples_per_class`, or all of the smallest class where that is fewer.
    """
    members = [torch.nonzero(train.labels == label).flatten() for label in range(classes)]
    samples = min(samples_per_class, *(len(indices) for indices in members))
    return torch.stack(
        [
            indices[torch.randperm(len(indices), generator=generator("cpu", seed, "neighbour sample", label))[:samples]]
            for label, indices in enumerate(members)
        ]
    )


def nearest_neighbor_indices(images: torch.Tensor, train: Split, samples: torch.Tensor) -> torch.Tensor:
    """For each image the index into `train` of its L2-nearest sample of each class, other than an equal image (Eq. 6).

    `images` uint8 [N, C, H, W]; `samples` int64 [classes, S] from `class_samples`; returns int32 [N, classes].
    Distances are exact (integers in float64). Raises DatasetError if all samples of a class equal an image.
    """
    classes, per_class = samples.shape
    device = images.device
    candidates = train.images[samples.flatten().to(train.images.device)].to(device, torch.float64).flatten(1)
    candidate_norms = candidates.square().sum(1)
    nearest = []
    for start in range(0, len(images), ROWS_AT_ONCE):
        rows = images[start : start + ROWS_AT_ONCE].to(torch.float64).flatten(1)
        distances = rows.square().sum(1, keepdim=True) + candidate_norms - 2 * (rows @ candidates.T)
        distances[distances == 0] = torch.inf
        best = distances.unflatten(1, (classes, per_class)).min(2)
        if best.values.isinf().any():
            row, label = torch.nonzero(best.values.isinf())[0].tolist()
            raise DatasetError(
                f"all {per_class} samples of class {label} equal image {start + row}, so Eq. 6 has no neighbour; "
                "raise nn.samples_per_class or remove duplicate images"
            )
        nearest.append(samples.to(device).gather(1, best.indices.T).T)
    return torch.cat(nearest).to(torch.int32)
