"""The int8 gradient store against the same gradients in float32: size on disk and direction."""

import sys
import tempfile
from pathlib import Path
from typing import Annotated

import torch
import typer

from benchmarks.measurement import Measurement, report
from benchmarks.synthetic_store import IMAGES_PER_SHARD, shard_gradients, synthetic_dataset, write_synthetic_store
from pag_core.datasets.prepared import Dataset
from pag_core.gradient_store.store import GradientStore
from pag_core.pipeline.stage import run

DTYPES = ("int8", "float16")


def bytes_of(store: Path) -> int:
    """Bytes of all files of a store, its manifest included."""
    return sum(path.stat().st_size for path in store.rglob("*") if path.is_file())


def direction_errors(store: Path, dataset: Dataset) -> torch.Tensor:
    """1 - cosine, in float64, between each gradient as read from the store and as it was: [images * classes]."""
    stored = GradientStore(store).gradients(dataset, "train", torch.device("cpu"))
    images, every_class = len(dataset.splits["train"]), torch.arange(dataset.classes)
    errors = []
    for number, start in enumerate(range(0, images, IMAGES_PER_SHARD)):
        rows = slice(start, min(start + IMAGES_PER_SHARD, images))
        original = shard_gradients(dataset, number, rows).double().flatten(2)
        indices = torch.arange(rows.start, rows.stop)
        read = stored(indices, every_class.expand(len(indices), -1)).double().flatten(2)
        cosine = (original * read).sum(2) / (original.norm(dim=2) * read.norm(dim=2))
        errors.append(1 - cosine.flatten())
    return torch.cat(errors)


def measure(images: int, classes: int, side: int) -> dict[str, Measurement]:
    """Size and direction error of the store in each reduced dtype."""
    dataset = synthetic_dataset(images, classes, side)
    plain_bytes = images * classes * 3 * side * side * torch.float32.itemsize
    against = f"a plain float32 array of the same {images} x {classes} gradients 3x{side}x{side}"
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for dtype in DTYPES:
            store = Path(folder) / f"{dtype}.zarr"
            write_synthetic_store(store, dataset, dtype)
            errors = direction_errors(store, dataset)
            found[f"{dtype}.size"] = Measurement(bytes_of(store) / plain_bytes, "of its bytes", against)
            found[f"{dtype}.direction_error_mean"] = Measurement(float(errors.mean()), "1 - cosine", against)
            found[f"{dtype}.direction_error_max"] = Measurement(float(errors.max()), "1 - cosine", against)
    return found


def main(
    device: Annotated[
        str, typer.Option(help="Taken for the sake of one command line; the store is on the disk.")
    ] = "cpu",
    images: Annotated[int, typer.Option(help="Images whose gradients are stored.")] = 2048,
    smallest: Annotated[bool, typer.Option("--smallest", help="600 images of 8x8 pixels: a trial.")] = False,
    output: Annotated[Path | None, typer.Option(help="Write the measurements as JSON.")] = None,
) -> None:
    """Compare the size and the directions of stored gradients with those in float32."""
    # on 8x8 pixels the metadata would weigh more than a CIFAR-sized store's, so the trial's share is above a quarter
    found = measure(600, 3, 8) if smallest else measure(images, 10, 32)
    report("gradient_store", found, output, device=device, arguments=sys.argv[1:])


if __name__ == "__main__":
    run(main)
