"""Feeding images: every way gives the pixels that were prepared, in orders that visit each once, also after a kill."""

import collections

import numpy as np
import pytest
import torch

from pag_core.datasets.image_feed import HostSplit, open_images
from pag_core.datasets.labelled_images import LabelledImages
from pag_core.datasets.prepared import Split, StoredSplit, read_dataset
from pag_core.diffusion.network import architecture, build_network
from pag_core.diffusion.training import train_diffusion
from pag_core.errors import DatasetError, ParamsError
from pag_core.gradient_store.feed import open_feed, require_feedable
from pag_core.gradient_store.store import GradientStore
from pag_core.gradients.class_mean import class_mean_representatives
from pag_core.gradients.nearest_neighbor import class_samples, nearest_neighbor_indices
from pag_core.gradients.one_image import one_image_representatives
from pag_core.gradients.sources import SOURCES
from pag_core.pipeline.checkpoint import RunFolder
from pag_core.training.classifier import Trainer
from pag_core.training.step import AlignmentTerm
from tests.fixtures.feeds import CPU, assert_same, feed_params, folder_at, store_at
from tests.fixtures.samples import MADE_FROM, Killed, KilledFolder, write_prepared

MODES = {"resident": Split, "memory_map": HostSplit, "window": StoredSplit}
PER_SHARD, IMAGES = 7, 36


@pytest.fixture
def prepared(tmp_path, dataset, monkeypatch):
    """The path of the dataset in shards of 7 images, the last of the training split of 1."""
    monkeypatch.setattr("pag_core.datasets.prepared.IMAGES_PER_SHARD", PER_SHARD)
    parts = {name: LabelledImages(part.images.numpy(), part.labels.numpy()) for name, part in dataset.splits.items()}
    write_prepared(tmp_path / "d.zarr", dataset.class_names, parts, {})
    return tmp_path / "d.zarr"


@pytest.fixture
def folder(tmp_path):
    return folder_at(tmp_path)


@pytest.fixture
def fed(prepared, folder):
    """`fed(mode)`: the dataset as a training in that mode has it, and its training split."""

    def feed(mode, folder=folder, run=None, **options):
        found = open_images(read_dataset(prepared), CPU, params=feed_params(mode, **options), folder=folder, run=run)
        return found, found.splits["train"]

    return feed


@pytest.fixture
def reads(monkeypatch):
    """How often each shard was read."""
    counted, original = collections.Counter(), StoredSplit._checked

    def checked(self, number):
        counted[number] += 1
        return original(self, number)

    monkeypatch.setattr(StoredSplit, "_checked", checked)
    return counted


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_gives_the_pixels_that_were_prepared(fed, dataset, mode):
    _, split = fed(mode)
    expected = dataset.splits["train"]
    assert type(split) is MODES[mode] and len(split) == IMAGES and split.image_shape == (1, 8, 8)
    assert torch.equal(split.labels, expected.labels)
    for indices in (
        torch.tensor([35, 0, 7, 7, 20]),
        slice(3, 24, 2),
        slice(None),
        slice(30, 99),
        torch.tensor([]).long(),
    ):
        assert torch.equal(split.chosen(indices), expected.images[indices])
        assert np.array_equal(split.pixels(indices).numpy(), expected.images[indices].numpy().astype(np.float32) / 255)
    parts = list(split.parts())
    assert torch.cat([images for _, images in parts]).equal(expected.images)
    assert [(rows.start, rows.stop) for rows, _ in parts][-1][1] == IMAGES
    part = split.part(slice(5, 9))
    assert torch.equal(part.images, expected.images[5:9]) and torch.equal(part.labels, expected.labels[5:9])


@pytest.mark.parametrize("index", [-1, 36])
def test_an_index_that_there_is_not_is_no_other_image(prepared, index):
    with pytest.raises(IndexError, match=r"images 0 to 36 of a split that has 36|images -1 to 0"):
        read_dataset(prepared).splits["train"].chosen(torch.tensor([0, index]))


def test_images_in_their_order_are_read_once_and_few_are_held(prepared, reads):
    split = read_dataset(prepared).splits["train"]
    for start in range(0, IMAGES, 3):
        split.pixels(slice(start, start + 3))
        assert len(split._read) <= 2
    assert reads == dict.fromkeys(range(6), 1) and split.held_bytes == 2 * PER_SHARD * 64
    # wherever they lie, a shard is read once for a request
    reads.clear()
    split.chosen(torch.tensor([30, 1, 8, 29, 2, 35]))
    assert max(reads.values()) == 1 and set(reads) <= {0, 1, 4, 5}


@pytest.mark.parametrize("window", [1, 2, 100])
def test_an_epoch_with_windows_visits_each_image_once_and_reads_each_shard_once(fed, reads, window):
    _, split = fed("window", window_shards=window)
    orders = [split.epoch_order(seed=3, epoch=epoch) for epoch in range(4)]
    assert all(sorted(order.tolist()) == list(range(IMAGES)) for order in orders)
    assert len({tuple(order.tolist()) for order in orders}) == 4
    assert torch.equal(split.epoch_order(seed=3, epoch=1), orders[1])
    for number, order in enumerate(orders[:2]):
        for chosen in order.split(5):
            split.pixels(chosen)
            assert len(split._read) <= 2 * window + 1
        # of the next epoch those that are kept need no reading
        assert len(reads) == 6 and sum(reads.values()) <= 6 * (number + 1)
    shards = [index // PER_SHARD for index in orders[0].tolist()]
    # a window of one is one shard after the other; others mix theirs
    assert (shards == sorted(shards, key=shards.index)) == (window == 1)


def test_windows_of_stored_gradients_find_their_images_held(fed, folder, tmp_path, dataset, reads):
    """The order is that of the gradients' shards, of 8 images: no shard of images is read twice in a window of theirs."""
    _, split = fed("window", window_shards=2, run=8)
    assert split.held == 2 * min(6, 2 * 3) + 1
    store = GradientStore(store_at(tmp_path / "sbg.zarr", dataset))
    assert store.images_per_shard == 8
    feed = open_feed(store, dataset, CPU, params=feed_params("window"), folder=folder, inputs=MADE_FROM)
    for chosen in feed.epoch_order(IMAGES, seed=3, epoch=0).split(5):
        split.pixels(chosen)
    assert reads == dict.fromkeys(range(6), 1)


@pytest.mark.parametrize("mode", MODES)
def test_a_shard_that_is_not_what_was_prepared_is_refused(fed, prepared, mode):
    (prepared / "train/images/c/3/0/0/0").unlink()
    with pytest.raises(DatasetError, match=r"has changed since it was prepared \(shard 3 of the train images\)"):
        fed(mode)[1].pixels(torch.arange(20, 25))


def test_the_mapped_copy_is_made_again_where_it_is_damaged(fed, folder, capsys, dataset):
    fed("memory_map")
    (copy,) = folder.path.parent.glob("images-*.raw")
    assert copy.read_bytes() == dataset.splits["train"].images.numpy().tobytes()
    content = bytearray(copy.read_bytes())
    content[100] ^= 1
    copy.write_bytes(content)
    _, split = fed("memory_map")
    assert "is not what was written; it is made again" in capsys.readouterr().out
    assert torch.equal(split.images, dataset.splits["train"].images)


@pytest.mark.parametrize(
    ("mode", "words"),
    [
        ("resident", r"feed.mode resident does not fit the pixels: .*feed.mode memory_map fits"),
        ("window", r"feed.window_shards 2 does not fit the pixels"),
    ],
)
def test_what_does_not_fit_is_refused_and_else_mapped(fed, mode, words):
    with pytest.raises(ParamsError, match=words):
        fed(mode, budget_gb=1e-6)
    assert isinstance(fed("auto", budget_gb=1e-6)[1], HostSplit)


def test_the_choice_is_said(fed, capsys):
    fed("auto")
    assert capsys.readouterr().out.startswith("pixels of 36 images: resident in host memory (feed.mode auto), ")


def test_gradients_have_what_images_leave_of_a_budget(tmp_path, dataset, folder):
    store = GradientStore(store_at(tmp_path / "sbg.zarr", dataset))
    options = {"params": feed_params("auto", budget_gb=2e-5), "folder": folder, "inputs": MADE_FROM}
    assert open_feed(store, dataset, CPU, **options, taken=9000).ahead == 0
    assert open_feed(store, dataset, CPU, **options, taken=12000).ahead > 0


def test_neighbors_from_everywhere_are_refused_with_windows(make_params):
    require_feedable(make_params({"source": "nn"}))
    require_feedable(make_params({"source": "cm", "feed.window_shards": 2}))
    with pytest.raises(ParamsError, match=r"feed.window_shards is 2, but source nn .*set feed.window_shards: null"):
        require_feedable(make_params({"source": "nn", "feed.window_shards": 2}))


def test_what_heuristic_sources_make_of_a_split_on_disk_is_what_they_make_of_one_in_memory(prepared, dataset):
    stored, held = read_dataset(prepared).splits, dataset.splits
    for one in (one_image_representatives, class_mean_representatives):
        options = {"seed": 3} if one is one_image_representatives else {"factor": 0.7}
        assert torch.equal(one(stored["train"], 3, **options), one(held["train"], 3, **options))
    samples = class_samples(held["train"], 3, samples_per_class=4, seed=1)
    for name in ("train", "test"):
        expected = nearest_neighbor_indices(held[name], held["train"], samples)
        assert torch.equal(nearest_neighbor_indices(stored[name], stored["train"], samples), expected)


# --- training


@pytest.fixture
def train(fed, tmp_path, make_params, make_classifier):
    """`train(mode, name)`: history and weights of a vanilla training, or of one with class means in its own folder."""

    def run(mode, name, kind=RunFolder, source=None):
        place = tmp_path / "cache" / name
        place.mkdir(parents=True, exist_ok=True)
        found, split = fed(mode, folder=kind(place))
        changes = {"epochs": 3, "batch_size": 5, "augmentation": "crop_flip"}
        params = make_params(
            {f"train.{key}": value for key, value in changes.items()} | {"objective.classes_per_step": 2}
        )
        term = None
        if source is not None:
            content = SOURCES[source].store(found, params, {})
            term = AlignmentTerm(content.gradients(found, "train", CPU), 1.0, params.objective)
        classifier = make_classifier()
        trainer = Trainer(
            classifier=classifier, train=split, classes=3, params=params.train, term=term, seed=5, device=CPU,
            folder=kind(place),
        )  # fmt: skip
        history = trainer.run(tmp_path / f"curves-{name}")
        return history, classifier.state_dict()

    return run


@pytest.mark.parametrize("source", [None, "cm"])
def test_resident_and_memory_map_train_the_same_network(train, source):
    resident = train("resident", "resident", source=source)
    assert_same(train("memory_map", "mapped", source=source), resident)
    # another order of images is another run
    assert train("window", "window", source=source)[0] != resident[0]


@pytest.mark.parametrize("mode", MODES)
def test_a_killed_training_goes_on_identically(train, mode):
    whole = train(mode, "whole")
    with pytest.raises(Killed):
        train(mode, "killed", KilledFolder)
    assert_same(train(mode, "killed"), whole)


@pytest.fixture
def teacher(fed, tmp_path, make_params, monkeypatch):
    monkeypatch.setattr("pag_core.diffusion.training.REPORT_EVERY", 10)

    def run(mode, name, kind=RunFolder):
        place = tmp_path / "cache" / name
        place.mkdir(parents=True, exist_ok=True)
        found, split = fed(mode, folder=kind(place))
        options = {"channel_multipliers": [1], "steps": 24, "batch_size": 4}
        params = make_params({f"diffusion.{key}": value for key, value in options.items()}).diffusion
        card = architecture(params)
        return train_diffusion(
            lambda: build_network(card, found.image_shape, 3), split, card=card, params=params, classes=3, seed=3,
            device=CPU, folder=kind(place),
        )[::-1]  # fmt: skip

    return run


def test_the_teacher_is_the_same_of_images_in_memory_and_of_a_map(teacher):
    assert_same(teacher("memory_map", "mapped"), teacher("resident", "resident"))


def test_a_killed_teacher_with_windows_goes_on_identically(teacher, reads):
    whole = teacher("window", "whole")
    # 24 steps of 4 images: two epochs of 36 and two thirds of another
    assert len(reads) == 6 and set(reads.values()) <= {1, 2, 3}
    with pytest.raises(Killed):
        teacher("window", "killed", KilledFolder)
    assert_same(teacher("window", "killed"), whole)
