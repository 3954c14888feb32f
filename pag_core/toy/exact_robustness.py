"""Exact robustness of a classifier of points in the plane: whether any attack within a radius can succeed.

A two-layer ReLU network is linear in each of the cells that the lines of its hidden units cut the plane into. So the border
of its classes is a set of segments, one in a cell at most, and no attack within the distance of the nearest one can
succeed.
"""

from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pag_core.evaluation.preconditions import correct

Array = NDArray[np.float64]


def withstand_all(network: nn.Sequential, points: torch.Tensor, labels: torch.Tensor, *, radius: float) -> torch.Tensor:
    """Which points [N, 2, 1, 1] keep their labels int64 [N] wherever within `radius` (L2) they are moved: bool [N]."""
    places = points.flatten(1).double().cpu().numpy()
    margin = 2 * radius
    borders = class_borders(network, places.min(0) - margin, places.max(0) + margin)
    far = torch.from_numpy(distances_to(borders, places) > radius)
    return correct(network, points, labels, batch_size=len(labels)) & far.to(labels.device)


def class_borders(network: nn.Sequential, low: Array, high: Array) -> Array:
    """The segments between the two classes in the box from `low` to `high` [2]: float64 [S, 2 ends, 2].

    `network` is Flatten, Linear(2, H), ReLU, Linear(H, 2).
    """
    first, second = (
        (layer.weight.detach().double().cpu().numpy(), layer.bias.detach().double().cpu().numpy())
        for layer in (cast(nn.Linear, network[1]), cast(nn.Linear, network[3]))
    )
    cells = [np.array([low, [high[0], low[1]], high, [low[0], high[1]]])]
    for weight, bias in zip(*first, strict=True):
        cells = [part for cell in cells for part in _cut(cell, cell @ weight + bias)]
    segments = []
    for cell in cells:
        logits = np.maximum(cell @ first[0].T + first[1], 0) @ second[0].T + second[1]
        ends = _crossings(cell, logits[:, 1] - logits[:, 0])
        if ends:
            segments.append(ends)
    return np.array(segments).reshape(-1, 2, 2)


def distances_to(segments: Array, places: Array) -> Array:
    """The distance (L2) from each of `places` [N, 2] to the nearest of `segments` [S, 2, 2]: [N], infinite without any."""
    start, along = segments[:, 0], segments[:, 1] - segments[:, 0]
    offset = places[:, None] - start
    share = (offset * along).sum(2) / np.maximum((along**2).sum(1), np.finfo(np.float64).tiny)
    nearest = offset - np.clip(share, 0, 1)[..., None] * along
    found: Array = np.linalg.norm(nearest, axis=2).min(axis=1, initial=np.inf)
    return found


def _cut(cell: Array, values: Array) -> list[Array]:
    """The convex polygon `cell` [V, 2] cut where a linear function with these `values` [V] at its corners is zero."""
    if values.min() >= 0 or values.max() <= 0:
        return [cell]
    crossings = iter(_crossings(cell, values))
    sides: tuple[list[Array], list[Array]] = ([], [])
    above = values >= 0
    for corner, is_above, next_above in zip(cell, above, np.roll(above, -1), strict=True):
        sides[int(is_above)].append(corner)
        if is_above != next_above:
            crossing = next(crossings)
            for side in sides:
                side.append(crossing)
    return [np.array(side) for side in sides]


def _crossings(cell: Array, values: Array) -> list[Array]:
    """The points on the edges of `cell`, in their order, where the linear function is zero: two or none."""
    found = []
    for corner, following, value, next_value in zip(
        cell, np.roll(cell, -1, axis=0), values, np.roll(values, -1), strict=True
    ):
        if (value >= 0) != (next_value >= 0):
            found.append(corner + value / (value - next_value) * (following - corner))
    return found
