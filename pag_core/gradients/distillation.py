"""Distillation of gradients into a dense store, shard by shard, resumable, by one process or several."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from pag_core.compute.processes import process_count, ranks, this_process
from pag_core.compute.randomness import generator
from pag_core.datasets.prepared import Dataset, Split
from pag_core.errors import ParamsError
from pag_core.gradient_store.writer import GradientWriter, ShardContent, quantised
from pag_core.params.sections import GradientStoreParams
from pag_core.pipeline.checkpoint import RunFolder
from pag_core.pipeline.loop import progress_bar

# starting a process takes seconds: without being asked for, one is started only for this many shards
SHARDS_PER_PROCESS = 8

Shard = tuple[str, int, slice]


class GradientMaker(Protocol):
    """What makes the gradients: `ScoreBased` (Eq. 8), or `OwnGradients`."""

    @property
    def device(self) -> torch.device:
        """Where the images are wanted."""

    def batches(
        self, images: torch.Tensor, labels: torch.Tensor, classes: torch.Tensor, draws: torch.Generator
    ) -> Iterator[tuple[slice, torch.Tensor]]:
        """g(x, c) float [B, K, C, H, W] of one run of images after another, with its place among them.

        `images` float [N, C, H, W] in [0, 1], their `labels` int64 [N] and `classes` int64 [N, K]; all randomness comes from
        `draws`, a generator of the device.
        """


@dataclass(frozen=True)
class Distillation:
    """What is distilled: the format of the store, and the seed of the noise.

    With a `teacher`, the folder of a saved diffusion model, only the held-out test images are distilled, and the store holds
    a copy of it for training to ask (`source: sbg_online`).
    """

    store: GradientStoreParams
    seed: int
    teacher: Path | None = None


def distilling_processes(wanted: int | None, device: torch.device, shards: int) -> int:
    """How many processes share `shards`: `wanted`, or if None one per eight shards, at most one a core (one on a GPU)."""
    if wanted is not None:
        return min(wanted, shards)
    return max(1, min(process_count(None, device), shards // SHARDS_PER_PROCESS))


def distill(
    path: Path,
    maker: GradientMaker,
    dataset: Dataset,
    work: Distillation,
    *,
    source: str,
    folder: RunFolder,
    provenance: dict[str, Any],
    measured: dict[str, float],
    processes: int = 1,
) -> None:
    """Write g(x, c) for every training image, and for the first held-out test images, to the store `path` of `source`.

    Of a training image all classes are distilled, or those of `work.store.classes_per_image`; of a test image all.

    `measured` is what was measured of what makes them; the store's manifest holds it beside `provenance`.

    Each shard draws its noise from a stream of its own, so the store does not depend on where the work was interrupted
    or which process wrote which shard. Finished shards of a killed run are kept. All `processes` take their share,
    and only this process returns; raises RankLost if one of them failed.
    """
    if this_process().leads:
        folder.forget_claims()
        open_writer(folder, dataset, work, leads=True)
    images = images_of(dataset, work)
    still_open = sum(folder.load_unit(unit) is None for unit in shards_of(dataset, work))
    with progress_bar("distillation", sum(images.values()), 0, "image") as bar, ranks(processes, units=still_open):
        writer = open_writer(folder, dataset, work, leads=False)
        splits = {name: dataset.splits[name].to(maker.device) for name in images}
        with _BackgroundWriter(writer, folder) as background:
            for split, number, rows in writer.shards():
                if folder.claim(_unit(split, number)) and not _is_finished(writer, folder, split, number):
                    _distill_shard(maker, splits[split], (split, number, rows), work, dataset.classes, background)
                bar.update(rows.stop - rows.start)
    finished: dict[str, dict[str, Any]] = {}
    for split, number, _ in writer.shards():
        finished.update(folder.load_unit(_unit(split, number)) or {})
    writer.finish(path, source, provenance, measured, finished, teacher=work.teacher)


def images_of(dataset: Dataset, work: Distillation) -> dict[str, int]:
    """The number of images of each split whose gradients are stored."""
    test = {"test": min(work.store.held_out_images, len(dataset.splits["test"]))}
    return test if work.teacher is not None else {"train": len(dataset.splits["train"]), **test}


def shards_of(dataset: Dataset, work: Distillation) -> list[str]:
    """The names of the shards, each of which is a unit of work."""
    size = work.store.images_per_shard
    return [
        _unit(split, number) for split, count in images_of(dataset, work).items() for number in range(-(-count // size))
    ]


def open_writer(folder: RunFolder, dataset: Dataset, work: Distillation, *, leads: bool) -> GradientWriter:
    """The writer of the store that grows in `folder`."""
    return GradientWriter(
        folder.path / "store", dataset, images=images_of(dataset, work), params=work.store, leads=leads
    )


def require_kept_classes(store: GradientStoreParams, classes: int) -> None:
    """Raise ParamsError where more classes are to be kept of an image than the dataset has."""
    if (kept := store.classes_per_image) is not None and kept > classes:
        raise ParamsError(
            f"params.yaml: gradient_store.classes_per_image is {kept}, the dataset has {classes} classes; set it to at most "
            "that, or null for all"
        )


def stored_classes(labels: torch.Tensor, classes: int, kept: int, draws: torch.Generator) -> torch.Tensor:
    """The `kept` of `classes` of each image of `labels` int64 [N]: its own first, then others at random; int64 [N, kept]."""
    scores = torch.rand(len(labels), classes, generator=draws).scatter_(1, labels[:, None], 2.0)
    return scores.topk(kept, dim=1).indices


def _unit(split: str, number: int) -> str:
    return f"{split}-{number}"


def _is_finished(writer: GradientWriter, folder: RunFolder, split: str, number: int) -> bool:
    """Whether a shard of an earlier run is still what was written."""
    records = folder.load_unit(_unit(split, number))
    return records is not None and writer.holds(records)


def _distill_shard(
    maker: GradientMaker,
    data: Split,
    shard: Shard,
    work: Distillation,
    count: int,
    background: "_BackgroundWriter",
) -> None:
    """Compute a shard of a dataset of `count` classes, in the store's dtype from batch to batch, and hand it to the writer."""
    split, number, rows = shard
    pixels, device = data.pixels(rows), maker.device
    pinned = device.type == "cuda"
    classes = None
    if (kept := background.writer.kept(split)) is not None:
        draws = generator("cpu", work.seed, "kept classes", split, number)
        classes = stored_classes(data.labels[rows].cpu(), count, kept, draws)
    wanted = torch.arange(count).expand(len(pixels), count) if classes is None else classes
    shape = (*wanted.shape, *pixels.shape[1:])
    codes = torch.empty(shape, dtype=getattr(torch, work.store.dtype), pin_memory=pinned)
    scales = torch.empty(shape[:2], dtype=torch.float32, pin_memory=pinned)
    draws = generator(device, work.seed, "distillation", split, number)
    for part, gradients in maker.batches(pixels, data.labels[rows], wanted.to(device), draws):
        for whole, found in zip((codes, scales), quantised(gradients, work.store.dtype), strict=True):
            whole[part].copy_(found, non_blocking=pinned)
    arrived = None
    if pinned:
        # the writer waits for the copies; this thread moves on to the next shard
        arrived = torch.cuda.Event()
        arrived.record(torch.cuda.current_stream(device))
    background.write(shard, ShardContent(codes, scales, classes), arrived)


class _BackgroundWriter:
    """Writes shards in one thread while the next is computed; its error is raised at the next shard or at the end."""

    def __init__(self, writer: GradientWriter, folder: RunFolder) -> None:
        self.writer = writer
        self.folder = folder
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="store")
        self.pending: Future[None] | None = None

    def __enter__(self) -> "_BackgroundWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._wait()
        finally:
            self.thread.shutdown(cancel_futures=True)

    def write(self, shard: Shard, content: ShardContent, arrived: torch.cuda.Event | None) -> None:
        """Write a shard once `arrived`; waits for the one before, so that at most two shards are in memory."""
        self._wait()
        self.pending = self.thread.submit(self._write, shard, content, arrived)

    def _wait(self) -> None:
        if self.pending is not None:
            self.pending.result()

    def _write(self, shard: Shard, content: ShardContent, arrived: torch.cuda.Event | None) -> None:
        split, number, rows = shard
        if arrived is not None:
            arrived.synchronize()
        self.folder.save_unit(_unit(split, number), self.writer.write_shard(split, rows, content))
