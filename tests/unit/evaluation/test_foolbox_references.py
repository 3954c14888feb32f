"""Attacks of Table 6 on a linear model, where the smallest perturbation has a closed form: none beats it, each comes near."""

import numpy as np
import pytest
import torch
from torch import nn

from pag_core.evaluation.foolbox_suite import smallest_distances, table_6_attacks

CLASSES, SIDE, IMAGES = 3, 6, 12


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(2)
    network = nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, CLASSES)).eval().requires_grad_(False)
    network[1].weight *= 4
    # middle grey belongs to class 0 by some way
    network[1].bias.copy_(-0.5 * network[1].weight.sum(1) + torch.tensor([0.4, 0.0, 0.0]))
    return network


@pytest.fixture(scope="module")
def images():
    return torch.rand(IMAGES, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(4))


def run(model, images, make_params, name):
    """Distances found by the suite's attack, and for each image (x, [(v, margin) for each other class]) in float64."""
    labels = model(images).argmax(1)
    norm, attack = table_6_attacks(make_params({"foolbox.ead_steps": 200}).foolbox)[name]
    found = smallest_distances(model, images, labels, norm=norm, attack=attack, seed=3)
    weight, bias = model[1].weight.double().numpy(), model[1].bias.double().numpy()
    borders = []
    for image, label in zip(images.double().flatten(1).numpy(), labels.tolist(), strict=True):
        z = weight @ image + bias
        borders.append((image, [(weight[c] - weight[label], z[label] - z[c]) for c in range(CLASSES) if c != label]))
    return found, borders


def fewest_pixels(x, v, margin):
    """Each pixel helps most at a bound of its range: take those that help most."""
    gains = np.sort(np.maximum(v * (1 - x), -v * x))[::-1].cumsum()
    return int((gains <= margin).sum()) + 1 if gains[-1] > margin else np.inf


def smallest_l1(x, v, margin):
    """The pixels of the largest slope first, each as far as its range goes."""
    total = 0.0
    for pixel in np.argsort(-np.abs(v)):
        room = 1 - x[pixel] if v[pixel] > 0 else x[pixel]
        if abs(v[pixel]) * room >= margin:
            return total + margin / abs(v[pixel])
        margin, total = margin - abs(v[pixel]) * room, total + room
    return np.inf


def contrast_reduction(x, v, margin):
    """Along the line to middle grey the margin falls linearly: the share of the line at which it is gone, in L2."""
    way = 0.5 - x
    slope = v @ way
    share = margin / slope if slope > 0 else np.inf
    return share * np.linalg.norm(way) if share <= 1 else np.inf


def test_l0_fmn_changes_no_fewer_pixels_than_it_must(model, images, make_params):
    found, borders = run(model, images, make_params, "L0FMNAttack")
    least = [min(fewest_pixels(x, v, margin) for v, margin in others) for x, others in borders]
    assert all(value is not None and value >= closest for value, closest in zip(found, least, strict=True)), (
        found,
        least,
    )
    assert sum(value <= 2 * closest for value, closest in zip(found, least, strict=True)) >= IMAGES * 3 // 4, (
        found,
        least,
    )


def test_ead_finds_the_l1_border(model, images, make_params):
    found, borders = run(model, images, make_params, "EADAttack")
    least = [min(smallest_l1(x, v, margin) for v, margin in others) for x, others in borders]
    assert all(value is not None and value >= closest - 1e-4 for value, closest in zip(found, least, strict=True))
    ratios = [value / closest for value, closest in zip(found, least, strict=True)]
    assert np.median(ratios) < 1.5, ratios


def test_contrast_reduction_finds_where_the_line_to_grey_crosses(model, images, make_params):
    found, borders = run(model, images, make_params, "BinarySearchContrastReductionAttack")
    least = [min(contrast_reduction(x, v, margin) for v, margin in others) for x, others in borders]
    assert any(np.isfinite(least)) and not all(np.isfinite(least)), "both outcomes must occur"
    for value, exact in zip(found, least, strict=True):
        assert (value is None) == (not np.isfinite(exact))
        if value is not None:
            assert exact - 1e-4 <= value <= exact + 1e-3
