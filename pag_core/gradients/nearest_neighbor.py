"""Nearest Neighbor (NN, Section 4.1, Eq. 6): the image's nearest among a limited sample of each class, never itself."""

from collections.abc import Sequence

import torch

from pag_core.compute.randomness import generator
from pag_core.datasets.prepared import Split
from pag_core.errors import DatasetError

ROWS_AT_ONCE = 1024
# of all classes; 200 MB at 32x32 in color
CANDIDATES_AT_ONCE = 8192


# not the spelling of today: the draws, and so all that was measured, follow from it
STREAM = "neighbour sample"


def class_samples(train: Split, classes: int, *, samples_per_class: int, seed: int) -> torch.Tensor:
    """Indices into `train` of the sets D_y of Eq. 6, drawn by `seed`: int64 [classes, samples].

    Every class gives equally many: `samples_per_class`, or all of the smallest class where that is fewer.
    """
    members = [torch.nonzero(train.labels == label).flatten() for label in range(classes)]
    samples = min(samples_per_class, *(len(indices) for indices in members))
    return torch.stack(
        [
            indices[torch.randperm(len(indices), generator=generator("cpu", seed, STREAM, label))[:samples]]
            for label, indices in enumerate(members)
        ]
    )


def require_neighbors(train: Split, class_names: Sequence[str]) -> None:
    """Raise DatasetError for a class of one training image, which has no neighbor in it other than itself (Eq. 6)."""
    counts = torch.bincount(train.labels, minlength=len(class_names)).tolist()
    if lonely := [name for name, count in zip(class_names, counts, strict=True) if count < 2]:
        raise DatasetError(
            f"source nn needs two training images of each class, and there is one of {lonely[0]!r}; give it more images, or "
            "choose another source"
        )


def nearest_neighbor_indices(
    split: Split, train: Split, samples: torch.Tensor, class_names: Sequence[str] | None = None
) -> torch.Tensor:
    """For each image of `split` the index into `train` of its L2-nearest sample of each class, other than an equal one (Eq. 6).

    Images are uint8 or float32 in both; `samples` int64 [classes, S] from `class_samples`; returns
    int32 [N, classes]. Raises DatasetError if all samples of a class, called by its name where there are `class_names`, equal
    an image.
    """
    per_class, device = samples.shape[1], split.device
    at_once = max(1, CANDIDATES_AT_ONCE // per_class)
    nearest = []
    for first in range(0, len(samples), at_once):
        some = samples[first : first + at_once]
        candidates = train.chosen(some.flatten().to(train.device)).to(device)
        found = []
        for start in range(0, len(split), ROWS_AT_ONCE):
            distances = _distances(split.chosen(slice(start, start + ROWS_AT_ONCE)).to(device), candidates)
            distances[distances == 0] = torch.inf
            best = distances.unflatten(1, some.shape).min(2)
            if best.values.isinf().any():
                row, label = torch.nonzero(best.values.isinf())[0].tolist()
                name = first + label if class_names is None else repr(class_names[first + label])
                raise DatasetError(
                    f"all {per_class} samples of the class {name} equal image {start + row}, so Eq. 6 has no neighbor; "
                    "raise nn.samples_per_class or remove duplicate images"
                )
            found.append(some.to(device).gather(1, best.indices.T).T)
        nearest.append(torch.cat(found))
    return torch.cat(nearest, dim=1).to(torch.int32)


def _distances(images: torch.Tensor, candidates: torch.Tensor) -> torch.Tensor:
    """Distances [N, M] in float64, those of images of integers squared; 0 for equal images and for no others."""
    rows, columns = (part.to(torch.float64).flatten(1) for part in (images, candidates))
    if images.is_floating_point():
        # the sums below cancel, which only integers survive
        return torch.cdist(rows, columns, compute_mode="donot_use_mm_for_euclid_dist")
    return rows.square().sum(1, keepdim=True) + columns.square().sum(1) - 2 * (rows @ columns.T)
