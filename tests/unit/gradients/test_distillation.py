"""Distillation of a store: what is written, also after a kill and by several threads."""

import threading

import pytest
import torch

from pag_core.compute.randomness import generator
from pag_core.gradient_store.store import GradientStore
from pag_core.gradient_store.writer import GradientWriter
from pag_core.gradients import distillation
from pag_core.gradients.score_based import ScoreBased
from pag_core.pipeline.checkpoint import RunFolder
from tests.fixtures.samples import Killed, cosines, distilled, distilled_store, sbg_params


@pytest.fixture
def run_distill(dataset, make_predictor):
    predictor = make_predictor(dataset)
    sbg = sbg_params(draws=2, batch_size=5)

    def run(path, folder, seed=7, kept=None):
        distilled_store(path, ScoreBased(predictor, sbg), dataset, folder, seed=seed, classes_per_image=kept)

    run.predictor = predictor
    return run


def contents(path):
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def test_distilled_gradients_are_those_of_eq_8(tmp_path, dataset, run_distill, cpu):
    run_distill(tmp_path / "sbg.zarr", RunFolder(tmp_path / "run"))
    for split, count in (("train", 36), ("test", 10)):
        every = torch.arange(3).expand(count, 3)
        found = GradientStore(tmp_path / "sbg.zarr").gradients(dataset, split, cpu)(torch.arange(count), every)
        parts = []
        for number, start in enumerate(range(0, count, 8)):
            images = dataset.splits[split].pixels(slice(start, min(start + 8, count)))
            stream = generator("cpu", 7, "distillation", split, number)
            parts.append(distilled(run_distill.predictor, images, stream, draws=2, batch_size=100))
        assert (1 - cosines(torch.cat(parts), found)).max() < 1e-3
    # other noise for every shard and seed
    run_distill(tmp_path / "other.zarr", RunFolder(tmp_path / "run"), seed=8)
    first, second = contents(tmp_path / "sbg.zarr"), contents(tmp_path / "other.zarr")
    assert all(first[name] != second[name] for name in first if "/c/" in name)


def test_resumed_distillation_gives_the_same_bytes(tmp_path, run_distill, monkeypatch):
    run_distill(tmp_path / "whole.zarr", RunFolder(tmp_path / "run"))
    calls = []
    write_shard = GradientWriter.write_shard

    def broken(self, split, images, content):
        calls.append((split, images.start))
        records = write_shard(self, split, images, content)
        # killed after the shard was written, before it was recorded
        if len(calls) == 4:
            raise Killed
        return records

    monkeypatch.setattr(GradientWriter, "write_shard", broken)
    folder = RunFolder(tmp_path / "again")
    with pytest.raises(Killed):
        run_distill(tmp_path / "resumed.zarr", folder)
    # what a killed writer left, a shard that was lost, and scales that were lost
    (folder.path / "store/train/gradient/c/0.7f3a.partial").write_bytes(b"half")
    (folder.path / "store/train/gradient/c/0/0/0/0/0").unlink()
    (folder.path / "store/train/scale/c/1/0").unlink()
    calls.clear()
    monkeypatch.setattr(
        GradientWriter, "write_shard", lambda *a: (calls.append((a[1], a[2].start)), write_shard(*a))[1]
    )
    run_distill(tmp_path / "resumed.zarr", folder)
    assert calls == [("train", 0), ("train", 8), ("train", 24), ("train", 32), ("test", 0), ("test", 8)]
    # which lack what the killed writer left
    assert contents(tmp_path / "resumed.zarr") == contents(tmp_path / "whole.zarr")


def test_a_shard_is_quantised_batch_by_batch_and_written_by_another_thread(tmp_path, run_distill, monkeypatch):
    sizes, threads = [], set()
    original, write_shard = distillation.quantised, GradientWriter.write_shard

    def counted(gradients, dtype):
        sizes.append(len(gradients))
        return original(gradients, dtype)

    def watched(self, split, images, content):
        threads.add(threading.get_ident())
        assert content.codes.dtype == torch.int8 and len(content.codes) == images.stop - images.start
        return write_shard(self, split, images, content)

    monkeypatch.setattr(distillation, "quantised", counted)
    monkeypatch.setattr(GradientWriter, "write_shard", watched)
    run_distill(tmp_path / "sbg.zarr", RunFolder(tmp_path / "run"))
    # shards of 8 (the last of a split shorter) in batches of 5
    assert sizes == 4 * [5, 3] + [4] + [5, 3] + [2]
    assert threading.get_ident() not in threads


@pytest.mark.parametrize("call", [1, 4, 7])
def test_an_error_of_the_writing_thread_ends_the_run_without_a_store(tmp_path, run_distill, monkeypatch, call):
    """Also that of the last shard, after which no other is handed over."""
    calls, write_shard = [], GradientWriter.write_shard

    def failing(self, *content):
        calls.append(1)
        if len(calls) == call:
            raise OSError(28, "No space left on device")
        return write_shard(self, *content)

    monkeypatch.setattr(GradientWriter, "write_shard", failing)
    with pytest.raises(OSError, match="No space left"):
        run_distill(tmp_path / "sbg.zarr", RunFolder(tmp_path / "run"))
    assert len(calls) == call and not (tmp_path / "sbg.zarr").exists()


@pytest.mark.parametrize(
    ("wanted", "shards", "cores", "count"),
    [
        (None, 3, 8, 1),
        (None, 15, 8, 1),
        (None, 16, 8, 2),
        (None, 100, 8, 8),
        (None, 100, 1, 1),
        (2, 3, 8, 2),
        (4, 3, 1, 3),
    ],
)
def test_ranks_are_started_where_they_pay(monkeypatch, cpu, wanted, shards, cores, count):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(cores)), raising=False)
    assert distillation.distilling_processes(wanted, cpu, shards) == count
