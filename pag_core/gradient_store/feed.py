"""Feeding a training run with the target gradients of its store, so that it never waits for them.

Zarr is the archive: reading random rows of it costs a chunk each. Stored gradients are streamed once, checksums checked, into
an array on the device or in host memory, or into a raw file beside the run folders that is mapped; both visit the images
in one order, so that free memory does not decide a result. On request shards are read in a shuffled order and their images
mixed within a window. The other sources are computed on the device.
"""

from pathlib import Path

import torch

from pag_core.datasets.prepared import AHEAD, Dataset
from pag_core.errors import ParamsError
from pag_core.gradient_store.shards import ShardedArray
from pag_core.gradient_store.store import STORED, GradientStore
from pag_core.gradient_store.targets import DenseGradients, TargetGradients
from pag_core.gradient_store.window import WindowGradients
from pag_core.params.sections import FeedParams, Params
from pag_core.pipeline.budget import Need, chosen_mode
from pag_core.pipeline.checkpoint import RunFolder
from pag_core.pipeline.raw_copies import mapped_copy


def open_feed(
    store: GradientStore,
    dataset: Dataset,
    device: torch.device,
    *,
    params: FeedParams,
    folder: RunFolder,
    inputs: dict[str, str] | None = None,
    processes: int = 1,
    taken: int = 0,
) -> TargetGradients:
    """The target gradients of the training split in the way that `params` asks for or memory allows; one line says which.

    Caches are beside `folder`. `processes` of this machine share its memory, each with its own gradients; images have
    `taken` bytes of the budget of each. Raises
    StoreError as `store.gradients` does, and ParamsError where a mode does not fit.
    """
    if store.manifest["kind"] not in STORED:
        return store.gradients(dataset, "train", device, inputs=inputs)
    store.require_made_from(dataset, inputs)
    codes, scales, kept = store.stored("train")
    cache, whole = cache_path(store, folder), codes.array.nbytes
    need = Need(
        "target gradients", whole, scales.array.nbytes, whole // codes.shape[0] * codes.per_shard, len(codes),
        remedy=", or make the store with a smaller gradient_store.images_per_shard",
    )  # fmt: skip
    choice = chosen_mode(
        params,
        need,
        device,
        cache,
        processes=processes,
        of=f"{codes.shape[0]} images and {codes.shape[1]} classes each",
        taken=taken,
    )
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


def require_feedable(params: Params) -> None:
    """Raise ParamsError where windows are asked for, and the source needs images from everywhere in each step."""
    if params.source == "nn" and params.feed.window_shards is not None:
        raise ParamsError(
            f"params.yaml: feed.window_shards is {params.feed.window_shards}, but source nn has its neighbors anywhere in the "
            "training split; set feed.window_shards: null (feed.mode memory_map needs little memory too)"
        )


def cache_path(store: GradientStore, folder: RunFolder) -> Path:
    """The file beside the run folders that holds the raw codes of this content of a store's training split."""
    return folder.path.parent / f"gradients-{store.path.stem}-train-{store.manifest['checksum'][:20]}.raw"


def mapped_codes(codes: ShardedArray, cache: Path) -> torch.Tensor:
    """The codes as a read-only map of the raw copy `cache`, which this process holds from here on."""
    return mapped_copy(cache, (values for _, values in codes), codes.array.dtype, codes.shape)
