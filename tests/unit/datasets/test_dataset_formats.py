"""What CIFAR, STL-10 and Tiny ImageNet are read as: against torchvision, on small archives of the true formats."""

import dataclasses
import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torchvision.datasets
from PIL import Image, ImageFile

from pag_core.datasets import cifar, loading, stl10, tiny_imagenet
from pag_core.datasets.loading import load_raw
from pag_core.datasets.resizing import at_size
from pag_core.errors import DatasetError
from tests.fixtures.archives import WORDNET_IDS, small_cifar, small_stl10, small_tiny_imagenet
from tests.fixtures.read_folder import read_folder
from tests.fixtures.samples import make_labelled


@pytest.fixture
def downloads(tmp_path, monkeypatch):
    """The folder of downloads."""
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    loading.downloads().mkdir(parents=True)
    return loading.downloads()


def test_downloads_lie_in_the_main_repository(monkeypatch):
    monkeypatch.setenv("DVC_ROOT", "/repository")
    assert loading.downloads() == Path("/repository/data/downloads")
    monkeypatch.delenv("DVC_ROOT")
    assert loading.downloads() == Path("data/downloads")


@pytest.mark.parametrize("name", ["CIFAR10", "CIFAR100"])
def test_cifar_is_what_torchvision_reads(make_params, downloads, monkeypatch, name):
    small, splits = small_cifar(downloads, getattr(cifar, name), 7)
    monkeypatch.setattr(cifar, name, small)
    raw = load_raw(make_params({"dataset": name.lower()}), Path())
    assert raw.class_names == tuple(f"name {label}" for label in range(7))

    with tarfile.open(downloads / small.archive.name) as archive:
        archive.extractall(downloads, filter="data")
    upstream = getattr(torchvision.datasets, name)
    monkeypatch.setattr(upstream, "_check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda path, md5: True)
    for part, train, (images, labels) in ((raw.train, True, splits[0]), (raw.test, False, splits[1])):
        theirs = upstream(downloads, train=train)
        assert np.array_equal(part.images, theirs.data.transpose(0, 3, 1, 2)) and np.array_equal(part.images, images)
        assert part.labels.tolist() == theirs.targets == labels.tolist()
        assert raw.class_names == tuple(theirs.classes)


def test_stl10_is_what_torchvision_reads(make_params, downloads, monkeypatch):
    archive, splits = small_stl10(downloads, (2, 3))
    monkeypatch.setattr(stl10, "ARCHIVE", archive)
    raw = load_raw(make_params({"dataset": "stl10"}), Path())
    assert raw.class_names == tuple(f"class{label}" for label in range(10))

    with tarfile.open(downloads / archive.name) as file:
        file.extractall(downloads, filter="data")
    upstream = torchvision.datasets.STL10
    monkeypatch.setattr(upstream, "_check_integrity", lambda self: True)
    for part, name, (images, labels) in ((raw.train, "train", splits[0]), (raw.test, "test", splits[1])):
        theirs = upstream(downloads, split=name)
        assert np.array_equal(part.images, theirs.data) and np.array_equal(part.images, images)
        assert np.array_equal(part.labels, theirs.labels) and np.array_equal(part.labels, labels)
        assert list(raw.class_names) == theirs.classes


def test_tiny_imagenet_is_what_pil_reads(make_params, downloads, monkeypatch):
    archive, splits = small_tiny_imagenet(downloads)
    monkeypatch.setattr(tiny_imagenet, "ARCHIVE", archive)
    raw = load_raw(make_params({"dataset": "tiny_imagenet"}), Path())
    # by WordNet id, and the first synonym of each
    assert raw.class_names == ("goldfish", "Egyptian cat", "freight car", "acorn")
    assert raw.train.images.shape == (24, 3, 64, 64) and raw.test.images.shape == (16, 3, 64, 64)

    with zipfile.ZipFile(downloads / archive.name) as file:
        file.extractall(downloads)
    theirs = torchvision.datasets.ImageFolder(downloads / "tiny-imagenet-200/train")
    assert theirs.classes == sorted(WORDNET_IDS) and theirs.targets == raw.train.labels.tolist()
    for row, (image, _) in enumerate(theirs):
        assert np.array_equal(raw.train.images[row], np.asarray(image).transpose(2, 0, 1))
    for row, (_, content, wordnet_id) in enumerate(splits[1]):
        pixels = np.asarray(Image.open(io.BytesIO(content)))
        assert np.array_equal(raw.test.images[row], pixels.transpose(2, 0, 1))
        assert sorted(WORDNET_IDS)[raw.test.labels[row]] == wordnet_id
    grey = [row for row, image in enumerate(raw.train.images) if (image == image[:1]).all()]
    assert len(grey) == 4  # of the archive's images, one of each class


def test_no_exception_of_pillow_leaves_without_the_name_of_tiny_imagenets_file(make_params, downloads, monkeypatch):
    """As where Pillow was built without JPEG; the archive's bytes are the published ones."""
    archive, _ = small_tiny_imagenet(downloads)
    monkeypatch.setattr(tiny_imagenet, "ARCHIVE", archive)

    def failing(self):
        raise OSError("decoder jpeg not available")

    monkeypatch.setattr(ImageFile.ImageFile, "load", failing)
    words = rf"{archive.name}: tiny-imagenet-200/train/\w+/images/\S+.JPEG cannot be read as an image \(.*decoder jpeg"
    with pytest.raises(DatasetError, match=words):
        load_raw(make_params({"dataset": "tiny_imagenet"}), Path())


# --- prepare.image_size


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("side", [5, 8, 20])
def test_every_dataset_is_resized_as_an_image_folder(tmp_path, channels, side):
    part = make_labelled(2, 3, (channels, 8, 8), 1)
    for row, (pixels, label) in enumerate(zip(part.images, part.labels, strict=True)):
        for split in ("train", "test"):
            folder = tmp_path / split / f"c{label}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels[0] if channels == 1 else pixels.transpose(1, 2, 0)).save(folder / f"{row}.png")
    folder = read_folder(tmp_path, image_size=side)
    raw = dataclasses.replace(folder, train=part, test=part.take(np.arange(4)))
    resized = at_size(raw, side)
    by_class = np.argsort(part.labels, kind="stable")
    assert resized.train.images.shape == (6, channels, side, side)
    # an image folder makes RGB of grey
    expected = folder.train.images[:, :1] if channels == 1 else folder.train.images
    assert np.array_equal(resized.train.images[by_class], expected)
    assert np.array_equal(resized.test.images, resized.train.images[:4])
    assert np.array_equal(resized.train.labels, part.labels)
    assert at_size(raw, None) is raw
    assert at_size(dataclasses.replace(raw, test=None), side).test is None


def test_image_size_reaches_what_is_prepared(make_params, downloads, monkeypatch):
    archive, _ = small_stl10(downloads, (1, 1))
    monkeypatch.setattr(stl10, "ARCHIVE", archive)
    found = load_raw(make_params({"dataset": "stl10", "prepare.image_size": 32}), Path())
    assert found.train.images.shape == found.test.images.shape == (10, 3, 32, 32)
    assert load_raw(make_params({"prepare.image_size": 16}), Path()).train.images.shape == (1797, 1, 16, 16)
