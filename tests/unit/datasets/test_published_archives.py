"""Published archives: nothing is parsed that is not, byte for byte, what the publisher offers."""

import hashlib
import http.server
import os
import pickle
import tarfile
import threading
import urllib.request
from pathlib import Path
from urllib.error import URLError

import pytest
import torchvision.datasets

from pag_core.datasets import cifar, stl10, tiny_imagenet
from pag_core.datasets.loading import load_raw
from pag_core.datasets.published_archive import PublishedArchive, tar_members
from pag_core.errors import DatasetError
from tests.fixtures.archives import small_cifar, small_stl10, small_tiny_imagenet, tar_gz

CONTENT = bytes(range(256)) * 40
PUBLISHED = {
    "cifar10": cifar.CIFAR10.archive,
    "cifar100": cifar.CIFAR100.archive,
    "stl10": stl10.ARCHIVE,
    "tiny_imagenet": tiny_imagenet.ARCHIVE,
}
each_dataset = pytest.mark.parametrize("name", PUBLISHED)


def files_below(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def read(archive, folder):
    with archive.opened(folder) as file:
        return file.read()


@pytest.fixture
def serve():
    """`serve(body, claimed, status)` starts a server; returns an archive of CONTENT at its address, and the requests."""
    servers = []

    def start(body=CONTENT, claimed=None, status=200):
        requests = []

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                requests.append(self.path)
                self.send_response(status)
                self.send_header("Content-Length", str(len(body) if claimed is None else claimed))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *arguments):
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/folder/small.tar.gz"
        return PublishedArchive("Small", address, len(CONTENT), hashlib.md5(CONTENT).hexdigest()), requests

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def offline(monkeypatch):
    """No network; returns the addresses that are asked for."""
    asked = []

    def refuse(address, **options):
        asked.append(address)
        raise URLError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    return asked


def test_an_archive_is_downloaded_once(serve, tmp_path):
    archive, requests = serve()
    folder = tmp_path / "data/downloads"
    assert read(archive, folder) == read(archive, folder) == CONTENT
    assert requests == ["/folder/small.tar.gz"]
    assert (folder / "small.tar.gz").read_bytes() == CONTENT
    assert files_below(folder) <= {"small.tar.gz", ".small.tar.gz.lock"}


def test_of_several_at_once_one_downloads(serve, tmp_path):
    archive, requests = serve()
    found = []
    threads = [threading.Thread(target=lambda: found.append(read(archive, tmp_path))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [CONTENT] * 4 and len(requests) == 1


def test_a_file_put_there_needs_no_network(tmp_path, offline):
    archive = PublishedArchive("Small", "http://x.invalid/s.zip", len(CONTENT), hashlib.md5(CONTENT).hexdigest())
    (tmp_path / "s.zip").write_bytes(CONTENT)
    tmp_path.chmod(0o555)  # nor a folder that can be written
    assert read(archive, tmp_path) == CONTENT and offline == []
    tmp_path.chmod(0o755)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ({"body": b"<html>proxy login</html>"}, r"sent has 24 bytes, not 10,240; try again, or put small.tar.gz"),
        ({"body": CONTENT[:-1] + b"x"}, r"sent has the MD5 [0-9a-f]{32}, not [0-9a-f]{32}; try again"),
        ({"body": CONTENT[:100], "claimed": len(CONTENT)}, r"put small.tar.gz \(10,240 bytes"),
        ({"body": CONTENT + b"more"}, r"sent has 10,244 bytes, not 10,240"),
        ({"body": b"gone", "status": 404}, r"Small could not be downloaded from http.*404.*; put small.tar.gz"),
    ],
)
def test_a_wrong_download_is_refused_and_not_kept(serve, tmp_path, answer, words):
    archive, _ = serve(**answer)
    with pytest.raises(DatasetError, match=words):
        read(archive, tmp_path)
    assert files_below(tmp_path) <= {".small.tar.gz.lock"}


def test_no_more_is_received_than_a_little_over_the_size(serve, tmp_path, monkeypatch):
    monkeypatch.setattr("pag_core.datasets.published_archive.BYTES_AT_ONCE", 1024)
    archive, _ = serve(body=CONTENT * 50)
    with pytest.raises(DatasetError, match=r"has 11,264 bytes, not 10,240"):
        read(archive, tmp_path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "has 0 bytes, not 10,240"),
        (CONTENT[:-1], "has 10,239 bytes, not 10,240"),
        (CONTENT + b"\0", "has 10,241 bytes"),
        (CONTENT[:-1] + b"\0", "has the MD5"),
    ],
)
def test_another_file_of_the_name_is_refused_and_kept(serve, tmp_path, content, words):
    archive, requests = serve()
    (tmp_path / "small.tar.gz").write_bytes(content)
    with pytest.raises(
        DatasetError, match=rf"small.tar.gz {words}.*; remove it, then run again to download it, or put"
    ):
        read(archive, tmp_path)
    # it may be somebody's own
    assert (tmp_path / "small.tar.gz").read_bytes() == content and requests == []


def test_what_is_read_is_what_was_verified(tmp_path):
    archive = PublishedArchive("Small", "http://x.invalid/s.zip", len(CONTENT), hashlib.md5(CONTENT).hexdigest())
    (tmp_path / "s.zip").write_bytes(CONTENT)
    with archive.opened(tmp_path) as file:
        (tmp_path / "other").write_bytes(b"another")
        (tmp_path / "other").replace(tmp_path / "s.zip")
        assert file.read() == CONTENT


def test_addresses_and_hashes_are_torchvisions():
    for ours, theirs in (
        (cifar.CIFAR10.archive, torchvision.datasets.CIFAR10),
        (cifar.CIFAR100.archive, torchvision.datasets.CIFAR100),
        (stl10.ARCHIVE, torchvision.datasets.STL10),
    ):
        assert (ours.address, ours.name, ours.md5) == (theirs.url, theirs.filename, theirs.tgz_md5)


# --- through the datasets


@each_dataset
def test_offline_the_message_says_which_file_to_put_where(make_params, tmp_path, monkeypatch, offline, name):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    archive = PUBLISHED[name]
    with pytest.raises(DatasetError) as caught:
        load_raw(make_params({"dataset": name}), Path())
    message, folder = str(caught.value), tmp_path / "data/downloads"
    assert offline == [archive.address] and f"{archive.dataset} could not be downloaded from {offline[0]}" in message
    assert "no network" in message and "or use dataset: image_folder" in message
    assert f"put {archive.name} ({archive.size:,} bytes, MD5 {archive.md5}) into {folder}" in message


@each_dataset
@pytest.mark.parametrize("content", [b"", b"corrupt archive"])
def test_another_file_is_not_parsed(make_params, tmp_path, monkeypatch, offline, name, content):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    path = tmp_path / "data/downloads" / PUBLISHED[name].name
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    with pytest.raises(DatasetError, match=rf"{path} has {len(content)} bytes, not {PUBLISHED[name].size:,}"):
        load_raw(make_params({"dataset": name}), Path())


SMALL = {
    "cifar10": lambda folder: small_cifar(folder, cifar.CIFAR10, 3),
    "cifar100": lambda folder: small_cifar(folder, cifar.CIFAR100, 3),
    "stl10": lambda folder: small_stl10(folder, (1, 1)),
    "tiny_imagenet": lambda folder: small_tiny_imagenet(folder, per_class=(1, 1)),
}


def load_small(monkeypatch, name, found, folder):
    if name.startswith("cifar"):
        return cifar.load(found, folder)
    module = {"stl10": stl10, "tiny_imagenet": tiny_imagenet}[name]
    monkeypatch.setattr(module, "ARCHIVE", found)
    return module.load(folder)


@each_dataset
def test_a_damaged_archive_is_refused(tmp_path, monkeypatch, offline, name):
    found, _ = SMALL[name](tmp_path)
    assert len(load_small(monkeypatch, name, found, tmp_path).train) > 0
    path = tmp_path / PUBLISHED[name].name
    whole = path.read_bytes()
    for position in (0, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        with pytest.raises(DatasetError, match=r"has the MD5"):
            load_small(monkeypatch, name, found, tmp_path)
    path.write_bytes(whole[:-1])
    with pytest.raises(DatasetError, match=rf"has {len(whole) - 1:,} bytes, not {len(whole):,}"):
        load_small(monkeypatch, name, found, tmp_path)


class Payload:
    """What runs a command when it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


@pytest.mark.parametrize("which", [cifar.CIFAR10, cifar.CIFAR100], ids=["cifar10", "cifar100"])
@pytest.mark.parametrize("same_size", [False, True])
def test_a_pickle_that_runs_commands_does_not_run(tmp_path, offline, which, same_size):
    """As the archive, in an archive, and unpacked beside it as torchvision would look for it."""
    mark, downloads = tmp_path / "ran", tmp_path / "downloads"
    evil = pickle.dumps(Payload(mark))
    pickle.loads(evil)
    assert mark.exists()
    mark.unlink()

    downloads.mkdir()
    small, (train, _) = small_cifar(downloads, which, 3)
    path = downloads / which.archive.name
    good = path.read_bytes()
    members = dict.fromkeys((*which.train, which.test, which.meta), evil)
    for name, content in members.items():
        (downloads / name).parent.mkdir(exist_ok=True)
        (downloads / name).write_bytes(content)
    for wrong in (evil, tar_gz(tmp_path / "evil.tar.gz", members).read_bytes()):
        path.write_bytes(wrong.ljust(len(good), b"\0") if same_size else wrong)
        with pytest.raises(DatasetError, match=r"has the MD5" if same_size else r"bytes, not"):
            cifar.load(small, downloads)
    path.unlink()
    with pytest.raises(DatasetError, match="no network"):
        cifar.load(small, downloads)
    path.write_bytes(good)
    assert (cifar.load(small, downloads).train.images == train[0]).all()
    assert not mark.exists()


# --- paths within archives


def outsiders(target):
    """Members of a tar that lead outside, by every way there is."""
    found = []
    for name, kind in (
        ("../outside", tarfile.REGTYPE),
        (str(target.parent / "absolute"), tarfile.REGTYPE),
        ("stl10_binary/../../outside", tarfile.REGTYPE),
        ("link", tarfile.SYMTYPE),
        ("hard", tarfile.LNKTYPE),
        ("device", tarfile.CHRTYPE),
        ("pipe", tarfile.FIFOTYPE),
    ):
        member = tarfile.TarInfo(name)
        member.type = kind
        member.linkname = str(target)
        found.append(member)
    return found


def test_members_that_lead_outside_are_passed_over(tmp_path, monkeypatch):
    inside = tmp_path / "a/b/downloads"
    inside.mkdir(parents=True)
    (tmp_path / "secret").write_bytes(b"secret")
    archive, splits = small_stl10(inside, (1, 1), outsiders(tmp_path / "secret"))
    monkeypatch.setattr(stl10, "ARCHIVE", archive)
    before = files_below(tmp_path)
    assert (stl10.load(inside).train.images == splits[0][0]).all()
    assert files_below(tmp_path) == before

    zipped = {"../outside.txt": b"x", str(tmp_path / "absolute.txt"): b"x", "tiny-imagenet-200/../../outside.txt": b"x"}
    zipped["tiny-imagenet-200/train/../images/../../../outside.JPEG"] = b"x"
    archive, splits = small_tiny_imagenet(inside, per_class=(1, 1), extra=zipped)
    monkeypatch.setattr(tiny_imagenet, "ARCHIVE", archive)
    before = files_below(tmp_path)
    assert len(tiny_imagenet.load(inside).train) == len(splits[0])
    assert files_below(tmp_path) == before


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE])
def test_a_link_in_place_of_a_file_is_not_followed(tmp_path, kind):
    (tmp_path / "secret").write_bytes(b"secret")
    member = tarfile.TarInfo("folder/wanted")
    member.type, member.linkname = kind, str(tmp_path / "secret")
    tar_gz(tmp_path / "s.tar.gz", {"folder/other": b"other", "./folder/third": b"third"}, [member])
    with (tmp_path / "s.tar.gz").open("rb") as file:
        assert tar_members(file, {"folder/other", "folder/third"}) == {
            "folder/other": b"other",
            "folder/third": b"third",
        }
        file.seek(0)
        with pytest.raises(DatasetError, match=r"s.tar.gz lacks the file folder/wanted"):
            tar_members(file, {"folder/other", "folder/wanted"})
