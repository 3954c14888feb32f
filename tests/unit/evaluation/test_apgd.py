"""APGD, by which every choice is made, against the closed form of linear models: on both losses, and image by image."""

from fractions import Fraction

import pytest
import torch
from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted

from pag_core.evaluation.apgd import apgd_accuracy, apgd_attacks, robust_accuracy
from pag_core.evaluation.preconditions import correct
from tests.fixtures.linear_models import linear

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
    alone = robust_accuracy(model, images, labels, [first], batch_size=len(images))
    assert len(further) == 1 and 0.1 < expected < alone - 0.2, (expected, alone)
    found = apgd_accuracy(
        model, images, labels, radii={norm: [radius]}, classes=6, steps=20, seed=3, batch_size=len(images)
    )
    assert found == {f"{norm} {radius}": expected}


class Recorded:
    """An attack that is asked with images, and gives what `adversarial` makes of them."""

    def __init__(self, adversarial):
        self.adversarial, self.asked = adversarial, []

    def perturb(self, images, labels):
        self.asked.append(images)
        return self.adversarial(images)


def test_each_attack_meets_what_still_stands(sure):
    """In batches; what is wrong from the first stays so, also where an attack would make it right."""
    model, images, labels = sure
    images, labels = images[:12], labels[:12].clone()
    other = images[int((labels != labels[0]).nonzero()[0])]
    labels[[2, 7]] = (labels[[2, 7]] + 1) % 6
    # the first fools three of the five images of each batch at most, the second none
    first = Recorded(lambda batch: torch.cat([other.expand(min(3, len(batch)), -1, -1, -1), batch[3:]]))
    second = Recorded(lambda batch: batch)
    found = robust_accuracy(model, images, labels, [first, second], batch_size=5)
    right = [number for number in range(12) if number not in (2, 7)]
    assert [len(batch) for batch in first.asked] == [5, 5]
    assert torch.equal(torch.cat(first.asked), images[right])
    fooled = [*right[:3], *right[5:8]]
    stands = [number for number in right if number not in fooled or labels[number] == model(other[None]).argmax()]
    assert torch.equal(torch.cat(second.asked), images[stands]) and max(map(len, second.asked)) <= 5
    assert found == len(stands) / 12


def test_settings_have_draws_of_their_own(sure):
    def seeds(norm="L2", radius="0.5", seed=3):
        attacks = apgd_attacks(sure[0], norm=norm, radius=radius, classes=6, steps=2, seed=seed, device=CPU)
        assert [type(attack) for attack in attacks] == [APGDAttack, APGDAttack_targeted]
        (found,) = {attack.seed for attack in attacks}
        return found

    assert len({seeds(), seeds(norm="Linf"), seeds(radius="0.75"), seeds(seed=4)}) == 4 and seeds() == seeds()


def test_fewer_than_four_classes_have_no_targeted_attack():
    """The targeted loss needs the third and fourth largest logits."""
    for classes, expected in ((2, 1), (3, 1), (4, 2)):
        options = {"norm": "L2", "radius": "0.5", "steps": 2, "seed": 3, "device": CPU}
        assert len(apgd_attacks(linear(classes=classes), classes=classes, **options)) == expected


def test_what_counts_as_right_is_asked_of_the_model(sure):
    model, images, labels = sure
    assert robust_accuracy(model, images, labels, [], batch_size=7) == 1
    assert robust_accuracy(model, images, (labels + 1) % 6, [Recorded(lambda batch: batch)], batch_size=7) == 0
    assert correct(model, images, labels, batch_size=7).all()
