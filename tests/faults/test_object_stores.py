"""A gradient store on S3: requests are counted, and each fault of a server is told with address, shard and remedy."""

import os
import threading

import fsspec
import pytest
import torch

from pag_core.errors import StoreError
from pag_core.gradient_store.manifest import read_manifest
from pag_core.gradient_store.remote import RemoteShards
from pag_core.gradient_store.store import GradientStore
from pag_core.gradients.score_based import ScoreBased
from tests.fixtures.s3_servers import S3Server, given
from tests.fixtures.samples import distilled_store, flip, sbg_params

pytest.importorskip("s3fs", reason="no s3fs is installed (pip install s3fs)")
pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
SHARD = "train/gradient/c/2/0/0/0/0"


@pytest.fixture(scope="module", params=[given("moto"), given("rclone")])
def running(request, tmp_path_factory):
    server = S3Server(request.param, tmp_path_factory.mktemp(request.param))
    yield server
    server.go_on()
    server.stop()


@pytest.fixture
def server(running, monkeypatch):
    """The server, which clients in this process find; each test has clients of its own."""
    monkeypatch.delenv("AWS_RESPONSE_CHECKSUM_VALIDATION", raising=False)
    for key, value in running.environment.items():
        monkeypatch.setenv(key, value)
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    yield running
    running.go_on()


@pytest.fixture
def run_distill(dataset, make_predictor, tmp_path):
    """`run_distill(address)`: a store of 36 images in five shards, the last of them shorter."""
    maker = ScoreBased(make_predictor(dataset), sbg_params())

    def run(address):
        name = "here" if address is None else "there"
        return distilled_store(tmp_path / f"{name}.zarr", maker, dataset, tmp_path / name / "sbg", address=address)

    return run


@pytest.fixture
def store(server, run_distill, request):
    """A finished store whose shards are on the server, in a folder of the test's own."""
    return run_distill(f"s3://bucket/{request.node.name.partition('[')[0]}")


def place_of(store):
    return read_manifest(store)["address"].removeprefix("s3://bucket/")


def codes(store):
    return GradientStore(store).stored("train")[0]


def slow_to_wait(monkeypatch, seconds):
    """Clients of this process give a server `seconds` for each answer."""
    monkeypatch.setitem(fsspec.config.conf, "s3", {"config_kwargs": {"read_timeout": seconds}})
    fsspec.get_filesystem_class("s3").clear_instance_cache()


def test_each_shard_is_one_request(server, store, run_distill):
    place = place_of(store)
    shards = [name for name in read_manifest(store)["files"] if "/c/" in name]
    assert len(shards) == 14 and all(server.requests(f"{place}/{name}") == ["PUT", "HEAD"] for name in shards)
    here = run_distill(None)
    for split in ("train", "test"):
        read = [[array.resident(CPU) for array in GradientStore(path).stored(split)[:2]] for path in (store, here)]
        assert all(map(torch.equal, *read))
    assert all(server.requests(f"{place}/{name}")[2:] == ["GET"] for name in shards)


def test_damage_is_told(server, store):
    there = RemoteShards(read_manifest(store)["address"])
    good = there.read(SHARD)
    changed = bytearray(good)
    changed[5] ^= 1
    there.system.pipe_file(f"{there.root}/{SHARD}", bytes(changed))
    with pytest.raises(StoreError, match=r"shard 2 of train/gradient at s3://bucket/.*\.zarr is damaged .*; remove"):
        codes(store).read(2)
    there.system.pipe_file(f"{there.root}/{SHARD}", good)
    assert len(codes(store).read(2)) == 8
    if server.name == "rclone":
        # behind the server's back, which still sends the checksum of what it was given
        file = server.folder / "objects" / there.root / SHARD
        times = file.stat()
        flip(file, 5)
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
        with pytest.raises(StoreError, match=rf"{there.address}/{SHARD} is damaged .*; make the store again with dvc"):
            codes(store).read(2)


def test_a_lost_shard_is_told(store):
    there, opened = RemoteShards(read_manifest(store)["address"]), codes(store)
    there.system.rm_file(f"{there.root}/{SHARD}")
    lost = rf"{there.address}/{SHARD} is missing.*; make the store again with dvc repro --force"
    for read in (lambda: opened.read(2), lambda: codes(store)):
        with pytest.raises(StoreError, match=lost):
            read()


@pytest.mark.parametrize(
    ("changes", "address", "said"),
    [
        ({}, "s3://no-such-bucket/pag", "The specified bucket does not exist"),
        ({"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, "s3://bucket/pag", "credentials"),
        ({"AWS_SECRET_ACCESS_KEY": "wrong"}, "s3://bucket/pag", "signature"),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "s3://bucket/pag", "Could not connect to the endpoint URL"),
    ],
    ids=["bucket", "no credentials", "wrong credentials", "nobody there"],
)
def test_what_cannot_be_reached_is_told(server, run_distill, monkeypatch, changes, address, said):
    if said == "signature" and server.name == "moto":
        pytest.skip("moto takes any credentials")
    for key, value in changes.items():
        monkeypatch.setenv(key, value) if value else monkeypatch.delenv(key)
    with pytest.raises(StoreError) as told:
        run_distill(address)
    assert f"{address}/sbg.zarr/train/gradient/c/" in str(told.value) and said in str(told.value)
    assert "the bucket and your credentials, and run again" in str(told.value) and "\n" not in str(told.value)


def test_a_slow_server_is_waited_for(server, store, monkeypatch):
    slow_to_wait(monkeypatch, 1)
    whole, opened = codes(store).read(2), codes(store)
    server.pause()
    later = threading.Timer(1.5, server.go_on)
    later.start()
    assert (opened.read(2) == whole).all()
    later.join()  # else it wakes the server of the next test


def test_a_silent_server_is_told(server, store, monkeypatch):
    slow_to_wait(monkeypatch, 0.2)
    opened = codes(store)
    server.pause()
    with pytest.raises(StoreError, match=rf"{SHARD} could not be reached .*[Tt]imeout.*; see to the server"):
        opened.read(2)


def test_a_distillation_outlives_a_dying_server(server, run_distill, monkeypatch):
    if server.name == "moto":
        pytest.skip("moto keeps its objects in memory")
    send, sent = RemoteShards.send, []

    def dying(self, local, name):
        if len(sent) == 5:
            server.stop()
        send(self, local, name)
        sent.append(name)

    monkeypatch.setattr(RemoteShards, "send", dying)
    with pytest.raises(StoreError, match=r"could not be reached .*; see to the server, .* what is finished is kept"):
        run_distill("s3://bucket/dying")
    server.start()
    monkeypatch.setattr(RemoteShards, "send", lambda self, local, name: (sent.append(name), send(self, local, name)))
    there = run_distill("s3://bucket/dying")
    # the third shard had its gradients there, and not its scales
    assert [name for name in sent if sent.count(name) == 2] == [SHARD] * 2
    assert read_manifest(there)["files"] == read_manifest(run_distill(None))["files"]
