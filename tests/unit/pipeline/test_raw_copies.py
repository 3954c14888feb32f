"""The raw copy of a store that training maps: kept, checked, made again, and whole or not at all."""

import subprocess

import numpy as np
import pytest
import torch
import zarr

from pag_core.compute.processes import Process
from pag_core.gradient_store import feed as feed_module
from pag_core.gradient_store.store import GradientStore
from pag_core.pipeline import raw_copies
from tests.fixtures.feeds import by_zarr, folder_at, opened, store_at
from tests.fixtures.project_copy import forks
from tests.fixtures.samples import ROOT, flip


@pytest.fixture
def store(tmp_path, dataset):
    return store_at(tmp_path / "sbg.zarr", dataset)


@pytest.fixture
def folder(tmp_path):
    return folder_at(tmp_path)


def test_the_cache_is_kept_rebuilt_and_replaced(tmp_path, store, dataset, folder):
    codes = np.asarray(zarr.open_group(store, mode="r")["train/gradient"])

    def caches():
        return sorted(folder.path.parent.glob("*.raw"))

    opened(store, dataset, folder, "memory_map")
    (cache,) = caches()
    assert cache.read_bytes() == codes.tobytes()
    made = cache.stat().st_mtime_ns
    opened(store, dataset, folder, "memory_map")
    assert cache.stat().st_mtime_ns == made
    cache.write_bytes(cache.read_bytes()[:-1])
    feed = opened(store, dataset, folder, "memory_map")
    assert cache.read_bytes() == codes.tobytes()
    chosen, labels = torch.tensor([35, 0]), torch.tensor([[2], [1]])
    # one that nobody reads goes when another store of that name comes; another name's stays
    abandoned = cache.with_name(f"gradients-sbg-train-{'0' * 20}.raw")
    abandoned.write_bytes(b"of an earlier store")
    foreign = cache.with_name(f"gradients-teacher-train-{'0' * 20}.raw")
    foreign.write_bytes(b"of another store")
    (tmp_path / "new").mkdir()
    renewed = store_at(tmp_path / "new" / "sbg.zarr", dataset, seed=5)
    found = opened(renewed, dataset, folder, "memory_map").rows(chosen, labels).dequantised().numpy()
    assert np.array_equal(found, by_zarr(renewed, chosen, labels))
    assert not abandoned.exists() and foreign.exists()
    # the first is still read by this process
    assert cache.exists() and len(caches()) == 3
    assert np.array_equal(feed.rows(chosen, labels).dequantised().numpy(), by_zarr(store, chosen, labels))


@pytest.mark.parametrize("damaged", ["map", "record", "no record"])
def test_a_flipped_byte_of_the_cache_is_seen(store, dataset, folder, capsys, damaged):
    """The map has no checksums of its own: it is compared with what was stated when it was written."""
    opened(store, dataset, folder, "memory_map")
    (cache,) = folder.path.parent.glob("*.raw")
    whole, record = cache.read_bytes(), cache.with_suffix(".raw.json")
    if damaged == "no record":
        record.unlink()
    else:
        path = cache if damaged == "map" else record
        flip(path, path.stat().st_size // 2)
    capsys.readouterr()
    feed = opened(store, dataset, folder, "memory_map")
    assert "is not what was written; it is made again" in capsys.readouterr().out
    assert cache.read_bytes() == whole
    chosen, labels = torch.arange(36), torch.tensor([[0, 1, 2]]).expand(36, 3)
    assert np.array_equal(feed.rows(chosen, labels).dequantised().numpy(), by_zarr(store, chosen, labels))
    opened(store, dataset, folder, "memory_map")
    assert "made again" not in capsys.readouterr().out


def test_a_killed_writer_of_the_cache_leaves_nothing(store, dataset, folder):
    """Of this content or another, and before the room on the disk is measured."""
    other = feed_module.cache_path(GradientStore(store), folder).with_name(f"gradients-sbg-train-{'0' * 20}.raw")
    leftovers = [
        folder.path.parent / f".{name}.abc.partial"
        for name in (feed_module.cache_path(GradientStore(store), folder).name, other.name, f"{other.name}.json")
    ]
    for leftover in leftovers:
        leftover.write_bytes(b"half")
    opened(store, dataset, folder, "memory_map")
    assert not any(leftover.exists() for leftover in leftovers) and len(list(folder.path.parent.glob("*.raw"))) == 1


def test_of_processes_that_share_the_work_one_checks_the_cache(store, dataset, folder, monkeypatch):
    opened(store, dataset, folder, "memory_map")
    looked, look = [], raw_copies._is_as_written
    monkeypatch.setattr(raw_copies, "_is_as_written", lambda path: looked.append(path) or look(path))
    opened(store, dataset, folder, "memory_map")
    assert len(looked) == 1
    monkeypatch.setattr(raw_copies, "this_process", lambda: Process(1, 2))
    # this process holds the copy, as the leader does
    opened(store, dataset, folder, "memory_map")
    assert len(looked) == 1
    for held in raw_copies._held:
        held.close()
    raw_copies._held.clear()
    opened(store, dataset, folder, "memory_map")
    assert len(looked) == 2


FULL = """
import resource, signal, sys
from pathlib import Path
sys.path[0] = {root!r}
import numpy as np
from pag_core.gradient_store.feed import mapped_codes
from pag_core.pipeline.stage import stage

class Codes:
    shape, array = (4, 20_000), np.empty(0, np.int8)

    def __iter__(self):
        for number in range(4):
            # the disk is full while one shard is written, and free again after it
            limit = {limit} if number == {shard} else resource.RLIM_INFINITY
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
            yield slice(number, number + 1), np.full((1, 20_000), number + 1, np.int8)

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
with stage("train"):
    mapped_codes(Codes(), Path("gradients-sbg-train-1.raw"))
"""


@pytest.mark.slow
@pytest.mark.parametrize(("shard", "limit"), [(1, 27_000), (2, 40_000), (3, 77_000)])
def test_a_disk_that_fills_up_while_the_cache_is_written(tmp_path, shard, limit):
    """In the middle, at an edge, in the end; the copy could have the right size, and the hash of its wrong bytes."""
    script = FULL.format(root=str(ROOT), shard=shard, limit=limit)
    done = subprocess.run(
        [f"{forks()}/python", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1 and "the disk is full" in done.stderr, done.stderr[-1000:]
    assert not list(tmp_path.glob("**/*gradients-sbg-train-1.raw*"))
