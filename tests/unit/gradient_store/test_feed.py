"""Feeding: every mode gives the rows of the store, in an order that visits each image once, also after a kill."""

import threading

import numpy as np
import pytest
import torch

from pag_core.errors import ParamsError, StoreError
from pag_core.gradient_store.feed import open_feed
from pag_core.gradient_store.store import GradientStore, SmallStore, write_small_store
from pag_core.gradient_store.window import WindowGradients
from pag_core.pipeline.checkpoint import RunFolder
from pag_core.training.batches import Batches
from pag_core.training.classifier import Trainer
from pag_core.training.step import AlignmentTerm
from tests.fixtures.feeds import CPU, assert_same, by_zarr, feed_params, folder_at, opened, store_at
from tests.fixtures.samples import MADE_FROM, Killed, KilledFolder, flip

MODES = ("resident", "memory_map", "window")


@pytest.fixture(params=["int8", "float16", "float32"])
def dtype(request):
    return request.param


@pytest.fixture
def store(tmp_path, dataset):
    return store_at(tmp_path / "sbg.zarr", dataset)


@pytest.fixture
def folder(tmp_path):
    return folder_at(tmp_path)


def epochs(feed, images=36, batch=7, count=3, drawn=2, seed=3):
    """(epoch, image indices, class indices, rows) of each batch of some epochs."""
    draws = torch.Generator().manual_seed(1)
    for epoch in range(count):
        order = feed.epoch_order(images, seed=seed, epoch=epoch)
        for chosen in order.split(batch):
            labels = torch.rand(len(chosen), 3, generator=draws).topk(drawn, dim=1).indices
            yield epoch, chosen, labels, feed.rows(chosen, labels, epoch=epoch)


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_gives_the_rows_that_zarr_holds(tmp_path, dataset, folder, mode, dtype):
    store = store_at(tmp_path / "sbg.zarr", dataset, dtype)
    feed = opened(store, dataset, folder, mode)
    visited = 0
    for _, chosen, labels, rows in epochs(feed):
        assert rows.codes.dtype == getattr(torch, dtype) and rows.codes.shape == (len(chosen), 2, 1, 8, 8)
        assert np.array_equal(rows.dequantised().numpy(), by_zarr(store, chosen, labels))
        norms = np.linalg.norm(by_zarr(store, chosen, labels).reshape(len(chosen), 2, -1).astype(np.float64), axis=2)
        assert np.allclose(rows.norms().numpy(), norms, rtol=1e-5)
        visited += len(chosen)
    assert visited == 3 * 36
    feed.close()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("window_shards", [1, 2, 100])
def test_every_epoch_visits_each_image_once_in_another_order(store, dataset, folder, mode, window_shards):
    feed = opened(store, dataset, folder, mode, window_shards=window_shards)
    orders = [feed.epoch_order(36, seed=3, epoch=epoch).tolist() for epoch in range(6)]
    for order in orders:
        assert sorted(order) == list(range(36))
    assert len({tuple(order) for order in orders}) == 6
    assert orders[2] == feed.epoch_order(36, seed=3, epoch=2).tolist() != feed.epoch_order(36, seed=4, epoch=2).tolist()


def test_a_window_mixes_its_shards_and_no_others(store, dataset, folder):
    feed = opened(store, dataset, folder, "window", window_shards=2)
    pairs = set()
    for epoch in range(8):
        shards = [image // 8 for image in feed.epoch_order(36, seed=3, epoch=epoch).tolist()]
        # five shards of 8, 8, 8, 8 and 4 images: windows of two, two and one
        edges, place = [], 0
        while place < 36:
            members = set(shards[place : place + 1])
            size = 0
            while place + size < 36 and (len(members) < 2 or shards[place + size] in members):
                members.add(shards[place + size])
                size += 1
            assert size == sum(4 if shard == 4 else 8 for shard in members)
            edges.append(frozenset(members))
            # mixed: not one shard after the other
            if len(members) == 2:
                assert shards[place : place + size] != sorted(shards[place : place + size])
            place += size
        assert sum(map(len, edges)) == 5
        pairs.update(edges)
    assert len(pairs) > 6


@pytest.mark.parametrize("batch", [3, 7, 12, 36])
def test_a_window_reads_each_shard_once_an_epoch_and_holds_two_windows(store, dataset, folder, batch):
    feed = opened(store, dataset, folder, "window", window_shards=2)
    read, reader, original = [], set(), feed.codes.read

    def counted(number):
        reader.add(threading.get_ident())
        read.append(number)
        return original(number)

    feed.codes.read = counted
    for epoch, *_ in epochs(feed, batch=batch, count=3):
        assert batch > 12 or len(feed.loaded) <= 2 + (batch > 4)
        assert len(read) <= 5 * (epoch + 2)
    feed.close()
    assert threading.get_ident() not in reader
    for epoch in range(3):
        assert sorted(read[5 * epoch : 5 * epoch + 5]) == [0, 1, 2, 3, 4]


def test_a_window_can_begin_in_the_middle_of_an_epoch(store, dataset, folder):
    feed = opened(store, dataset, folder, "window", window_shards=2)
    labels = torch.tensor([[0, 2]])
    order = feed.epoch_order(36, seed=3, epoch=5)
    for place in (35, 20):
        again = opened(store, dataset, folder, "window", window_shards=2)
        assert torch.equal(again.epoch_order(36, seed=3, epoch=5), order)
        chosen = order[place : place + 1]
        assert np.array_equal(again.rows(chosen, labels, epoch=5).dequantised().numpy(), by_zarr(store, chosen, labels))
        again.close()


# --- damage


@pytest.mark.parametrize("name", ["train/gradient/c/2/0/0/0/0", "train/scale/c/2/0"])
@pytest.mark.parametrize("mode", MODES)
def test_a_flipped_byte_is_refused(store, dataset, folder, mode, name):
    flip(store / name, (store / name).stat().st_size // 2)

    def read_all():
        for _ in epochs(opened(store, dataset, folder, mode), count=1):
            pass

    with pytest.raises(StoreError, match=r"shard 2 of train/.* is damaged"):
        read_all()
    assert not list(folder.path.parent.glob("*.raw")) and not list(folder.path.parent.glob("**/*.partial"))


def test_a_flipped_byte_ends_a_training_that_reads_ahead(store, dataset, folder, make_params):
    flip(store / "train/gradient/c/2/0/0/0/0", 100)
    feed = opened(store, dataset, folder, "window", window_shards=1)
    params = make_params({"train.epochs": 1, "train.batch_size": 4}).train
    batches = Batches(dataset.splits["train"], classes=3, params=params, targets=feed, drawn=3, seed=1, device=CPU)
    batches.start(0, None)
    with pytest.raises(StoreError, match="shard 2"):
        for _ in range(batches.steps):
            batches.take()
    batches.close()


def test_stores_of_other_origin_are_refused(store, dataset, make_dataset, folder):
    with pytest.raises(StoreError, match="made from other data"):
        opened(store, make_dataset(seed=99), folder, "auto")
    with pytest.raises(StoreError, match="another teacher"):
        open_feed(GradientStore(store), dataset, CPU, params=feed_params(), folder=folder, inputs={"teacher": "b" * 64})


# --- the choice


@pytest.mark.parametrize(("mode", "words"), [("auto", "resident in host memory"), *((mode, "") for mode in MODES)])
def test_the_choice_is_said_in_one_line(store, dataset, folder, capsys, mode, words):
    opened(store, dataset, folder, mode).close()
    (line,) = capsys.readouterr().out.splitlines()
    assert (
        line.startswith("target gradients of 36 images and 3 classes each: ")
        and f"(feed.mode {'auto' if mode == 'window' else mode})" in line
        and "MB of" in line
        and words in line
    )


def test_a_budget_too_small_for_the_store_is_told(store, dataset, folder):
    with pytest.raises(
        ParamsError, match=r"feed.mode resident does not fit.*0.00 MB of host memory \(feed.budget_gb\)"
    ):
        opened(store, dataset, folder, "resident", budget_gb=1e-6)
    feed = opened(store, dataset, folder, "auto", budget_gb=1e-6)
    assert feed.ahead > 0 and len(list(folder.path.parent.glob("*.raw"))) == 1


def test_sources_that_are_not_dense_are_computed(tmp_path, dataset, folder, capsys):
    write_small_store(
        tmp_path / "cm.zarr",
        dataset,
        "cm",
        SmallStore("representatives", {"representatives": torch.rand(3, 1, 8, 8)}),
        {},
    )
    feed = open_feed(GradientStore(tmp_path / "cm.zarr"), dataset, CPU, params=feed_params("memory_map"), folder=folder)
    assert feed.ahead == 0 and not capsys.readouterr().out and not list(folder.path.parent.glob("*.raw"))


# --- training


@pytest.fixture
def train(tmp_path, store, dataset, make_params, make_classifier, monkeypatch):
    monkeypatch.setattr("pag_core.training.classifier.STEPS_BETWEEN_READS", 2)

    def run(mode, name, kind=RunFolder, augmentation="crop_flip", **options):
        params = make_params({
            "train.epochs": 2, "train.batch_size": 8, "objective.classes_per_step": 2,
            "train.augmentation": augmentation,
        })  # fmt: skip
        path = tmp_path / "cache" / name
        path.mkdir(parents=True, exist_ok=True)
        folder = kind(path)
        feed = opened(store, dataset, folder, mode, **options)
        classifier = make_classifier()
        trainer = Trainer(
            classifier=classifier, train=dataset.splits["train"], classes=3, params=params.train,
            term=AlignmentTerm(feed, 2.0, params.objective), seed=5, device=CPU, folder=folder,
        )  # fmt: skip
        history = trainer.run(tmp_path / f"curves-{name}")
        return history, {key: value.clone() for key, value in classifier.state_dict().items()}

    return run


@pytest.mark.parametrize("augmentation", ["none", "crop_flip"])
def test_resident_and_memory_map_train_the_same_network(train, augmentation):
    resident, mapped = (train(mode, mode, augmentation=augmentation) for mode in ("resident", "memory_map"))
    assert_same(mapped, resident)
    # another order of images is another run
    assert train("window", "window", augmentation=augmentation)[0] != resident[0]


@pytest.mark.parametrize("mode", MODES)
def test_a_killed_training_goes_on_identically(train, mode):
    whole = train(mode, "whole")
    with pytest.raises(Killed):
        train(mode, "run", KilledFolder)
    assert_same(train(mode, "run"), whole)


def test_a_killed_training_goes_on_when_memory_has_changed(train, tmp_path):
    """Free memory decides where gradients lie, never the order of images."""
    whole = train("resident", "whole")
    with pytest.raises(Killed):
        train("auto", "run", KilledFolder)
    assert_same(train("auto", "run", budget_gb=1e-6), whole)
    assert list((tmp_path / "cache").glob("*.raw"))


def test_window_gradients_say_their_window(store, dataset, folder):
    feed = opened(store, dataset, folder, "window", window_shards=3)
    assert isinstance(feed, WindowGradients) and feed.window == 3
    assert opened(store, dataset, RunFolder(folder.path), "auto").window == 0


def test_processes_of_a_machine_share_its_memory(store, dataset, folder, monkeypatch):
    monkeypatch.setattr("pag_core.pipeline.budget.available_host_memory", lambda: 2 * 10_500)
    options = {"params": feed_params(), "folder": folder, "inputs": MADE_FROM}
    assert open_feed(GradientStore(store), dataset, CPU, **options).ahead == 0
    assert open_feed(GradientStore(store), dataset, CPU, **options, processes=2).ahead > 0
