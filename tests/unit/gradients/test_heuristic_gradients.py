"""OI, CM and NN against numpy and brute force (Section 4.2)."""

import numpy as np
import pytest
import torch

from pag_core.datasets.prepared import Split
from pag_core.errors import DatasetError
from pag_core.gradients.class_mean import class_mean_representatives
from pag_core.gradients.nearest_neighbor import class_samples, nearest_neighbor_indices
from pag_core.gradients.one_image import one_image_representatives


def make_split(images, labels):
    return Split(torch.as_tensor(np.asarray(images, np.uint8)), torch.as_tensor(np.asarray(labels, np.int64)))


def test_one_image_is_a_member_of_its_class_and_depends_on_the_seed(dataset):
    train = dataset.splits["train"]
    chosen, places = {}, {}
    for seed in range(8):
        found = one_image_representatives(train, 3, seed=seed)
        assert found.dtype == torch.float32 and found.shape == (3, 1, 8, 8)
        rows = []
        for label in range(3):
            equal = [
                row
                for row in range(len(train))
                if np.array_equal(np.rint(found[label].numpy() * 255), train.images[row].numpy())
            ]
            assert len(equal) == 1 and train.labels[equal[0]] == label
            assert torch.allclose(found[label].double(), train.images[equal[0]].double() / 255, atol=1e-7)
            rows.append(equal[0])
            place = torch.nonzero(train.labels == label).flatten().tolist().index(equal[0])
            places.setdefault(seed, set()).add(place)
        chosen[seed] = tuple(rows)
        assert torch.equal(found, one_image_representatives(train, 3, seed=seed))
    assert len(set(chosen.values())) > 4
    # each class draws for itself: not the third image of every class
    assert max(map(len, places.values())) > 1


@pytest.mark.parametrize("factor", [1.0, 2.5])
def test_class_means_equal_numpys(dataset, factor):
    train = dataset.splits["train"]
    images, labels = train.images.numpy().astype(np.float64) / 255, train.labels.numpy()
    found = class_mean_representatives(train, 3, factor=factor)
    assert found.dtype == torch.float32
    for label in range(3):
        assert np.allclose(found[label].numpy(), factor * images[labels == label].mean(0), rtol=1e-6, atol=0)


def test_samples_are_members_without_repetition(make_dataset):
    train = make_dataset(train=9).splits["train"]
    samples = class_samples(train, 3, samples_per_class=5, seed=1)
    assert samples.shape == (3, 5)
    for label, row in enumerate(samples):
        assert len(set(row.tolist())) == 5
        assert (train.labels[row] == label).all()
    assert not torch.equal(samples, class_samples(train, 3, samples_per_class=5, seed=2))
    assert torch.equal(samples, class_samples(train, 3, samples_per_class=5, seed=1))
    # the smallest class limits all
    smaller = Split(train.images[4:], train.labels[4:])
    least = min(int((smaller.labels == label).sum()) for label in range(3))
    assert least < 9
    assert class_samples(smaller, 3, samples_per_class=100, seed=1).shape == (3, least)


def brute_force_neighbors(images, train, samples):
    nearest = np.zeros((len(images), len(samples)), dtype=np.int64)
    for row, image in enumerate(images.numpy().astype(np.int64)):
        for label, candidates in enumerate(samples.tolist()):
            best = None
            for candidate in candidates:
                distance = int(((train.images[candidate].numpy().astype(np.int64) - image) ** 2).sum())
                if distance > 0 and (best is None or distance < best[0]):
                    best = (distance, candidate)
            nearest[row, label] = best[1]
    return nearest


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("per_class", [2, 6, 12])
def test_nearest_neighbors_against_brute_force(dataset, split, per_class, monkeypatch):
    monkeypatch.setattr("pag_core.gradients.nearest_neighbor.ROWS_AT_ONCE", 5)
    monkeypatch.setattr("pag_core.gradients.nearest_neighbor.CANDIDATES_AT_ONCE", 2 * per_class)
    train, images = dataset.splits["train"], dataset.splits[split].images
    samples = class_samples(train, 3, samples_per_class=per_class, seed=0)
    found = nearest_neighbor_indices(dataset.splits[split], train, samples)
    assert found.dtype == torch.int32
    assert np.array_equal(found.numpy(), brute_force_neighbors(images, train, samples))
    if split == "train":
        assert (found.numpy() != np.arange(len(images))[:, None]).all()


def test_never_itself_nor_an_equal_image():
    a, b, c, d = (np.full((1, 2, 2), value) for value in (10, 10, 12, 200))
    train = make_split([a, b, c, d], [0, 0, 0, 1])
    found = nearest_neighbor_indices(train, train, torch.tensor([[0, 1, 2], [3, 3, 2]]))
    # image 1 equals image 0, so both take image 2, which takes the first of the two
    assert found[:3, 0].tolist() == [2, 2, 0]
    assert found[3].tolist() == [2, 2]


def test_distances_are_exact_where_float32_would_not_be():
    """The nearer of two images at squared distances of 65025 * 3072 and one less, far beyond float32's integers."""
    image = np.zeros((3, 32, 32))
    far, near = np.full((3, 32, 32), 255), np.full((3, 32, 32), 255)
    near[0, 0, 0] = 254
    train = make_split([far, near], [0, 0])
    assert nearest_neighbor_indices(make_split([image], [0]), train, torch.tensor([[0, 1]])).tolist() == [[1]]


def test_all_samples_equal_to_an_image_are_refused(monkeypatch):
    monkeypatch.setattr("pag_core.gradients.nearest_neighbor.CANDIDATES_AT_ONCE", 1)
    train = make_split([np.full((1, 2, 2), 5)] * 3 + [np.full((1, 2, 2), 9)], [0, 0, 0, 1])
    with pytest.raises(DatasetError, match=r"all 2 samples of the class 'ant' equal image 1.*nn.samples_per_class"):
        nearest_neighbor_indices(
            Split(train.images[[3, 0]], train.labels[:2]), train, torch.tensor([[0, 1], [3, 0]]), ("ant", "bee")
        )
