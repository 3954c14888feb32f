"""Writing a prepared dataset, shard by shard, by one process or several, whole or not at all."""

import hashlib
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.codecs import Crc32cCodec, ZstdCodec

from pag_core.compute.processes import ranks, this_process
from pag_core.datasets.labelled_images import SPLITS, LabelledImages
from pag_core.datasets.prepared import consolidate_metadata, fingerprint_of, sha256, shards_of
from pag_core.errors import RankLost
from pag_core.pipeline.artifacts import file_record, replacing_file, replacing_folder
from pag_core.pipeline.checkpoint import RunFolder
from pag_core.pipeline.loop import progress_bar

HASH_BYTES = 16  # by which images that are equal to the pixel are found


@dataclass(frozen=True)
class Written:
    """What was seen as a dataset was written.

    `repeated` says how many images of the validation and of the test split are in the training split too, pixel for pixel,
    `changes` how many of all images were changed in which way as they were read.
    """

    repeated: dict[str, int]
    changes: Counter[str]


def write_dataset(
    path: Path,
    class_names: tuple[str, ...],
    splits: dict[str, LabelledImages],
    provenance: dict[str, Any],
    *,
    folder: RunFolder,
    processes: int = 1,
) -> Written:
    """Write a prepared dataset to `path`, whole or not at all, shard by shard, so that few images are in memory.

    It grows in `folder`, where a killed run finds its finished shards. All `processes` take their share; the bytes do not
    depend on their number. Only rank 0 returns; raises RankLost if another failed.
    """
    growing = folder.path / "dataset"
    work = {
        f"{name}-{number}": (name, number, rows)
        for name in SPLITS
        for number, rows in enumerate(shards_of(len(splits[name]), splits[name].shape[1:]))
    }
    if this_process().leads:
        folder.forget_claims()
        _create(growing, splits)
    still_open = sum(folder.load_unit(unit) is None for unit in work)
    with progress_bar("prepare", sum(map(len, splits.values())), 0, "image") as bar, ranks(processes, units=still_open):
        root = zarr.open_group(growing, mode="r+")
        for unit, (name, number, rows) in work.items():
            if folder.claim(unit) and not _holds(growing, folder.load_unit(unit)):
                folder.save_unit(unit, _write_shard(growing, root, name, number, splits[name], rows, folder))
            bar.update(rows.stop - rows.start)
    found = {unit: folder.load_unit(unit) for unit in work}
    if absent := [unit for unit, result in found.items() if result is None]:
        raise RankLost(f"no process has written {absent[0]}; finished work is kept, run again to resume")
    shards = {name: [found[unit]["sha256"] for unit, (of, *_) in work.items() if of == name] for name in SPLITS}  # type: ignore[index]
    stated: dict[str, Any] = {
        "class_names": list(class_names),
        "fingerprint": fingerprint_of(
            class_names, {name: (part.shape, part.labels, shards[name]) for name, part in splits.items()}
        ),
        "shards": shards,
        "provenance": provenance,
    }
    zarr.open_group(growing, mode="r+").attrs.update(stated)
    consolidate_metadata(growing)
    written = Written(
        _repeated(folder, work), sum((Counter(result["changes"]) for result in found.values() if result), Counter())
    )
    with replacing_folder(path) as partial:
        partial.rmdir()
        shutil.move(growing, partial)
    return written


def _create(growing: Path, splits: dict[str, LabelledImages]) -> None:
    """The arrays of all splits, with the labels; those of a run that was killed stay."""
    if (growing / "zarr.json").exists():
        return
    with replacing_folder(growing) as partial:
        root = zarr.create_group(partial, zarr_format=3)
        for name, part in splits.items():
            size = shards_of(len(part), part.shape[1:])[0].stop
            codecs: Any = {"compressors": [ZstdCodec(), Crc32cCodec()]}
            root.create_array(
                f"{name}/images", shape=part.shape, dtype="uint8", chunks=(size, *part.shape[1:]), **codecs
            )
            labels = root.create_array(
                f"{name}/labels", shape=part.labels.shape, dtype="int64", chunks=part.labels.shape, **codecs
            )
            labels[:] = part.labels


def _write_shard(
    growing: Path, root: Any, name: str, number: int, part: LabelledImages, rows: slice, folder: RunFolder
) -> dict[str, Any]:
    """Write one shard; its record, with the hash of each image beside it."""
    changes = part.changes
    changes.clear()
    pixels = np.ascontiguousarray(part.read(rows.start, rows.stop))
    root[f"{name}/images"][rows] = pixels
    hashes = b"".join(hashlib.blake2b(image, digest_size=HASH_BYTES).digest() for image in pixels)
    with replacing_file(folder.path / "hashes" / f"{name}-{number}") as partial:
        partial.write_bytes(hashes)
    file = f"{name}/images/c/{number}/0/0/0"
    return {
        "sha256": sha256(pixels),
        "changes": dict(changes),
        "files": {file: file_record(growing / file)},
    }


def _holds(growing: Path, record: dict[str, Any] | None) -> bool:
    """Whether a shard of an earlier run is still what was written."""
    return record is not None and all(
        (growing / name).exists() and file_record(growing / name) == stated for name, stated in record["files"].items()
    )


def _repeated(folder: RunFolder, work: dict[str, tuple[str, int, slice]]) -> dict[str, int]:
    def hashes(split: str) -> Iterator[bytes]:
        for unit, (name, *_) in work.items():
            if name == split:
                whole = (folder.path / "hashes" / unit).read_bytes()
                yield from (whole[start : start + HASH_BYTES] for start in range(0, len(whole), HASH_BYTES))

    known = set(hashes("train"))
    return {split: sum(one in known for one in hashes(split)) for split in ("validation", "test")}
