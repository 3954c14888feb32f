"""Controls: target gradients of the wrong image or class, by a loop over what the store holds, from every kind of store."""

import pytest
import torch

from pag_core.figures.labels import CONTROLS, model_label
from pag_core.figures.model_marks import Kind
from pag_core.gradient_store.targets import DenseGradients, RepresentativeGradients
from pag_core.gradients.controls import exchanged, other_images
from pag_core.training.batches import drawn_classes

CLASSES = 3


def stores_of(dataset):
    """A dense store, a sparse one of two classes each, and representatives; all of the 36 training images."""
    train, draws = dataset.splits["train"], torch.Generator().manual_seed(0)
    channels = dataset.image_shape[0]
    codes = torch.randint(-127, 128, (36, CLASSES, channels, 8, 8), generator=draws, dtype=torch.int8)
    scales = torch.rand(36, CLASSES, generator=draws) + 0.5
    kept = torch.stack([train.labels, (train.labels + 1 + torch.arange(36) % 2) % CLASSES], 1)
    return {
        "dense": DenseGradients(codes, scales),
        "sparse": DenseGradients(codes[:, :2].contiguous(), scales[:, :2].contiguous(), kept),
        "representatives": RepresentativeGradients(torch.rand(CLASSES, channels, 8, 8, generator=draws), train),
    }


@pytest.fixture
def stores(dataset):
    return stores_of(dataset)


@pytest.mark.parametrize("kind", ["dense", "sparse", "representatives"])
def test_targets_of_another_class(stores, dataset, kind):
    store = stores[kind]
    control = exchanged(store, "other_class", dataset.splits["train"], classes=CLASSES, seed=5)
    indices, count = torch.tensor([4, 35, 0]), store.slots(CLASSES)
    slots = drawn_classes(3, count, count, torch.Generator().manual_seed(1))
    found = control(indices, slots)
    for image, asked, row in zip(indices, slots, found, strict=True):
        for slot, gradient in zip(asked, row, strict=True):
            other = (slot + 1) % count
            assert torch.equal(gradient, store(image[None], other[None, None])[0, 0])
    # the classes are still those that were asked for, so each is aligned with what another one has
    assert torch.equal(control.classes_of(indices, slots), store.classes_of(indices, slots))
    assert control.slots(CLASSES) == count


@pytest.mark.parametrize("kind", ["dense", "sparse", "representatives"])
def test_targets_of_another_image(stores, dataset, kind):
    store, train = stores[kind], dataset.splits["train"]
    control = exchanged(store, "other_image", train, classes=CLASSES, seed=5)
    others = other_images(train.labels, seed=5)
    indices, count = torch.arange(36), store.slots(CLASSES)
    slots = torch.arange(count).expand(36, count)
    assert torch.equal(control(indices, slots), store(others, slots))
    # the gradients are of the classes that they are said to be of, the own one first
    assert torch.equal(control.classes_of(indices, slots), store.classes_of(others, slots))
    if kind == "sparse":
        assert torch.equal(control.classes_of(indices, slots)[:, 0], train.labels)
        first, second = control.weights_of(slots, CLASSES), store.weights_of(slots, CLASSES)
        assert torch.equal(first, second)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", ["dense", "sparse", "representatives"])
def test_targets_in_shuffled_pixels(make_dataset, kind, channels):
    """All in one order of the 64 pixels, whose channels stay together; numbered pixels show it."""
    dataset = make_dataset(shape=(channels, 8, 8))
    store, train, options = stores_of(dataset)[kind], dataset.splits["train"], {"classes": CLASSES, "seed": 5}
    pixels = torch.arange(64.0).view(8, 8).expand(1, 1, channels, 8, 8).contiguous()
    numbered = exchanged(DenseGradients(pixels, torch.ones(1, 1)), "shuffled_pixels", train, **options)
    order = numbered(torch.tensor([0]), torch.tensor([[0]]))[0, 0, 0].flatten().long()
    assert sorted(order.tolist()) == list(range(64)) != order.tolist()
    control = exchanged(store, "shuffled_pixels", train, **options)
    indices, count = torch.arange(36), store.slots(CLASSES)
    slots = torch.arange(count).expand(36, count)
    found, plain = control(indices, slots).flatten(3), store(indices, slots).flatten(3)
    assert torch.equal(found, plain[..., order])
    assert torch.equal(control.classes_of(indices, slots), store.classes_of(indices, slots))
    assert torch.allclose(control.rows(indices, slots).norms(), store.rows(indices, slots).norms())


def test_other_images_are_of_the_same_class_and_each_comes_once(dataset):
    labels = torch.cat([dataset.splits["train"].labels, torch.tensor([7])])
    others = other_images(labels, seed=5)
    assert torch.equal(labels[others], labels) and torch.equal(others.sort().values, torch.arange(37))
    assert (others == torch.arange(37)).tolist() == [False] * 36 + [True]
    assert torch.equal(others, other_images(labels, seed=5)) and not torch.equal(others, other_images(labels, seed=6))


def test_a_control_is_called_one():
    assert model_label("sbg", 2.0, control="other_class") == "model (SBG of another class, λ 2)"
    kinds = [Kind("sbg", "standard", "", "vit", control) for control in (None, *CONTROLS)]
    assert [kind.label for kind in kinds] == [
        "SBG", "SBG of another image", "SBG of another class", "SBG in shuffled pixels"
    ]  # fmt: skip
    assert len({kind.marker for kind in kinds}) == 4
