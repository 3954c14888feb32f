"""Target gradients by index and class: the stages' own numbers, draws that the loss takes, and what is refused."""

import pytest
import torch
from torch.utils.data import TensorDataset

from pag_core import (
    Indexed,
    class_mean_targets,
    nearest_neighbor_targets,
    one_image_targets,
    open_targets,
    prepared_split,
    write_gradients,
)
from pag_core.datasets.prepared import read_dataset
from pag_core.errors import DatasetError, PagError, StoreError
from pag_core.gradient_store.store import GradientStore, write_small_store
from pag_core.gradients.sources import SOURCES
from tests.fixtures.samples import gaussian, make_labelled, write_dense, write_prepared

CPU = torch.device("cpu")


@pytest.fixture
def stored_dataset(tmp_path):
    """A prepared dataset on disk."""
    splits = {
        name: make_labelled(3, count, (1, 8, 8), seed)
        for seed, (name, count) in enumerate({"train": 12, "validation": 3, "test": 4}.items())
    }
    path = tmp_path / "made.zarr"
    write_prepared(path, ("a", "b", "c"), splits, {})
    return path


def chosen(count, classes=3, seed=0):
    draws = torch.Generator().manual_seed(seed)
    return torch.randint(count, (5,), generator=draws), torch.randint(classes, (5, 2), generator=draws)


@pytest.mark.parametrize("as_floats", [False, True])
@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize(
    ("source", "targets_of", "options"),
    [
        ("oi", one_image_targets, {"seed": 5}),
        ("cm", class_mean_targets, {"factor": 0.7}),
        ("nn", nearest_neighbor_targets, {"seed": 5, "samples_per_class": 6}),
    ],
)
def test_heuristic_sources_of_plain_tensors_are_those_of_the_stage(
    make_params, dataset, source, targets_of, options, split, as_floats
):
    params = make_params({"seed": 5, "cm.factor": 0.7, "nn.samples_per_class": 6})
    train, asked = dataset.splits["train"], dataset.splits[split]
    stage = SOURCES[source].store(dataset, params, {split: asked}).gradients(dataset, split, CPU)
    images, of = (part.pixels() if as_floats else part.images for part in (train, asked))
    found = targets_of(images, train.labels, of=None if split == "train" else of, **options)
    indices, classes = chosen(len(asked))
    assert torch.equal(found(indices, classes), stage(indices, classes))
    assert len(found) == len(asked) and found.num_classes == 3
    assert torch.equal(found(indices), stage(indices, torch.arange(3).expand(5, 3)))


@pytest.mark.parametrize("memory_map", [False, True])
def test_a_store_of_the_pipeline_is_asked_by_the_rows_of_its_split(tmp_path, stored_dataset, memory_map):
    prepared = read_dataset(stored_dataset)
    gradients = {"train": gaussian(36), "test": gaussian(12, seed=1)}
    write_dense(tmp_path / "sbg.zarr", tmp_path / "work", prepared, gradients, dtype="float32")
    for split, expected in gradients.items():
        place = tmp_path / "copies" if memory_map else None
        targets = open_targets(tmp_path / "sbg.zarr", split=split, dataset=stored_dataset, memory_map=place)
        indices, classes = chosen(len(expected))
        assert torch.allclose(targets(indices, classes), expected[indices[:, None], classes], rtol=1e-5, atol=0)
        images, labels = prepared_split(stored_dataset, split).tensors
        assert torch.equal(images, prepared.splits[split].pixels()) and len(targets) == len(labels)


def test_a_raw_copy_of_another_store_is_not_taken(tmp_path, stored_dataset):
    prepared, every = read_dataset(stored_dataset), torch.arange(36)
    for seed in (0, 1):
        write_dense(tmp_path / f"{seed}/s.zarr", tmp_path / "work", prepared, {"train": gaussian(36, seed=seed)})
        mapped = open_targets(tmp_path / f"{seed}/s.zarr", memory_map=tmp_path / "copies")
        assert torch.equal(mapped(every), open_targets(tmp_path / f"{seed}/s.zarr")(every))


@pytest.mark.parametrize("source", ["cm", "nn"])
def test_a_heuristic_store_of_the_pipeline_needs_the_images(tmp_path, make_params, stored_dataset, source):
    prepared = read_dataset(stored_dataset)
    images = {split: prepared.splits[split] for split in ("train", "test")}
    write_small_store(
        tmp_path / "s.zarr", prepared, source, SOURCES[source].store(prepared, make_params(), images), {"inputs": {}}
    )
    with pytest.raises(StoreError, match="pass dataset="):
        open_targets(tmp_path / "s.zarr")
    targets = open_targets(tmp_path / "s.zarr", split="test", dataset=stored_dataset)
    indices, classes = chosen(12)
    expected = GradientStore(tmp_path / "s.zarr").gradients(prepared, "test", CPU)
    assert torch.equal(targets(indices, classes), expected(indices, classes)) and len(targets) == 12


def test_a_store_of_other_images_is_refused(tmp_path, stored_dataset, make_dataset):
    write_dense(tmp_path / "s.zarr", tmp_path / "work", make_dataset(), {"train": gaussian(36)})
    with pytest.raises(StoreError, match="was made"):
        open_targets(tmp_path / "s.zarr", dataset=stored_dataset)
    with pytest.raises(StoreError, match="no gradients of the split 'test'; it has train"):
        open_targets(tmp_path / "s.zarr", split="test")
    with pytest.raises(DatasetError, match="has no split 'val'"):
        prepared_split(stored_dataset, "val")


def sparse_targets(tmp_path):
    """A store of three of five classes, and the gradients of all that it was made from."""
    images, labels = torch.rand(20, 1, 4, 4), torch.arange(20) % 5
    whole = gaussian(20, classes=5, shape=(1, 4, 4))
    numbers = {image.numpy().tobytes(): number for number, image in enumerate(images)}

    def function(batch, _, classes):
        rows = torch.tensor([numbers[image.numpy().tobytes()] for image in batch])
        return whole[rows[:, None], classes]

    targets = write_gradients(
        tmp_path / "own", TensorDataset(images, labels), function, num_classes=5, classes_per_image=3, dtype="float32",
        images_per_shard=8, batch_size=3,
    )  # fmt: skip
    return targets, whole, labels


def test_a_sparse_store_gives_the_classes_that_it_keeps(tmp_path):
    targets, whole, labels = sparse_targets(tmp_path)
    indices = torch.tensor([7, 0, 19])
    kept = targets.kept_classes[indices]
    assert torch.equal(kept[:, 0], labels[indices])
    expected = whole[indices[:, None], kept]
    assert torch.allclose(targets(indices), expected, rtol=1e-5, atol=0)
    assert torch.allclose(targets(indices, kept.flip(1)), expected.flip(1), rtol=1e-5, atol=0)
    missing = next(label for label in range(5) if label not in kept[1])
    with pytest.raises(StoreError, match=f"keeps 3 classes of an image, of image 0 not class {missing}"):
        targets(indices[1:2], torch.tensor([[missing]]))


def test_draws_are_uniform_over_what_there_is_and_weighted_to_the_sum_of_all(tmp_path):
    targets, whole, labels = sparse_targets(tmp_path)
    indices = torch.arange(20)
    draws = torch.Generator().manual_seed(0)
    found = targets.draw(indices, 2, draws)
    assert torch.allclose(found.targets, whole[indices[:, None], found.classes], rtol=1e-5, atol=0)
    own = found.classes == labels[:, None]
    assert torch.allclose(found.class_weights[own], torch.tensor(3 / 5))
    assert torch.allclose(found.class_weights[~own], torch.tensor(3 / 5 * 4 / 2))
    again = targets.draw(indices, 2, torch.Generator().manual_seed(0))
    assert torch.equal(again.classes, found.classes)
    dense = class_mean_targets(torch.rand(6, 1, 4, 4), torch.arange(6) % 3)
    every = dense.draw(torch.arange(6))
    assert every.class_weights is None and torch.equal(every.classes.sort(1).values, torch.arange(3).expand(6, 3))
    counts = torch.cat([dense.draw(torch.arange(6), 1).classes.flatten() for _ in range(300)]).bincount(minlength=3)
    assert (counts > 500).all()


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda targets: targets(torch.tensor([6])), "has images 0 to 5, asked for are 6 to 6"),
        (lambda targets: targets(torch.tensor([0]), torch.tensor([[3]])), "classes from 3 to 3.*0 to 2"),
        (lambda targets: targets.draw(torch.tensor([0]), 4), "4 classes cannot be drawn.*1 to 3"),
        (lambda targets: targets.draw(torch.tensor([-1])), "-1 to -1"),
        (
            lambda targets: targets(torch.tensor([1, 2]), torch.tensor([0, 1])),
            r"classes must be int64 \[2, K\], not \[2\]",
        ),
    ],
)
def test_what_there_is_not_is_refused(ask, message):
    with pytest.raises(PagError, match=message):
        ask(class_mean_targets(torch.rand(6, 1, 4, 4), torch.arange(6) % 3))


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (torch.rand(4, 1, 4, 4) * 255, torch.arange(4), "must be uint8, or float in \\[0, 1\\]"),
        (torch.rand(4, 4, 4), torch.arange(4), "\\[N, C, H, W\\]"),
        (torch.rand(4, 1, 4, 4), torch.arange(4.0), "labels int64"),
        (torch.rand(4, 1, 4, 4), torch.tensor([0, 2, 2, 0]), "no image has the label 1"),
    ],
)
def test_tensors_of_another_kind_are_refused(images, labels, message):
    with pytest.raises(DatasetError, match=message):
        one_image_targets(images, labels)


def test_an_indexed_dataset_says_which_image_it_gives():
    images, labels = torch.rand(5, 1, 2, 2), torch.arange(5)
    indexed = Indexed(TensorDataset(images, labels))
    image, label, index = indexed[3]
    assert torch.equal(image, images[3]) and (int(label), index, len(indexed)) == (3, 3, 5)
