"""The judge: its decisions by the formula of its kernel in float64, and what it counts, image by image."""

import numpy as np
import pytest
import torch
from torch import nn

from pag_core.datasets.prepared import Split
from pag_core.errors import ParamsError
from pag_core.evaluation.judge import Judge, judged, judged_clean, trained_judge
from pag_core.evaluation.pgd import targeted_images

NAMES = ("ant", "bee", "cat")


class Nearest:
    """A judge that we can compute: the class whose mean pixel, class / 10, is nearest."""

    def predict(self, pixels):
        assert pixels.dtype == np.float32 and pixels.ndim == 2
        return np.rint(10 * pixels.mean(1)).astype(np.int64)


class Brightness(nn.Module):
    """Its gradient towards class c moves the mean pixel towards c / 10."""

    def __init__(self, classes):
        super().__init__()
        self.most = 0
        self.register_buffer("levels", torch.arange(classes) / 10)

    def forward(self, images):
        self.most = max(self.most, len(images))
        return -1000 * (images.flatten(1).mean(1)[:, None] - self.levels) ** 2


def levels(values):
    return torch.tensor(values)[:, None, None, None].expand(-1, 1, 2, 2).contiguous()


@pytest.mark.parametrize("at_once", [1, 500])
def test_what_is_counted(at_once):
    """Within L2 radius 0.2 the mean of four pixels moves by 0.1: to a neighboring class and no further."""
    images, labels = levels([0.0, 0.1, 0.2, 0.3]), torch.tensor([0, 1, 2, 3])
    judge = Judge(Nearest(), 1, 1, 1.0)
    found = judged(
        judge, Brightness(4).eval(), images, labels, classes=4, norm="L2", radius=0.2, steps=40, batch_size=at_once
    )
    # 0 to 1; 1 to 0 and 2; 2 to 1 and 3; 3 to 2; of 4 x 3
    assert found == 6 / 12
    # an image of another label than it looks like: its own class is no target, whatever the judge sees
    wrong = judged(
        judge,
        Brightness(4).eval(),
        images,
        torch.tensor([1, 0, 3, 2]),
        classes=4,
        norm="L2",
        radius=0.2,
        steps=40,
        batch_size=at_once,
    )
    # 0 to 0; 1 to 1 and 2; 2 to 1 and 2; none of 3, which its own class pushes on to 4
    assert wrong == 5 / 12


def test_mistakes_on_images_that_nobody_pushed():
    """Two of four images are taken for another class, of three others each."""
    images = levels([0.0, 0.1, 0.2, 0.3])
    assert judged_clean(Judge(Nearest(), 1, 1, 1.0), images, torch.tensor([0, 1, 3, 2]), classes=4) == 2 / 12
    # a classifier without gradients leaves the images where they are
    flat = judged(
        Judge(Nearest(), 1, 1, 1.0),
        Flat().eval(),
        images,
        torch.tensor([0, 1, 3, 2]),
        classes=4,
        norm="L2",
        radius=0.2,
        steps=3,
        batch_size=100,
    )
    assert flat == 2 / 12


class Flat(nn.Module):
    def forward(self, images):
        return 0 * images.flatten(1)


def test_the_count_is_that_of_a_loop(dataset, make_classifier):
    classifier = make_classifier().eval().requires_grad_(False)
    judge = trained_judge(dataset.splits["train"], dataset.splits["test"], class_names=NAMES, images=1000)
    images, labels = dataset.splits["test"].pixels(slice(0, 5)), dataset.splits["test"].labels[:5]
    found = judged(judge, classifier, images, labels, classes=3, norm="L2", radius=2.0, steps=10, batch_size=7)
    hits = []
    for image, own in zip(images, labels, strict=True):
        adversarial = targeted_images(classifier, image[None], 3, norm="L2", radius=2.0, steps=10, batch_size=7)[0]
        hits += [
            judge.machine.predict(adversarial[target].reshape(1, -1).numpy())[0] == target
            for target in range(3)
            if target != own
        ]
    assert len(hits) == 10 and found == np.mean(hits)


def test_the_judge_decides_as_its_kernel_says(dataset):
    """Two classes: the sign of sum_i a_i exp(-gamma |x - x_i|^2) + b, with gamma of 1 / (pixels x variance)."""
    train, test = (
        Split(part.images[part.labels < 2], part.labels[part.labels < 2])
        for part in (dataset.splits["train"], dataset.splits["test"])
    )
    judge = trained_judge(train, test, class_names=NAMES[:2], images=1000)
    learnt, shown = (split.pixels().flatten(1).double().numpy() for split in (train, test))
    gamma = 1 / (learnt.shape[1] * learnt.var())
    machine = judge.machine
    decided = [
        sum(
            weight * np.exp(-gamma * np.sum((image - learnt[index]) ** 2))
            for weight, index in zip(machine.dual_coef_[0], machine.support_, strict=True)
        )
        + machine.intercept_[0]
        for image in shown
    ]
    np.testing.assert_array_equal(judge.sees(test.pixels()).numpy(), np.array(decided) > 0)
    assert judge.accuracy == np.mean((np.array(decided) > 0) == test.labels.numpy())
    assert (judge.trained_on, judge.tested) == (24, 10)


def test_the_number_of_images_is_limited(dataset):
    train, test = dataset.splits["train"], dataset.splits["test"]
    judge = trained_judge(train, test, class_names=NAMES, images=14)
    assert (judge.trained_on, judge.tested) == (14, 14)
    assert judge.machine.support_.max() < 14
    seen = judge.sees(test.pixels())
    assert judge.accuracy == (seen[:14] == test.labels[:14]).double().mean().item()


def test_a_judge_that_does_not_know_a_class_is_refused(dataset):
    train, test = dataset.splits["train"], dataset.splits["test"]
    known = next(count for count in range(1, 36) if len(train.labels[:count].unique()) == 3)
    assert trained_judge(train, test, class_names=NAMES, images=known).trained_on == known
    for count in (1, known - 1):
        with pytest.raises(
            ParamsError,
            match=rf"judge_images is {count}, and none of that many .* is of the class '(ant|bee|cat)'; set",
        ):
            trained_judge(train, test, class_names=NAMES, images=count)


@pytest.mark.parametrize("batch_size", [1, 3, 10])
def test_no_more_images_are_pushed_at_once_than_were_asked_for(batch_size):
    """Also where an image has more classes than that."""
    images, classifier = levels([0.0, 0.1, 0.2, 0.3]), Brightness(4).eval()
    options = {"classes": 4, "norm": "L2", "radius": 0.2, "steps": 3, "batch_size": batch_size}
    judged(Judge(Nearest(), 1, 1, 1.0), classifier, images, torch.tensor([0, 1, 2, 3]), **options)
    assert classifier.most == min(batch_size, 8), "two images of four classes fit into ten"
