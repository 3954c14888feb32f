"""Feeding a training run with the target gradients of its store, so that it never waits for them.

Zarr is the archive: reading random rows of it costs a chunk each. Stored gradients are streamed once, checksums checked, into
an array on the device or in host memory, or into a raw file beside the run folders that is mapped; both visit the images
in one order, so that free memory does not decide a result. On request shards are read in a shuffled order and their images
mixed within a window. The other sources are computed on the device.
"""

import warnings
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch

from pag_core.datasets.prepared import Dataset
from pag_core.gradient_store.budget import Choice, Need, choose, measured_room
from pag_core.gradient_store.shards import ShardedArray
from pag_core.gradient_store.store import STORED, GradientStore
from pag_core.gradient_store.targets import DenseGradients, TargetGradients
from pag_core.gradient_store.window import WindowGradients
from pag_core.params.sections import FeedParams
from pag_core.pipeline.artifacts import readable_bytes
from pag_core.pipeline.checkpoint import RunFolder
from pag_core.pipeline.raw_copies import hold_raw_copy, remove_stale_copies

# batches that a background thread fetches before they are trained on
AHEAD = 4


def open_feed(
    store: GradientStore,
    dataset: Dataset,
    device: torch.device,
    *,
    params: FeedParams,
    folder: RunFolder,
    inputs: dict[str, str] | None = None,
    processes: int = 1,
) -> TargetGradients:
    """The target gradients of the training split in the way that `params` asks for or memory allows; one line says which.

    Caches are beside `folder`. `processes` of this machine share its memory, each with its own gradients. Raises
    StoreError as `store.gradients` does, and ParamsError where a mode does not fit.
    """
    if store.manifest["kind"] not in STORED:
        return store.gradients(dataset, "train", device, inputs=inputs)
    store.require_made_from(dataset, inputs)
    codes, scales, kept = store.stored("train")
    cache = cache_path(store, folder)
    # room for the copy, of which copies of other contents may take some
    remove_stale_copies(cache)
    choice = _chosen(codes, scales, cache, device, params, processes)
    print(choice_line(codes.shape, choice, params), flush=True)
    pinned = device.type == "cuda"
    if choice.mode == "resident":
        place = device if choice.on_gpu else torch.device("cpu")
        away = pinned and not choice.on_gpu
        return DenseGradients(
            codes.resident(place), scales.resident(place), kept, ahead=AHEAD if away else 0, pinned=away
        )
    factors = scales.resident(torch.device("cpu"))
    if choice.mode == "memory_map":
        return DenseGradients(mapped_codes(codes, cache), factors, kept, ahead=AHEAD, pinned=pinned)
    return WindowGradients(codes, factors, kept, window=params.window_shards or 1, ahead=AHEAD, pinned=pinned)


def cache_path(store: GradientStore, folder: RunFolder) -> Path:
    """The file beside the run folders that holds the raw codes of this content of a store's training split."""
    return folder.path.parent / f"gradients-{store.path.stem}-train-{store.manifest['checksum'][:20]}.raw"


def _chosen(
    codes: ShardedArray, scales: ShardedArray, cache: Path, device: torch.device, params: FeedParams, processes: int
) -> Choice:
    whole = codes.array.nbytes
    need = Need(whole, scales.array.nbytes, shard=whole // codes.shape[0] * codes.per_shard, shards=len(codes))
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
        f"target gradients of {shape[0]} images and {shape[1]} classes each: {place} (feed.mode {params.mode}), "
        f"{readable_bytes(choice.bytes)} of {readable_bytes(choice.room)} that may be used"
    )


def mapped_codes(codes: ShardedArray, cache: Path) -> torch.Tensor:
    """The codes as a read-only map of the raw copy `cache`, which this process holds from here on."""

    def write(file: BinaryIO) -> None:
        for _, values in codes:
            # not by tofile, which does not report a block that a full disk did not take
            file.write(np.ascontiguousarray(values).data)

    hold_raw_copy(cache, write)
    mapped = np.memmap(cache, dtype=codes.array.dtype, mode="r", shape=codes.shape)
    with warnings.catch_warnings():
        # torch has no read-only tensors; nothing writes to this one
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(mapped)
