"""Feeding a training run with the target gradients of its store, so that it never waits for them.

Zarr is the archive: reading random rows of it costs a chunk each. A dense store is streamed once, checksums checked, into
an array on the device or in host memory, or into a raw file beside the run folders that is mapped; where neither fits,
shards are read in a shuffled order and their images mixed within a window. The other sources are computed on the device.
"""

import math
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import torch

from pag_core.artifacts import replacing_file
from pag_core.checkpoint import RunFolder
from pag_core.datasets.prepared import Dataset
from pag_core.errors import ParamsError
from pag_core.gradients.budget import Choice, Need, choose, measured_room, readable
from pag_core.gradients.manifest import read_manifest, require_same_origin
from pag_core.gradients.shards import ShardedArray
from pag_core.gradients.store import open_gradients
from pag_core.gradients.targets import DenseGradients, TargetGradients
from pag_core.gradients.window import WindowGradients
from pag_core.params import FeedParams
from pag_core.processes import this_process

# batches that a background thread fetches before they are trained on
AHEAD = 4
UNIT = "feed"


def open_feed(
    path: Path,
    dataset: Dataset,
    device: torch.device,
    *,
    params: FeedParams,
    folder: RunFolder,
    made_from: dict[str, str] | None = None,
) -> TargetGradients:
    """The target gradients of the training split in the way that `params` asks for or memory allows, said in one line.

    `folder` keeps the order of a run to be gone on with, and caches lie beside it. Raises StoreError as `open_gradients`
    does, and ParamsError where a mode does not fit or is not that of the run to be gone on with.
    """
    manifest = read_manifest(path)
    if manifest["kind"] != "dense":
        return open_gradients(path, dataset, "train", device, made_from=made_from)
    require_same_origin(path, manifest, dataset, made_from)
    codes, scales = (ShardedArray(path, f"train/{name}") for name in ("gradient", "scale"))
    cache = cache_path(path, folder)
    choice = _chosen(codes, scales, cache, device, params, folder)
    print(choice_line(codes.shape, choice, params.mode), flush=True)
    pinned = device.type == "cuda"
    if choice.mode == "resident":
        place = device if choice.on_gpu else torch.device("cpu")
        away = pinned and not choice.on_gpu
        return DenseGradients(codes.resident(place), scales.resident(place), ahead=AHEAD if away else 0, pinned=away)
    factors = scales.resident(torch.device("cpu"))
    if choice.mode == "memory_map":
        return DenseGradients(mapped_codes(codes, cache), factors, ahead=AHEAD, pinned=pinned)
    return WindowGradients(codes, factors, window=choice.window_shards, ahead=AHEAD, pinned=pinned)


def cache_path(store: Path, folder: RunFolder) -> Path:
    """The file beside the run folders that holds the raw codes of this content of a store's training split."""
    return folder.path.parent / f"gradients-{store.stem}-train-{read_manifest(store)['checksum'][:20]}.raw"


def _chosen(
    codes: ShardedArray, scales: ShardedArray, cache: Path, device: torch.device, params: FeedParams, folder: RunFolder
) -> Choice:
    """The choice for the run in `folder`, which keeps the order of images that an earlier, killed run began with."""
    begun: dict[str, Any] = folder.load_unit(UNIT) or {"order": None, "window_shards": params.window_shards}
    forced = None if params.mode == "auto" else "window" if params.mode == "shuffled_window" else "permutation"
    if forced is not None and begun["order"] not in (None, forced):
        raise ParamsError(
            f"params.yaml: feed.mode is {params.mode}, but the unfinished run in {folder.path} was begun with the order "
            f"{begun['order']}; set feed.mode: auto to go on with it, or remove that folder to begin anew"
        )
    itemsize = codes.dtype.itemsize
    need = Need(
        codes=math.prod(codes.shape) * itemsize,
        scales=math.prod(scales.shape) * scales.dtype.itemsize,
        shard=codes.per_shard * math.prod(codes.shape[1:]) * itemsize,
        shards=len(codes),
    )
    room = measured_room(device, cache.parent, params.budget_gb, this_process().count)
    if cache.exists():
        room = replace(room, disk=room.disk + cache.stat().st_size)
    choice = choose(params.mode, need, room, window_shards=begun["window_shards"], order=begun["order"])
    if begun["order"] is None and this_process().leads:
        folder.save_unit(UNIT, {"order": choice.order, "window_shards": choice.window_shards})
    return choice


def choice_line(shape: tuple[int, ...], choice: Choice, mode: str) -> str:
    """What was chosen and by which numbers."""
    place = {
        ("resident", True): "resident on the GPU",
        ("resident", False): "resident in host memory",
        ("memory_map", False): "a memory-mapped file in .cache",
        ("shuffled_window", False): f"windows of {choice.window_shards} shuffled shards",
    }[choice.mode, choice.on_gpu]
    return (
        f"target gradients of {shape[0]} images and {shape[1]} classes: {place} (feed.mode {mode}), "
        f"{readable(choice.bytes)} of {readable(choice.room)} that may be used"
    )


def mapped_codes(codes: ShardedArray, cache: Path) -> torch.Tensor:
    """The codes as a read-only map of the raw file `cache`, which is made, whole or not at all, where it is not there.

    One of another size is made anew; those that were made of earlier stores of that name are removed.
    """
    size = math.prod(codes.shape) * codes.dtype.itemsize
    (cache.parent / "locks").mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(cache.parent / "locks" / cache.name):
        name = cache.name.rsplit("-", 1)[0]
        for stale in cache.parent.glob(f"{name}-*.raw"):
            if stale != cache or stale.stat().st_size != size:
                stale.unlink()
        if not cache.exists():
            with replacing_file(cache) as partial, partial.open("wb") as file:
                for _, values in codes:
                    np.ascontiguousarray(values).tofile(file)
        mapped = np.memmap(cache, dtype=codes.array.dtype, mode="r", shape=codes.shape)
    with warnings.catch_warnings():
        # torch knows no read-only tensors; nothing writes to this one
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(mapped)
