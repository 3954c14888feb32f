"""Feeding a training run with the target gradients of its store, so that it never waits for them.

Zarr is the archive: reading random rows of it costs a chunk each. A dense store is streamed once, checksums checked, into
an array on the device or in host memory, or into a raw file beside the run folders that is mapped; both visit the images
in one order, so that free memory does not decide a result. On request shards are read in a shuffled order and their images
mixed within a window. The other sources are computed on the device.
"""

import fcntl
import math
import warnings
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import filelock
import numpy as np
import torch

from pag_core.artifacts import read_sealed_json, readable_bytes, replacing_file, write_sealed_json
from pag_core.checkpoint import RunFolder
from pag_core.datasets.prepared import Dataset
from pag_core.gradients.budget import Choice, Need, choose, measured_room
from pag_core.gradients.manifest import file_record, read_manifest, require_same_origin
from pag_core.gradients.shards import ShardedArray
from pag_core.gradients.store import open_gradients
from pag_core.gradients.targets import DenseGradients, TargetGradients
from pag_core.gradients.window import WindowGradients
from pag_core.params import FeedParams

# batches that a background thread fetches before they are trained on
AHEAD = 4
# the maps that this process reads, open and locked so that no other run removes them
_held: list[BinaryIO] = []


def open_feed(
    path: Path,
    dataset: Dataset,
    device: torch.device,
    *,
    params: FeedParams,
    folder: RunFolder,
    made_from: dict[str, str] | None = None,
    processes: int = 1,
) -> TargetGradients:
    """The target gradients of the training split in the way that `params` asks for or memory allows, said in one line.

    Caches lie beside `folder`. `processes` of this machine share its memory, each with its own gradients. Raises
    StoreError as `open_gradients` does, and ParamsError where a mode does not fit.
    """
    manifest = read_manifest(path)
    if manifest["kind"] != "dense":
        return open_gradients(path, dataset, "train", device, made_from=made_from)
    require_same_origin(path, manifest, dataset, made_from)
    codes, scales = (ShardedArray(path, f"train/{name}") for name in ("gradient", "scale"))
    cache = cache_path(path, folder)
    choice = _chosen(codes, scales, cache, device, params, processes)
    print(choice_line(codes.shape, choice, params), flush=True)
    pinned = device.type == "cuda"
    if choice.mode == "resident":
        place = device if choice.on_gpu else torch.device("cpu")
        away = pinned and not choice.on_gpu
        return DenseGradients(codes.resident(place), scales.resident(place), ahead=AHEAD if away else 0, pinned=away)
    factors = scales.resident(torch.device("cpu"))
    if choice.mode == "memory_map":
        return DenseGradients(mapped_codes(codes, cache), factors, ahead=AHEAD, pinned=pinned)
    return WindowGradients(codes, factors, window=params.window_shards or 1, ahead=AHEAD, pinned=pinned)


def cache_path(store: Path, folder: RunFolder) -> Path:
    """The file beside the run folders that holds the raw codes of this content of a store's training split."""
    return folder.path.parent / f"gradients-{store.stem}-train-{read_manifest(store)['checksum'][:20]}.raw"


def _chosen(
    codes: ShardedArray, scales: ShardedArray, cache: Path, device: torch.device, params: FeedParams, processes: int
) -> Choice:
    itemsize = codes.dtype.itemsize
    need = Need(
        codes=math.prod(codes.shape) * itemsize,
        scales=math.prod(scales.shape) * scales.dtype.itemsize,
        shard=codes.per_shard * math.prod(codes.shape[1:]) * itemsize,
        shards=len(codes),
    )
    room = measured_room(device, cache.parent, params.budget_gb, processes)
    if cache.exists():
        room = replace(room, disk=room.disk + cache.stat().st_size)
    return choose(params.mode, need, room, window_shards=params.window_shards)


def choice_line(shape: tuple[int, ...], choice: Choice, params: FeedParams) -> str:
    """What was chosen and by which numbers."""
    place = {
        ("resident", True): "resident on the GPU",
        ("resident", False): "resident in host memory",
        ("memory_map", False): "a memory-mapped file in .cache",
        ("window", False): f"windows of {params.window_shards} shuffled shards",
    }[choice.mode, choice.on_gpu]
    return (
        f"target gradients of {shape[0]} images and {shape[1]} classes: {place} (feed.mode {params.mode}), "
        f"{readable_bytes(choice.bytes)} of {readable_bytes(choice.room)} that may be used"
    )


def mapped_codes(codes: ShardedArray, cache: Path) -> torch.Tensor:
    """The codes as a read-only map of the raw file `cache`, which is made, whole or not at all, where it is not there.

    One whose SHA-256 is not the one stated beside it is made anew. The file is locked for as long as this process lives;
    those of earlier stores of that name are removed unless another process holds them.
    """
    name = cache.name.rsplit("-", 1)[0]
    (cache.parent / "locks").mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(cache.parent / "locks" / f"{name}.raw"):
        for stale in cache.parent.glob(f"{name}-*.raw"):
            if stale != cache:
                remove_unheld(stale)
        if cache.exists() and not _is_as_written(cache):
            print(f"{cache} is not what was written; it is made anew.", flush=True)
            cache.unlink()
        if not cache.exists():
            with replacing_file(cache) as partial:
                with partial.open("wb") as file:
                    for _, values in codes:
                        np.ascontiguousarray(values).tofile(file)
                # first: a map without its record would be made anew, one with another's believed
                write_sealed_json(_record_of(cache), file_record(partial))
        held = cache.open("rb")
        fcntl.flock(held, fcntl.LOCK_SH)
        _held.append(held)
        mapped = np.memmap(cache, dtype=codes.array.dtype, mode="r", shape=codes.shape)
    with warnings.catch_warnings():
        # torch knows no read-only tensors; nothing writes to this one
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(mapped)


def _record_of(cache: Path) -> Path:
    return cache.with_suffix(".raw.json")


def _is_as_written(cache: Path) -> bool:
    """Whether the map has the size and SHA-256 that were stated when it was written: one sequential read of it."""
    try:
        stated = read_sealed_json(_record_of(cache))
    except (OSError, ValueError):
        return False
    return {**file_record(cache), "checksum": stated["checksum"]} == stated


def remove_unheld(cache: Path) -> bool:
    """Remove a raw map with its record unless a process reads it; whether it was removed."""
    with cache.open("rb") as file:
        if not _locked_alone(file):
            return False
        cache.unlink()
    _record_of(cache).unlink(missing_ok=True)
    return True


def is_held(cache: Path) -> bool:
    """Whether a process reads a raw map."""
    with cache.open("rb") as file:
        return not _locked_alone(file)


def _locked_alone(file: BinaryIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
