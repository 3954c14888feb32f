"""Fetching a random training batch of target gradients: from the resident int8 array against from Zarr."""

import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
import zarr

from benchmarks.arithmetic import EPOCH_IMAGES
from benchmarks.interleaved import interleaved
from benchmarks.measurement import Measurement, report
from benchmarks.synthetic_store import synthetic_dataset, write_synthetic_store
from pag_core.compute.randomness import generator
from pag_core.datasets.prepared import Dataset
from pag_core.gradient_store.feed import open_feed
from pag_core.gradient_store.store import GradientStore
from pag_core.params.sections import FeedParams
from pag_core.pipeline.checkpoint import RunFolder
from pag_core.pipeline.stage import run

ZARR = {"zarr_image_by_image": "one image after the other", "zarr_selection": "in one selection"}
MODES = ("resident", "memory_map")
BATCHES = 64  # different ones, taken in turn, so that no batch stays in a cache of the processor

Fetch = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


def project_fetch(mode: str, store: Path, dataset: Dataset, device: torch.device) -> Fetch:
    """The project's way to fetch codes int8 [B, K, 3, H, W] and scales [B, K]; the only place that knows its interface."""
    params = FeedParams.model_validate({"mode": mode, "budget_gb": None, "window_shards": None})
    run_folder = store.parent / f"run-{mode}"
    run_folder.mkdir()
    targets = open_feed(GradientStore(store), dataset, device, params=params, folder=RunFolder(run_folder))

    def fetch(indices: torch.Tensor, classes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        # rows that are fetched ahead, in the background, are asked for and come on the CPU
        place = torch.device("cpu") if targets.ahead else device
        rows = targets.rows(indices.to(place), classes.to(place)).to(device)
        assert rows.scales is not None
        return rows.codes, rows.scales

    return fetch


def zarr_fetch(name: str, store: Path, device: torch.device) -> Fetch:
    """Random reads of the same rows from the Zarr arrays, all classes of an image lying together."""
    root: Any = zarr.open_group(store, mode="r", use_consolidated=True)

    def read(array: Any, indices: torch.Tensor) -> torch.Tensor:
        if name == "zarr_selection":
            return torch.from_numpy(array.oindex[indices.numpy()])
        return torch.from_numpy(np.stack([array[index] for index in indices.tolist()]))

    def fetch(indices: torch.Tensor, classes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        places = torch.arange(len(indices))[:, None]
        codes, scales = (read(root[f"train/{array}"], indices)[places, classes] for array in ("gradient", "scale"))
        return codes.to(device), scales.to(device)

    return fetch


def batches(images: int, classes: int, batch_size: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Random image indices [B] and all classes in a random order [B, K], on the CPU as a training loop draws them."""
    draws = generator("cpu", 3407, "benchmark batches")
    return [
        (
            torch.randperm(images, generator=draws)[:batch_size],
            torch.rand(batch_size, classes, generator=draws).argsort(1),
        )
        for _ in range(BATCHES)
    ]


def require_same(fetches: dict[str, Fetch], batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    """Raise RuntimeError unless every way fetches the same bytes."""
    reference = next(iter(ZARR))
    codes, scales = fetches[reference](*batch)
    for name, fetch in fetches.items():
        other_codes, other_scales = fetch(*batch)
        if not (torch.equal(codes, other_codes) and torch.equal(scales, other_scales)):
            raise RuntimeError(f"{name} fetches other gradients than {reference}")


def in_turn(fetch: Fetch, drawn: list[tuple[torch.Tensor, torch.Tensor]]) -> Callable[[], Any]:
    """A call that fetches the next of the batches each time."""

    def forever() -> Iterator[Any]:
        while True:
            for batch in drawn:
                yield fetch(*batch)

    calls = forever()
    return lambda: next(calls)


def measure(
    images: int, classes: int, side: int, *, batch_size: int, rounds: int, device: torch.device
) -> dict[str, Measurement]:
    """The time of a batch in each mode, and its ratio to random Zarr reads."""
    dataset = synthetic_dataset(images, classes, side)
    drawn = batches(images, classes, batch_size)
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "sbg.zarr"
        write_synthetic_store(store, dataset, "int8")
        fetches = {mode: project_fetch(mode, store, dataset, device) for mode in MODES}
        fetches.update({name: zarr_fetch(name, store, device) for name in ZARR})
        require_same(fetches, drawn[0])
        timed = interleaved(
            {name: in_turn(fetch, drawn) for name, fetch in fetches.items()},
            rounds=rounds,
            warm_up=1,
            device=device,
            at_least_seconds=0.02,
        )
    what = f"random Zarr reads of {batch_size} of {images} images x {classes} classes, int8 3x{side}x{side}"
    found: dict[str, Measurement] = {}
    for mode in MODES:
        for name, how in ZARR.items():
            found[f"{mode}.speedup_over_{name}"] = timed.speedup(mode, name, f"{what}, {how}")
    for name in fetches:
        seconds = timed.median(name)
        found[f"{name}.batch"] = Measurement(seconds * 1000, "ms", None)
        found[f"{name}.seconds_per_epoch"] = Measurement(
            seconds / batch_size * EPOCH_IMAGES, "s", f"{EPOCH_IMAGES} images"
        )
    return found


def main(
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N: where batches are wanted.")] = "cpu",
    images: Annotated[int, typer.Option(help="Images of the store.")] = 4096,
    batch_size: Annotated[int, typer.Option(help="Images of a batch.")] = 64,
    rounds: Annotated[int, typer.Option(help="Rounds of timing.")] = 15,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 1,
    smallest: Annotated[bool, typer.Option("--smallest", help="600 images of 8x8 pixels, 1 round: a trial.")] = False,
    output: Annotated[Path | None, typer.Option(help="Write the measurements as JSON.")] = None,
) -> None:
    """Compare fetching a random batch of target gradients from the resident array with reading it from Zarr."""
    torch.set_num_threads(threads)
    shape = (600, 3, 8) if smallest else (images, 10, 32)
    found = measure(*shape, batch_size=batch_size, rounds=1 if smallest else rounds, device=torch.device(device))
    report("feeding", found, output, device=device, arguments=sys.argv[1:])


if __name__ == "__main__":
    run(main)
