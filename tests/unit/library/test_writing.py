"""A store of what a user's function gives: its content, killed and resumed, and what is refused."""

import filecmp

import pytest
import torch
from torch.utils.data import Dataset, TensorDataset

from pag_core import open_targets, write_gradients
from pag_core.errors import DatasetError, ParamsError, ShapeMismatch, StoreError
from pag_core.gradient_store.store import GradientStore
from tests.fixtures.samples import Killed, cosines

IMAGES, LABELS = torch.rand(21, 2, 4, 4, generator=torch.Generator().manual_seed(0)), torch.arange(21) % 3


def by_class(images, labels, classes):
    """Each class has another multiple of the image's own noise."""
    draws = torch.randn(images.shape)
    return torch.stack([images * (1 + classes[:, k, None, None, None]) + draws for k in range(classes.shape[1])], 1)


def write(folder, function=by_class, dataset=None, **options):
    return write_gradients(
        folder, dataset or TensorDataset(IMAGES, LABELS), function,
        **{"num_classes": 3, "images_per_shard": 8, "batch_size": 5, **options},
    )  # fmt: skip


@pytest.mark.parametrize(("dtype", "closeness"), [("int8", 0.9995), ("float16", 0.999999), ("float32", 0.9999999)])
@pytest.mark.parametrize("as_bytes", [False, True])
def test_a_store_holds_the_functions_gradients_by_the_index_of_the_dataset(tmp_path, dtype, closeness, as_bytes):
    images = (IMAGES * 255).round().to(torch.uint8) if as_bytes else IMAGES
    seen = images.float() / 255 if as_bytes else images

    def function(batch, labels, classes):
        rows = torch.stack([(seen == image).flatten(1).all(1).nonzero()[0, 0] for image in batch])
        assert torch.equal(labels, LABELS[rows])
        return (batch[:, None] + 0.1) * (1 + classes[..., None, None, None]) - labels[:, None, None, None, None]

    targets = write(tmp_path / "own", function, TensorDataset(images, LABELS), dtype=dtype)
    every = torch.arange(21)
    expected = function(seen, LABELS, torch.arange(3).expand(21, 3))
    assert cosines(targets(every), expected).min() > closeness
    assert torch.equal(open_targets(tmp_path / "own")(every), targets(every))


def same_files(one, other):
    names = sorted(path.relative_to(one) for path in one.rglob("*") if path.is_file())
    assert names == sorted(path.relative_to(other) for path in other.rglob("*") if path.is_file())
    return all(filecmp.cmp(one / name, other / name, shallow=False) for name in names)


def test_a_killed_run_goes_on_to_the_same_bytes_and_leaves_the_random_streams_alone(tmp_path):
    asked = []

    def dying(images, labels, classes):
        asked.append(len(images))
        if len(asked) == 4:  # in the second shard
            raise Killed
        return by_class(images, labels, classes)

    torch.manual_seed(3)
    before = torch.get_rng_state()
    with pytest.raises(Killed):
        write(tmp_path / "own", dying)
    assert not (tmp_path / "own").exists() and asked == [5, 3, 5, 3]
    calls = []

    def counting(images, labels, classes):
        calls.append(len(images))
        return by_class(images, labels, classes)

    write(tmp_path / "own", counting)
    assert calls == [5, 3, 5]
    write(tmp_path / "unbroken")
    assert torch.equal(torch.get_rng_state(), before)
    assert same_files(tmp_path / "own", tmp_path / "unbroken")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["own", "unbroken"]


def test_a_finished_store_is_opened_and_another_functions_is_refused(tmp_path):
    first = write(tmp_path / "own", source="mine")

    def never(*_):
        raise AssertionError

    assert torch.equal(write(tmp_path / "own", never, source="mine")(torch.arange(21)), first(torch.arange(21)))
    with pytest.raises(StoreError, match="made with source mine, and now it is other; remove it"):
        write(tmp_path / "own", source="other")
    with pytest.raises(StoreError, match="made with seed 0, and now it is 1"):
        write(tmp_path / "own", source="mine", seed=1)
    assert [path.name for path in tmp_path.iterdir()] == ["own"]


def test_begun_work_with_other_options_is_refused(tmp_path):
    def dying(*_):
        raise Killed

    with pytest.raises(Killed):
        write(tmp_path / "own", dying)
    with pytest.raises(StoreError, match="made with batch_size 5, and now it is 6"):
        write(tmp_path / "own", batch_size=6)


def test_the_manifest_knows_the_images_and_the_source(tmp_path):
    write(tmp_path / "one", source="mine")
    write(tmp_path / "other", dataset=TensorDataset(IMAGES.flip(0), LABELS.flip(0)))
    one, other = (GradientStore(tmp_path / name).manifest for name in ("one", "other"))
    assert one["dataset"] != other["dataset"] and len(one["dataset"]) == 64
    assert (one["source"], one["provenance"]["params"]["num_classes"]) == ("mine", 3)


class Odd(Dataset):
    """One item is not as the others."""

    def __init__(self, item):
        self.item = item

    def __len__(self):
        return len(IMAGES)

    def __getitem__(self, index):
        return self.item if index == 9 else (IMAGES[index], int(LABELS[index]))


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ((torch.rand(2, 4, 5), 0), "item 9 is an image \\[2, 4, 5\\].*all must be \\[2, 4, 4\\]"),
        ((torch.rand(2, 4, 4), 3), "item 9 .* of label 3.*labels from 0 to 2"),
        (("a picture", 0), "the image of item 9 is str"),
        ((torch.full((2, 4, 4), 200.0), 0), "must be uint8, or float in \\[0, 1\\]"),
    ],
)
def test_an_image_of_another_form_is_named(tmp_path, item, message):
    with pytest.raises(DatasetError, match=message):
        write(tmp_path / "own", dataset=Odd(item))
    assert not (tmp_path / "own").exists()


def test_gradients_of_another_shape_or_without_a_value_are_refused(tmp_path):
    with pytest.raises(ShapeMismatch, match=r"returns \[5, 2, 4, 4\] for 3 classes.*must be \[5, 3, 2, 4, 4\]"):
        write(tmp_path / "own", lambda images, labels, classes: images)
    with pytest.raises(StoreError, match="not finite"):
        write(tmp_path / "other", lambda images, labels, classes: by_class(images, labels, classes) / 0)
    with pytest.raises(ParamsError, match="classes_per_image is 4, the dataset has 3 classes"):
        write(tmp_path / "third", classes_per_image=4)
    with pytest.raises(ParamsError, match="dtype: 'int4' is refused"):
        write(tmp_path / "fourth", dtype="int4")
