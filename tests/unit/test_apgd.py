"""APGD, by which every choice is made, against the closed form of linear models: on both losses, and image by image."""

from fractions import Fraction

import pytest
import torch
from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted

from pag_core.evaluation.apgd import apgd_accuracy, apgd_attacks, standing_accuracy
from pag_core.evaluation.fitness import correct
from tests.linear_models import linear
from tests.samples import labelled_images

CPU = torch.device("cpu")
# the norm that measures how far a linear logit moves within a ball of the key
DUAL = {"L2": 2.0, "Linf": 1.0}


def withstanding(model, images, labels, norm, radius):
    """Which images keep their label wherever within the radius they are moved, by the closed form; and which are near a border.

    No pixel is near 0 or 1.
    """
    logits, weight = model(images).double(), model.weight.double()
    beside = logits.gather(1, labels[:, None]) - logits
    reach = float(Fraction(radius)) * torch.linalg.vector_norm(weight[labels][:, None] - weight, ord=DUAL[norm], dim=2)
    own = torch.arange(len(weight)) == labels[:, None]
    return ((beside > reach) | own).all(1), (((beside - reach).abs() < 0.05 * reach) & ~own).any(1)


@pytest.fixture
def sure():
    """A model of six classes, so sure of its images that the gradient of the cross-entropy is exactly zero, and images."""
    model = linear(classes=6, side=4, scale=2000.0)
    images = 0.3 + 0.4 * torch.rand(150, 1, 4, 4, generator=torch.Generator().manual_seed(4))
    labels = model(images).argmax(1)
    return model, images, labels


@pytest.mark.parametrize(("norm", "radius"), [("L2", "1/8"), ("Linf", "8/255")])
def test_a_targeted_attack_follows_where_cross_entropy_has_no_gradient(sure, norm, radius):
    model, images, labels = sure
    # one at the very border would make the test a matter of rounding
    _, near = withstanding(model, images, labels, norm, radius)
    images, labels = images[~near], labels[~near]
    # one that is wrong: a model without any gradient would be refused
    labels[0] = (labels[0] + 1) % 6
    stands, _ = withstanding(model, images, labels, norm, radius)
    expected = int(stands.sum()) / len(images)
    options = {"norm": norm, "radius": radius, "classes": 6, "steps": 20, "seed": 3}
    first, *further = apgd_attacks(model, **options, device=CPU)
    alone = standing_accuracy(model, images, labels, [first], batch_size=len(images))
    assert len(further) == 1 and 0.1 < expected < alone - 0.2, (expected, alone)
    found = apgd_accuracy(model, images, labels, radii={norm: [radius]}, classes=6, steps=20, seed=3, batch_size=len(images))
    assert found == {f"{norm} {radius}": expected}
