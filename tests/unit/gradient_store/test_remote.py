"""A store whose shards lie at an fsspec address: in memory, in another folder, and behind a server that may lose them."""

import json

import fsspec
import numpy as np
import pytest
import torch
import zarr

from pag_core.errors import ParamsError, StoreError
from pag_core.gradient_store import remote
from pag_core.gradient_store.feed import open_feed
from pag_core.gradient_store.manifest import read_manifest
from pag_core.gradient_store.remote import RemoteShards
from pag_core.gradient_store.store import GradientStore
from pag_core.gradients.score_based import ScoreBased
from pag_core.params.sections import FeedParams
from pag_core.pipeline.checkpoint import RunFolder
from tests.fixtures.samples import MADE_FROM, Killed, distilled_store, sbg_params

CPU = torch.device("cpu")


@pytest.fixture(params=["memory", "file"])
def address(request, tmp_path):
    if request.param == "file":
        yield f"file://{tmp_path}/bucket"
        return
    yield "memory://bucket"
    memory = fsspec.filesystem("memory")
    memory.rm("/bucket", recursive=True) if memory.exists("/bucket") else None


@pytest.fixture
def run_distill(dataset, make_predictor):
    predictor = make_predictor(dataset)

    def run(path, folder, address, kept=2):
        maker = ScoreBased(predictor, sbg_params())
        return distilled_store(path, maker, dataset, folder, address=address, classes_per_image=kept)

    return run


@pytest.mark.parametrize("kept", [None, 2])
@pytest.mark.parametrize("mode", ["resident", "memory_map", "window"])
def test_a_store_elsewhere_reads_as_one_here(tmp_path, dataset, run_distill, address, mode, kept):
    here = run_distill(tmp_path / "here.zarr", tmp_path / "a" / "sbg-1", None, kept)
    there = run_distill(tmp_path / "there.zarr", tmp_path / "b" / "sbg-2", address, kept)
    assert {path.name for path in there.rglob("*") if path.is_file()} == {"zarr.json", "manifest.json"}
    manifest = read_manifest(there)
    assert manifest["address"] == f"{address}/sbg-2.zarr" and manifest["files"] == read_manifest(here)["files"]
    params = FeedParams(mode="auto" if mode == "window" else mode, budget_gb=None, window_shards=None)
    if mode == "window":
        params = params.model_copy(update={"window_shards": 2})
    feeds = []
    for store in (here, there):
        (tmp_path / f"cache-{store.stem}" / "run").mkdir(parents=True)
        folder = RunFolder(tmp_path / f"cache-{store.stem}" / "run")
        feeds.append(open_feed(GradientStore(store), dataset, CPU, params=params, folder=folder, inputs=MADE_FROM))
    order = feeds[0].epoch_order(36, seed=1, epoch=0)
    assert torch.equal(order, feeds[1].epoch_order(36, seed=1, epoch=0))
    slots = torch.arange(2).expand(36, 2)
    for chosen in order.split(7):
        assert torch.equal(feeds[0](chosen, slots[: len(chosen)]), feeds[1](chosen, slots[: len(chosen)]))
        assert torch.equal(*(feed.classes_of(chosen, slots[: len(chosen)]) for feed in feeds))
    for feed in feeds:
        feed.close()
    every = torch.arange(3).expand(10, 3)
    held_out = [
        GradientStore(store).gradients(dataset, "test", CPU)(torch.arange(10), every) for store in (here, there)
    ]
    assert torch.equal(*held_out)


def test_what_lies_there_is_a_zarr_store_by_itself(tmp_path, dataset, run_distill, address):
    there = run_distill(tmp_path / "there.zarr", tmp_path / "b" / "sbg-2", address)
    found = zarr.open_group(
        zarr.storage.FsspecStore.from_url(read_manifest(there)["address"], read_only=True), mode="r"
    )
    codes, scales = np.asarray(found["train/gradient"]), np.asarray(found["train/scale"])
    expected = GradientStore(there).gradients(dataset, "train", CPU)(torch.arange(36), torch.arange(2).expand(36, 2))
    assert np.allclose(codes * scales[..., None, None, None], expected.numpy(), rtol=1e-6)


def test_a_killed_distillation_sends_only_what_is_not_there(tmp_path, run_distill, address, monkeypatch):
    sent, original = [], RemoteShards.send

    def killed(self, local, name):
        original(self, local, name)
        sent.append(name)
        if len(sent) == 8:
            raise Killed

    whole = run_distill(tmp_path / "whole.zarr", tmp_path / "a" / "sbg-1", address)
    monkeypatch.setattr(RemoteShards, "send", killed)
    with pytest.raises(Killed):
        run_distill(tmp_path / "there.zarr", tmp_path / "b" / "sbg-2", address)
    # three files a shard: two shards are done, the third lacks one
    assert not (tmp_path / "there.zarr").exists() and len(sent) == 8
    system, root = fsspec.core.url_to_fs(f"{address}/sbg-2.zarr")
    system.rm_file(f"{root}/train/scale/c/0/0")
    sent.clear()
    monkeypatch.setattr(
        RemoteShards, "send", lambda self, local, name: (sent.append(name), original(self, local, name))
    )
    there = run_distill(tmp_path / "there.zarr", tmp_path / "b" / "sbg-2", address)
    shards = {name.split("/c/")[1].split("/")[0] for name in sent if name.startswith("train/gradient/c/")}
    assert shards == {"0", "2", "3", "4"}
    assert read_manifest(there)["files"] == read_manifest(whole)["files"]


def test_lost_cut_and_changed_shards_are_seen(tmp_path, dataset, run_distill, address):
    there = run_distill(tmp_path / "there.zarr", tmp_path / "b" / "sbg-2", address)
    system, root = fsspec.core.url_to_fs(read_manifest(there)["address"])
    place = f"{root}/train/gradient/c/2/0/0/0/0"
    good = system.cat_file(place)
    for position in (0, len(good) // 2, len(good) - 1):
        changed = bytearray(good)
        changed[position] ^= 1
        system.pipe_file(place, bytes(changed))
        with pytest.raises(StoreError, match=r"shard 2 of train/gradient at .*sbg-2\.zarr is damaged"):
            GradientStore(there).gradients(dataset, "train", CPU)
    system.pipe_file(place, good[:-1])
    with pytest.raises(
        StoreError, match=rf"c/2/0/0/0/0 has {len(good) - 1} bytes, the manifest of .* {len(good)} bytes"
    ):
        GradientStore(there).gradients(dataset, "train", CPU)
    system.rm_file(place)
    with pytest.raises(StoreError, match=r"bucket/sbg-2.zarr/train/gradient/c/2/0/0/0/0 is missing"):
        GradientStore(there).gradients(dataset, "train", CPU)


def test_other_metadata_there_are_refused(tmp_path, dataset, run_distill, address):
    there = run_distill(tmp_path / "there.zarr", tmp_path / "b" / "sbg-2", address)
    system, root = fsspec.core.url_to_fs(read_manifest(there)["address"])
    whole = json.loads(system.cat_file(f"{root}/zarr.json"))
    whole["consolidated_metadata"]["metadata"]["train/gradient"]["shape"][0] = 35
    system.pipe_file(f"{root}/zarr.json", json.dumps(whole).encode())
    with pytest.raises(
        StoreError, match=r"bucket/sbg-2\.zarr/zarr\.json is of another store than .*there\.zarr; make the store again"
    ):
        GradientStore(there).gradients(dataset, "train", CPU)


def test_what_arrives_short_is_refused(tmp_path, run_distill, monkeypatch):
    memory = fsspec.filesystem("memory")
    monkeypatch.setattr(type(memory), "put_file", lambda self, local, place, **_: self.pipe_file(place, b"half"))
    with pytest.raises(StoreError, match=r"has 4 bytes after \d+ were sent; run the stage again"):
        run_distill(tmp_path / "there.zarr", tmp_path / "b" / "sbg-2", "memory://short")
    memory.rm("/short", recursive=True)


@pytest.mark.parametrize("address", ["nothing://bucket", "s3://bucket/pag"])
def test_an_address_that_cannot_be_opened_says_what_is_missing(address, monkeypatch):
    if address.startswith("s3"):

        def lacking(*_, **__):
            raise ImportError("Install s3fs to access S3")

        monkeypatch.setattr(remote.fsspec.core, "url_to_fs", lacking)
    with pytest.raises(
        ParamsError, match=r"gradient_store.address: .*bucket.* cannot be opened .*s3:// needs the package s3fs"
    ):
        RemoteShards(address)
