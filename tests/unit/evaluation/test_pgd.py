"""PGD against the closed form of a linear model, and its targeted form."""

import math
from fractions import Fraction

import pytest
import torch

from pag_core.evaluation.apgd import apgd_accuracy
from pag_core.evaluation.pgd import pgd_accuracy, pgd_images, targeted_images
from tests.fixtures.linear_models import Linear, linear
from tests.fixtures.samples import Changed, labelled_images


def binary(seed=3):
    weight = torch.randn(16, generator=torch.Generator().manual_seed(seed))
    return Linear(torch.stack([weight, -weight]), torch.stack([-weight.sum() / 2, weight.sum() / 2])).eval(), 2 * weight


@pytest.mark.parametrize("radius", ["0.01", "8/255", "0.1", "0.3"])
def test_linf_pgd_on_a_linear_model_against_the_closed_form(radius):
    """Away from the bounds of pixels, an image withstands exactly when its margin exceeds eps * |w|_1."""
    model, weight = binary()
    # pixels stay off the bounds by the largest radius
    images = 0.3 + 0.4 * torch.rand(200, 1, 4, 4, generator=torch.Generator().manual_seed(2))
    logits = model(images)
    labels = logits.argmax(1)
    margin = (logits[:, 0] - logits[:, 1]).abs()
    eps = float(Fraction(radius))
    reach = eps * weight.abs().sum()
    assert ((margin - reach).abs() > 1e-4).all(), "an image at the very border would make the test a matter of rounding"
    robust = (margin > reach).double().mean().item()
    found = pgd_accuracy(model, images, labels, radii={"Linf": [radius]}, steps=20, seed=1, batch_size=70)
    assert found == {f"Linf {radius}": pytest.approx(robust, abs=1e-9)}
    if radius in ("0.01", "8/255"):
        assert 0 < robust < 1


@pytest.mark.parametrize("norm", ["L2", "Linf"])
def test_pgd_stays_inside_and_depends_on_the_seed_alone(norm):
    model = linear()
    images, labels = labelled_images(model, 12)

    def attack(seed):
        torch.manual_seed(seed + 100)
        return pgd_images(model, images, labels, norm=norm, radius="1/4", steps=3, seed=seed, batch_size=5)

    first = attack(1)
    assert torch.equal(first, attack(1)) and not torch.equal(first, attack(2))
    adversarial = first - images
    assert not torch.allclose(adversarial[:5], adversarial[5:10], atol=1e-3), "each batch has draws of its own"
    size = (first - images).flatten(1).norm(dim=1) if norm == "L2" else (first - images).flatten(1).abs().amax(1)
    assert (size <= 0.25 + 1e-6).all() and (size > 0.05).all()
    assert first.min() >= 0 and first.max() <= 1


@pytest.mark.parametrize("norm", ["L2", "Linf"])
def test_targeted_images_reach_their_class_within_the_radius(norm):
    model = linear(classes=4, side=4, scale=2.0)
    images, _ = labelled_images(model, 5)
    radius = {"L2": 2.0, "Linf": 0.6}[norm]
    adversarial = targeted_images(model, images, 4, norm=norm, radius=radius, steps=30, batch_size=100)
    assert adversarial.shape == (5, 4, 1, 4, 4)
    order = 2 if norm == "L2" else math.inf
    before = model(images).log_softmax(1)
    for label in range(4):
        towards = adversarial[:, label]
        size = torch.linalg.vector_norm((towards - images).flatten(1), ord=order, dim=1)
        assert (size <= radius + 1e-5).all()
        assert towards.min() >= 0 and towards.max() <= 1
        assert (model(towards).argmax(1) == label).all()
        assert (model(towards).log_softmax(1)[:, label] >= before[:, label]).all()
    # no random start: the same images again
    assert torch.equal(
        adversarial, targeted_images(model, images, 4, norm=norm, radius=radius, steps=30, batch_size=100)
    )


@pytest.mark.parametrize("batch_size", [1, 3, 7])
def test_no_more_images_are_attacked_at_once_than_were_asked_for(batch_size):
    """What draws nothing gives the same images whatever their number."""
    sizes, plain = [], linear(classes=4)
    model = Changed(plain, lambda logits, batch: sizes.append(len(batch)) or logits).eval()
    images, labels = labelled_images(plain, 8)
    options = {"norm": "L2", "radius": 1.0, "steps": 4}
    whole = targeted_images(plain, images, 4, **options, batch_size=32)
    torch.testing.assert_close(targeted_images(model, images, 4, **options, batch_size=batch_size), whole)
    assert max(sizes) == batch_size
    sizes.clear()
    radii = {"L2": ["0.1"]}
    pgd_accuracy(model, images, labels, radii=radii, steps=2, seed=1, batch_size=batch_size)
    assert max(sizes) == batch_size
    sizes.clear()
    apgd_accuracy(model, images, labels, radii=radii, classes=4, steps=2, seed=1, batch_size=batch_size)
    assert max(sizes) == batch_size
