"""A store of some classes of each image against one of all: bytes, reading it once, and fetching a batch of it."""

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from benchmarks.feeding import in_turn
from benchmarks.interleaved import interleaved
from benchmarks.measurement import Measurement, report
from benchmarks.synthetic_store import synthetic_dataset
from pag_core.compute.randomness import generator
from pag_core.datasets.prepared import Dataset
from pag_core.gradient_store.feed import open_feed
from pag_core.gradient_store.store import GradientStore
from pag_core.gradient_store.targets import TargetGradients
from pag_core.gradient_store.writer import GradientWriter, ShardContent
from pag_core.gradients.distillation import stored_classes
from pag_core.params.sections import FeedParams, GradientStoreParams
from pag_core.pipeline.checkpoint import RunFolder
from pag_core.pipeline.stage import run

SEED = 3407
DRAWN = 3
BATCHES = 512
# the images of a dataset's training split, its classes, the side of an image in pixels, and the images measured: dense
# stores of 0.6 and 1.3 GB
SIZES = {"cifar100": (50_000, 100, 32, 2048), "tiny_imagenet": (100_000, 200, 64, 512)}
CPU = torch.device("cpu")


def write_store(path: Path, dataset: Dataset, kept: int | None, images_per_shard: int) -> int:
    """Write a store of random int8 codes, and return its bytes; what the codes are changes nothing that is measured."""
    params = GradientStoreParams.model_validate(
        {
            "address": None,
            "classes_per_image": kept,
            "dtype": "int8",
            "images_per_shard": images_per_shard,
            "images_per_chunk": min(16, images_per_shard),
            "held_out_images": 1,
        }
    )
    train = dataset.splits["train"]
    writer = GradientWriter(path.with_suffix(".work"), dataset, images={"train": len(train)}, params=params)
    draws = generator("cpu", SEED, "codes", kept or 0)
    finished: dict[str, Any] = {}
    for split, _, rows in writer.shards():
        shape = (rows.stop - rows.start, kept or dataset.classes)
        codes = torch.randint(-127, 128, (*shape, *dataset.image_shape), generator=draws, dtype=torch.int8)
        classes = None if kept is None else stored_classes(train.labels[rows], dataset.classes, kept, draws)
        finished |= writer.write_shard(split, rows, ShardContent(codes, torch.ones(shape), classes))
    writer.finish(path, "sbg", {"inputs": {}}, {}, finished)
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def mapped(store: Path, dataset: Dataset) -> TargetGradients:
    """The store as a map of a file, as a training reads what exceeds its memory."""
    folder = store.parent / f"run-{store.stem}" / "classifier"
    folder.mkdir(parents=True)
    params = FeedParams.model_validate({"mode": "memory_map", "budget_gb": None, "window_shards": None})
    return open_feed(GradientStore(store), dataset, CPU, params=params, folder=RunFolder(folder))


def fetching(targets: TargetGradients, dataset: Dataset, batch_size: int) -> Callable[[], Any]:
    """Fetch random batches of three slots of each image, another each time, of more rows than a processor's cache holds."""
    draws, slots = generator("cpu", SEED, "batches"), targets.slots(dataset.classes)
    images = len(dataset.splits["train"])
    drawn = [
        (
            torch.randperm(images, generator=draws)[:batch_size],
            torch.rand(batch_size, slots, generator=draws).topk(DRAWN, dim=1).indices,
        )
        for _ in range(BATCHES)
    ]
    return in_turn(
        lambda indices, chosen: (targets.rows(indices, chosen).codes, targets.classes_of(indices, chosen)), drawn
    )


def measure(
    name: str, kept: int, *, size: tuple[int, int, int, int], batch_size: int, rounds: int
) -> dict[str, Measurement]:
    """Bytes and times of both stores on a sample, scaled to all images of the dataset where they grow with them."""
    images, classes, side, sample = size
    dataset = synthetic_dataset(sample, classes, side)
    with tempfile.TemporaryDirectory() as folder:
        stores, gigabytes = {}, {}
        for kind, number in (("dense", None), ("sparse", kept)):
            stores[kind] = Path(folder) / f"{kind}.zarr"
            written = write_store(stores[kind], dataset, number, min(256, sample))
            gigabytes[kind] = written / sample * images / 1e9
        read = interleaved(
            {
                kind: lambda store=store: GradientStore(store).gradients(dataset, "train", CPU)  # type: ignore[misc]
                for kind, store in stores.items()
            },
            rounds=rounds,
            warm_up=1,
            device=CPU,
        )
        feeds = {kind: mapped(store, dataset) for kind, store in stores.items()}
        fetched = interleaved(
            {kind: fetching(feed, dataset, batch_size) for kind, feed in feeds.items()},
            rounds=rounds,
            warm_up=1,
            device=CPU,
            at_least_seconds=0.02,
        )
    what = f"all {classes} classes of {images} images 3x{side}x{side}"
    found = {"bytes": Measurement(gigabytes["sparse"] / gigabytes["dense"], "of its bytes", what)}
    found["read.speedup"] = read.speedup("sparse", "dense", f"reading once, checksums checked, {what}")
    found["batch.speedup"] = fetched.speedup(
        "sparse", "dense", f"{batch_size} images, {DRAWN} classes each, mapped file"
    )
    for kind in stores:
        found[f"{kind}.gigabytes"] = Measurement(gigabytes[kind], "GB", None)
        found[f"{kind}.read"] = Measurement(read.median(kind) / sample * images, "s", f"{images} images, scaled")
        found[f"{kind}.batch"] = Measurement(fetched.median(kind) * 1000, "ms", None)
    return {f"{name}.{key}": value for key, value in found.items()}


def main(
    device: Annotated[str, typer.Option(help="Only the CPU takes part.")] = "cpu",
    kept: Annotated[int, typer.Option(help="Classes kept of each image.")] = 10,
    batch_size: Annotated[int, typer.Option(help="Images of a batch.")] = 64,
    rounds: Annotated[int, typer.Option(help="Rounds of timing.")] = 9,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 1,
    smallest: Annotated[bool, typer.Option("--smallest", help="32 images of few classes, 1 round: a trial.")] = False,
    output: Annotated[Path | None, typer.Option(help="Write the measurements as JSON.")] = None,
) -> None:
    """Compare a store of some classes of each image with one of all, at CIFAR-100's and Tiny ImageNet's size."""
    torch.set_num_threads(threads)
    found: dict[str, Measurement] = {}
    for name, size in SIZES.items():
        chosen = (100, 8, 8, 32) if smallest else size
        found |= measure(
            name,
            4 if smallest else kept,
            size=chosen,
            batch_size=8 if smallest else batch_size,
            rounds=1 if smallest else rounds,
        )
    report("sparse_store", found, output, device=device, arguments=sys.argv[1:])


if __name__ == "__main__":
    run(main)
