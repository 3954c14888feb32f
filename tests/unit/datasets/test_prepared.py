"""Datasets: what is read is what was there, and what cannot be used is refused by name."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import sklearn.datasets
import torch
import zarr

from pag_core.datasets.labelled_images import LabelledImages, RawDataset
from pag_core.datasets.loading import load_raw
from pag_core.datasets.prepared import consolidate_metadata, fingerprint, read_dataset
from pag_core.datasets.preparing import write_dataset
from pag_core.datasets.splits import split
from pag_core.errors import DatasetError, ParamsError
from pag_core.pipeline.checkpoint import RunFolder
from tests.fixtures.samples import make_labelled, write_prepared

SPLIT = {"validation_fraction": 0.2, "test_fraction": 0.25, "images_per_class": None, "seed": 3}


def raw_dataset(classes=4, per_class=20, test=False):
    train = make_labelled(classes, per_class, (1, 4, 4), 1)
    names = tuple(f"c{label}" for label in range(classes))
    return RawDataset(names, train, make_labelled(classes, 8, (1, 4, 4), 2) if test else None)


def keys(part):
    """Every image with its label as bytes; the random images are all different."""
    return [image.tobytes() + bytes([label]) for image, label in zip(part.images, part.labels, strict=True)]


def test_digits_are_scikit_learns(make_params):
    bunch = sklearn.datasets.load_digits()
    raw = load_raw(make_params({"dataset": "digits"}), Path())
    assert raw.test is None and raw.class_names == tuple("0123456789")
    assert raw.train.images.shape == (1797, 1, 8, 8)
    assert np.array_equal(raw.train.labels, bunch.target)
    assert np.bincount(raw.train.labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    # sixteen grey levels over 0..255: the original comes back exactly
    assert np.array_equal(np.rint(raw.train.images[:, 0] / 255 * 16), bunch.images)
    assert raw.train.images.min() == 0 and raw.train.images.max() == 255
    # one value by hand: grey 13 of 16
    assert raw.train.images[0, 0, 0, 3] == round(13 * 255 / 16) == 207


@pytest.mark.parametrize("own_test", [False, True])
def test_splits_are_disjoint_stratified_and_cover_everything(own_test):
    raw = raw_dataset(test=own_test)
    parts = split(raw, **SPLIT)
    everything = keys(raw.train) + (keys(raw.test) if own_test else [])
    assert sorted(key for part in parts.values() for key in keys(part)) == sorted(everything)
    assert len(set(everything)) == len(everything)
    counts = {name: np.bincount(part.labels).tolist() for name, part in parts.items()}
    expected = (
        {"train": [16] * 4, "validation": [4] * 4, "test": [8] * 4}
        if own_test
        else {"train": [12] * 4, "validation": [3] * 4, "test": [5] * 4}
    )
    assert counts == expected


@pytest.mark.parametrize("own_test", [False, True])
def test_the_order_of_the_test_split_is_shuffled_by_the_seed(own_test):
    # sorted by class, as publishers often do
    raw = raw_dataset(per_class=60, test=own_test)
    by_class = {
        name: None if part is None else part.take(np.argsort(part.labels, kind="stable"))
        for name, part in (("train", raw.train), ("test", raw.test))
    }
    raw = dataclasses.replace(raw, **by_class)
    first = split(raw, **SPLIT)
    labels = first["test"].labels
    assert len(set(labels[: len(labels) // 4].tolist())) > 1
    again, other = split(raw, **SPLIT), split(raw, **{**SPLIT, "seed": 4})
    for name in first:
        assert keys(first[name]) == keys(again[name])
        assert keys(first[name]) != keys(other[name])


@pytest.mark.parametrize("own_test", [False, True])
def test_images_per_class_caps_every_class(own_test):
    raw = raw_dataset(test=own_test)
    parts = split(raw, **{**SPLIT, "images_per_class": 5})
    assert np.bincount(parts["test"].labels).tolist() == [5] * 4
    rest = np.bincount(parts["train"].labels) + np.bincount(parts["validation"].labels)
    assert rest.tolist() == [5] * 4
    everything = [key for part in parts.values() for key in keys(part)]
    assert len(set(everything)) == len(everything) == 40
    assert set(everything) <= set(keys(raw.train) + (keys(raw.test) if own_test else []))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"images_per_class": 1}, r"smallest class: '.*' with 1\) .*prepare.validation_fraction=0.2"),
        ({"test_fraction": 0.01}, "prepare.test_fraction=0.01"),
    ],
)
def test_too_few_images_for_a_split_are_refused(changes, words):
    with pytest.raises(DatasetError, match=words):
        split(raw_dataset(), **{**SPLIT, **changes})


@pytest.mark.parametrize("fraction", [0.15, 0.85])
def test_a_class_that_is_in_one_split_alone_is_refused(fraction):
    """Stratification gives all of a small class to one side."""
    labels = np.repeat(np.arange(3), [40, 40, 2])
    images = LabelledImages(np.arange(82 * 4, dtype=np.int64).astype(np.uint8).reshape(82, 1, 2, 2), labels)
    raw = RawDataset(class_names=("ant", "bee", "cat"), train=images, test=images)
    with pytest.raises(DatasetError, match=r"leaves one of the splits without the class 'cat', which has 2 images"):
        split(raw, **{**SPLIT, "validation_fraction": fraction})


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        (np.zeros((2, 1, 4, 4)), np.zeros(2, np.int64)),
        (np.zeros((2, 4, 4), np.uint8), np.zeros(2, np.int64)),
        (np.zeros((2, 1, 4, 4), np.uint8), np.zeros(3, np.int64)),
        (np.zeros((2, 1, 4, 4), np.uint8), np.zeros(2, np.int32)),
    ],
)
def test_images_and_labels_must_agree(images, labels):
    with pytest.raises(DatasetError):
        LabelledImages(images, labels)


def test_the_fingerprint_sees_every_pixel_label_and_name():
    parts = split(raw_dataset(), **SPLIT)
    names = ("a", "b", "c", "d")
    first = fingerprint(names, parts)
    assert (
        fingerprint(names, {name: LabelledImages(p.images.copy(), p.labels.copy()) for name, p in parts.items()})
        == first
    )
    seen = {first, fingerprint(("a", "b", "c", "e"), parts)}
    for name in parts:
        part = parts[name]
        images, labels = part.images.copy(), part.labels.copy()
        images[-1, 0, -1, -1] ^= 1
        seen.add(fingerprint(names, {**parts, name: LabelledImages(images, part.labels)}))
        labels[-1] = (labels[-1] + 1) % 4
        seen.add(fingerprint(names, {**parts, name: LabelledImages(part.images, labels)}))
        seen.add(fingerprint(names, {**parts, name: part.take(np.arange(len(part))[::-1])}))
    seen.add(fingerprint(names, {**parts, "test": parts["validation"], "validation": parts["test"]}))
    assert len(seen) == 12


@pytest.fixture
def prepared(tmp_path):
    parts = split(raw_dataset(), **SPLIT)
    write_prepared(tmp_path / "d.zarr", ("a", "b", "c", "d"), parts, {"seed": 3})
    return tmp_path / "d.zarr", parts


def test_prepared_round_trip(prepared, cpu):
    path, parts = prepared
    dataset = read_dataset(path)
    assert dataset.class_names == ("a", "b", "c", "d") and dataset.classes == 4
    assert dataset.image_shape == (1, 4, 4)
    assert dataset.fingerprint == fingerprint(dataset.class_names, parts)
    for name, part in parts.items():
        assert np.array_equal(dataset.splits[name].images.numpy(), part.images)
        assert np.array_equal(dataset.splits[name].labels.numpy(), part.labels)
    pixels = dataset.splits["train"].to(cpu).pixels(torch.tensor([3, 1]))
    assert pixels.dtype == torch.float32 and pixels.is_contiguous()
    assert np.allclose(pixels.numpy(), parts["train"].images[[3, 1]] / 255.0, atol=1e-7)


def test_several_shards_round_trip(tmp_path, monkeypatch):
    monkeypatch.setattr("pag_core.datasets.prepared.IMAGES_PER_SHARD", 7)
    parts = split(raw_dataset(), **SPLIT)
    write_prepared(tmp_path / "d.zarr", ("a", "b", "c", "d"), parts, {})
    assert len(list((tmp_path / "d.zarr" / "train" / "images" / "c").iterdir())) == 7
    assert np.array_equal(read_dataset(tmp_path / "d.zarr").splits["train"].images.numpy(), parts["train"].images)


def read_whole(path):
    return {name: part.images for name, part in read_dataset(path).splits.items()}


def chunk_files(path):
    return sorted(file for file in path.rglob("*") if file.is_file() and file.name != "zarr.json")


def test_every_flipped_byte_and_deleted_chunk_is_refused(prepared):
    path, _ = prepared
    files = chunk_files(path)
    assert len(files) == 6
    for file in files:
        whole = file.read_bytes()
        for position in (0, len(whole) // 2, len(whole) - 1):
            broken = bytearray(whole)
            broken[position] ^= 0x10
            file.write_bytes(broken)
            with pytest.raises(DatasetError, match=r"d.zarr"):
                read_whole(path)
        file.unlink()
        with pytest.raises(DatasetError, match=r"d.zarr"):
            read_whole(path)
        file.write_bytes(whole)
    read_whole(path)


def test_changed_metadata_is_refused(prepared):
    path, _ = prepared
    metadata = path / "zarr.json"
    whole = metadata.read_text()
    for old, new in (('"a"', '"e"'), ('"fingerprint"', '"fingerprinx"'), ('"class_names"', '"klass_names"'), ("{", "")):
        assert old in whole
        metadata.write_text(whole.replace(old, new, 1))
        with pytest.raises(DatasetError, match=r"d.zarr"):
            read_dataset(path)


@pytest.mark.parametrize("what", ["nothing", "an empty folder"])
def test_a_missing_dataset_names_the_stage(tmp_path, what):
    if what == "an empty folder":
        (tmp_path / "d.zarr").mkdir()
    with pytest.raises(DatasetError, match="prepare"):
        read_dataset(tmp_path / "d.zarr")


def test_images_of_two_splits_are_counted(tmp_path):
    parts = {name: make_labelled(2, 5, (1, 4, 4), seed) for seed, name in enumerate(("train", "validation", "test"))}
    assert write_prepared(tmp_path / "a.zarr", ("a", "b"), parts, {}).repeated == {"validation": 0, "test": 0}
    parts["test"].images[[1, 4, 7]] = parts["train"].images[[3, 3, 0]]
    parts["validation"].images[2] = parts["train"].images[9]
    assert write_prepared(tmp_path / "b.zarr", ("a", "b"), parts, {}).repeated == {"validation": 1, "test": 3}


# --- shard by shard


@pytest.fixture
def sharded(tmp_path, monkeypatch):
    """A dataset of shards of 7 images, and its parts."""
    monkeypatch.setattr("pag_core.datasets.prepared.IMAGES_PER_SHARD", 7)
    parts = split(raw_dataset(), **SPLIT)
    write_prepared(tmp_path / "d.zarr", ("a", "b", "c", "d"), parts, {})
    return tmp_path / "d.zarr", parts


def shard_file(path, name, number):
    return path / name / "images/c" / str(number) / "0/0/0"


@pytest.mark.parametrize(
    "rows", [slice(0, 3), slice(6, 8), slice(7, 14), slice(20, None), slice(3, 40, 5), slice(5, 5)]
)
def test_of_a_slice_the_shards_that_it_lies_in_are_read(sharded, rows):
    path, parts = sharded
    count = len(parts["train"])
    start, stop, _ = rows.indices(count)
    touched = set(range(start // 7, max(start // 7, -(-stop // 7))))
    for number in range(-(-count // 7)):
        if number not in touched:
            shard_file(path, "train", number).unlink()
    train = read_dataset(path).splits["train"]
    assert np.array_equal(train.chosen(rows).numpy(), parts["train"].images[rows])
    assert np.array_equal(train.labels.numpy(), parts["train"].labels) and train.image_shape == (1, 4, 4)


def test_a_shard_of_another_split_or_place_is_refused(sharded):
    """Every chunk is whole, so that no checksum of Zarr's own sees it."""
    path, _ = sharded
    first, second = (shard_file(path, "train", number) for number in (0, 1))
    first.write_bytes(second.read_bytes())
    dataset = read_dataset(path)
    dataset.splits["train"].chosen(slice(7, 14))
    with pytest.raises(DatasetError, match=r"has changed since it was prepared \(shard 0 of the train images\)"):
        dataset.splits["train"].pixels(slice(0, 2))


def test_a_dataset_of_the_former_format_is_refused_with_the_remedy(sharded):
    path, _ = sharded
    content = json.loads((path / "zarr.json").read_text())
    del content["attributes"]["shards"]
    (path / "zarr.json").write_text(json.dumps(content))
    with pytest.raises(DatasetError, match=r"of an earlier version; run the prepare stage again"):
        read_dataset(path)


class Counted:
    """Images that say which of them were read, and fail at the `broken`-th call."""

    def __init__(self, images, broken=None):
        self.images, self.shape, self.read_rows, self.broken = images, images.shape, [], broken

    def read(self, rows):
        if self.broken == len(self.read_rows):
            raise KeyboardInterrupt
        self.read_rows.append(rows.tolist())
        return self.images[rows]


def content_of(path):
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


@pytest.mark.parametrize("broken", [0, 1, 3, 8])
def test_a_killed_run_goes_on_after_its_last_shard(tmp_path, sharded, broken):
    expected, parts = content_of(sharded[0]), sharded[1]
    folder, names = RunFolder(tmp_path / "run"), ("a", "b", "c", "d")

    def lazy(at=None):
        sources = {name: Counted(part.images) for name, part in parts.items()}
        if at is not None:
            done = 0
            for name in ("train", "validation", "test"):
                shards = -(-len(parts[name]) // 7)
                if done <= at < done + shards:
                    sources[name].broken = at - done
                done += shards
        return sources, {name: LabelledImages(sources[name], part.labels) for name, part in parts.items()}

    _, splits = lazy(broken)
    with pytest.raises(KeyboardInterrupt):
        write_dataset(tmp_path / "e.zarr", names, splits, {}, folder=folder)
    assert not (tmp_path / "e.zarr").exists()
    sources, splits = lazy()
    write_dataset(tmp_path / "e.zarr", names, splits, {}, folder=folder)
    assert sum(len(source.read_rows) for source in sources.values()) == 12 - broken
    assert max(len(rows) for source in sources.values() for rows in source.read_rows) <= 7
    assert content_of(tmp_path / "e.zarr") == expected


def test_a_finished_shard_that_was_damaged_since_is_written_again(tmp_path, sharded):
    expected, parts = content_of(sharded[0]), sharded[1]
    folder, names = RunFolder(tmp_path / "run"), ("a", "b", "c", "d")
    broken = LabelledImages(Counted(parts["test"].images, broken=1), parts["test"].labels)
    with pytest.raises(KeyboardInterrupt):
        write_dataset(tmp_path / "e.zarr", names, parts | {"test": broken}, {}, folder=folder)
    shard_file(folder.path / "dataset", "train", 2).write_bytes(b"torn")
    shard_file(folder.path / "dataset", "validation", 0).unlink()
    write_dataset(tmp_path / "e.zarr", names, parts, {}, folder=folder)
    assert content_of(tmp_path / "e.zarr") == expected


def test_equal_data_are_equal_whatever_the_number_of_threads(monkeypatch):
    import torch

    from pag_core.pipeline.provenance import provenance

    def record(device):
        return provenance(params={}, seed=1, inputs={}, device=device)

    several = torch.get_num_threads() + 1
    alike, apart = record(None), record(torch.device("cpu"))
    monkeypatch.setattr("torch.get_num_threads", lambda: several)
    assert record(None) == alike and record(torch.device("cpu")) != apart


def test_more_images_than_a_split_has_are_refused(dataset):
    test = dataset.splits["test"]
    assert test.first(len(test), "autoattack.images") == slice(0, len(test))
    with pytest.raises(
        ParamsError, match=r"autoattack.images is 16, but the split has 15 images; set it to at most 15"
    ):
        test.first(16, "autoattack.images")


def test_the_order_in_which_zarr_lists_arrays_is_not_in_the_bytes(tmp_path, monkeypatch):
    group = zarr.create_group(tmp_path / "group")
    for name in ("first", "second", "third"):
        group.create_array(name, shape=2, dtype="int64")
    consolidated, found = zarr.consolidate_metadata, []

    def listed(order):
        def consolidate(folder):
            consolidated(folder)
            content = json.loads((folder / "zarr.json").read_text(encoding="utf-8"))
            arrays = content["consolidated_metadata"]["metadata"]
            content["consolidated_metadata"]["metadata"] = {
                name: arrays[name] for name in sorted(arrays, reverse=order)
            }
            (folder / "zarr.json").write_text(json.dumps(content), encoding="utf-8")

        return consolidate

    for order in (False, True):
        monkeypatch.setattr(zarr, "consolidate_metadata", listed(order))
        consolidate_metadata(tmp_path / "group")
        found.append((tmp_path / "group/zarr.json").read_bytes())
        assert set(zarr.open_group(tmp_path / "group", mode="r", use_consolidated=True).array_keys()) == {
            "first",
            "second",
            "third",
        }
    assert found[0] == found[1]
