"""How cost grows with images and with classes: real stages at n, 4n and 16n images and at three numbers of classes.

Seconds are those that a stage writes down itself, without the start of Python and its imports, which do not grow. What they
have in common at all sizes drops out of the exponent.
"""

import math
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.interleaved import Rounds
from benchmarks.measurement import Measurement, markdown, report
from benchmarks.sparse_store import write_store
from benchmarks.workplace import PATTERNS, Cost, Workplace, write_images, write_teacher
from pag_core.datasets.prepared import read_dataset
from pag_core.pipeline.paths import dataset_path, gradients_path
from pag_core.pipeline.stage import run

FACTOR = 4
CLASSES = (PATTERNS, 100, 1000)
KEPT = 2  # classes of each image in the stores
PATCHES = 4  # of a side, in the classifier
SMALL = 16  # pixels of a side for the distillation
LEAST = 0.2  # seconds by which a stage must grow for an exponent
NOT_MEASURED = f"it grows by less than {LEAST} s"
# the networks are as small as they can be, so that the way of the data is what is timed
BASE: dict[str, Any] = {
    "dataset": "image_folder",
    "device": "cpu",
    "threads": 1,
    "processes": 1,
    "prepare.validation_fraction": 0.125,
    "diffusion.steps": 8,
    "diffusion.batch_size": 8,
    "diffusion.channel_multipliers": [1, 1, 1, 1],
    "diffusion.timestep_window": [450, 550],
    "sbg.timestep": 500,
    "gradient_store.held_out_images": 1,
    "gradient_store.classes_per_image": KEPT,
    "arch": "vit",
    "classifier.width": 24,
    "classifier.depth": 1,
    "objective.classes_per_step": 1,
    "train.epochs": 1,
    "train.batch_size": 128,
    "feed.mode": "memory_map",
}
TEACHER: dict[str, Any] = {
    "diffusion.channel_multipliers": [1, 1],
    "diffusion.steps": 80,
    "diffusion.batch_size": 32,
    "diffusion.learning_rate": 4e-3,
    "diffusion.ema_decay": 0.9,
}
FEEDS: dict[str, dict[str, Any]] = {
    "resident": {"feed.mode": "resident", "feed.window_shards": None},
    "memory_map": {"feed.mode": "memory_map", "feed.window_shards": None},
    "window": {"feed.mode": "auto", "feed.window_shards": 2},
}
START = """
import time
from pathlib import Path
from pag_core.datasets.prepared import read_dataset
from pag_core.gradient_store.store import GradientStore
from pag_core.pipeline.artifacts import write_json
begun = time.perf_counter()
GradientStore(Path("data/gradients/sbg.zarr")).require_made_from(read_dataset(Path("data/image_folder.zarr")))
write_json(Path("timings/start.json"), {"seconds": time.perf_counter() - begun})
"""
Costs = dict[str, list[Cost]]


def trained_teacher(folder: Path, side: int, values: dict[str, Any]) -> Workplace:
    """A workplace with a diffusion model of PATTERNS classes whose labels matter."""
    write_images(folder / "images", 40 * PATTERNS, PATTERNS, side)
    place = Workplace(folder / "teacher", {**BASE, **TEACHER, "image_folder": str(folder / "images"), **values})
    place.stage("prepare")
    place.stage("diffusion")
    return place


def in_turns(variants: dict[str, Callable[[], Cost]], rounds: int) -> Costs:
    """Each variant once a round, in changing order."""
    found: Costs = {name: [] for name in variants}
    for number in range(rounds):
        for name in list(variants) if number % 2 == 0 else list(variants)[::-1]:
            found[name].append(variants[name]())
    return found


def costs_of(
    folder: Path, teacher: Workplace, images: int, classes: int, *, side: int, small: int, rounds: int
) -> Costs:
    """What each stage takes with `images` for training and validation; `sbg` at `small` pixels of a side."""
    write_images(folder / "images", images, classes, side)
    params = {**BASE, "image_folder": str(folder / "images"), "classifier.patch_size": side // PATCHES}
    place = Workplace(folder / "large", params)
    found = {"prepare": [place.stage("prepare")], "diffusion": [place.stage("diffusion")]}
    place.remove("data/diffusion")  # of which the store that is trained on was not made
    dataset = read_dataset(place.path / dataset_path("image_folder"))
    write_store(place.path / gradients_path("sbg"), dataset, KEPT, min(512, images // 64 * 16))
    found["start"] = [place.command("-c", START)]

    def training(feed: str, *arguments: str) -> Callable[[], Cost]:
        def once() -> Cost:
            place.set(FEEDS[feed])
            return place.stage("train", *arguments)

        return once

    found["train, first map"] = [training("memory_map")()]
    feeds = {f"train, {feed}": training(feed) for feed in FEEDS}
    found |= in_turns({"baseline, memory_map": training("memory_map", "--baseline"), **feeds}, rounds)
    write_teacher(teacher, folder / "teacher", classes)
    shrunk = {"prepare.image_size": small, "diffusion_checkpoint": str(folder / "teacher")}
    place = Workplace(folder / "small", {**params, **shrunk})
    place.stage("prepare")
    return {**found, "sbg": [place.stage("sbg")]}


def median(costs: Sequence[Cost], key: str) -> float:
    """Of the rounds."""
    return float(statistics.median(getattr(cost, key) for cost in costs))


def exponent(seconds: Sequence[float], factor: float) -> Measurement:
    """p of a + b n^p through three sizes, each `factor` times the one before."""
    first, second = seconds[1] - seconds[0], seconds[2] - seconds[1]
    if min(first, second) < LEAST:
        return Measurement(None, "exponent", None, not_measured=NOT_MEASURED)
    return Measurement(math.log(second / first, factor), "exponent", f"sizes each {factor:g} times the one before")


def measured(by_images: dict[int, Costs], by_classes: dict[int, Costs]) -> dict[str, Measurement]:
    """Seconds and peaks at each size; exponents, and the largest peak as a multiple of the smallest size's."""
    found: dict[str, Measurement] = {}
    for kind, cases in (("images", by_images), ("classes", by_classes)):
        sizes = sorted(cases)
        for stage in cases[sizes[0]]:
            for size in sizes:
                for key, unit in (("seconds", "s"), ("anonymous", "MB"), ("resident", "MB")):
                    value = median(cases[size][stage], key) / (1 if unit == "s" else 1e6)
                    found[f"{stage}.{size}_{kind}.{key}"] = Measurement(value, unit, None)
            seconds = [median(cases[size][stage], "seconds") for size in sizes]
            found[f"{stage}.exponent_of_{kind}"] = exponent(seconds, sizes[1] / sizes[0])
            for key in ("anonymous", "resident"):
                least, most = (max(1, median(cases[size][stage], key)) for size in (sizes[0], sizes[-1]))
                against = f"{sizes[0]} {kind}, at {sizes[-1]}"
                found[f"{stage}.{key}_with_{kind}"] = Measurement(most / least, "of the peak", against)
    largest = by_images[max(by_images)]
    rounds = Rounds({feed: [cost.seconds for cost in largest[f"train, {feed}"]] for feed in FEEDS})
    found["memory_map.speedup"] = rounds.speedup("memory_map", "resident", f"resident, {max(by_images)} images")
    return found


def table(cases: dict[int, Costs], kind: str) -> str:
    """Markdown: of each stage seconds and the peak of anonymous memory in MB (in brackets with mapped files) at each size."""
    sizes, rows = sorted(cases), []
    for stage in cases[sizes[0]]:
        seconds, own, whole = (
            [median(cases[size][stage], key) for size in sizes] for key in ("seconds", "anonymous", "resident")
        )
        cells = [f"{s:.1f} s, {a / 1e6:,.0f} ({r / 1e6:,.0f}) MB" for s, a, r in zip(seconds, own, whole, strict=True)]
        power = exponent(seconds, sizes[1] / sizes[0]).value
        rows.append([stage, *cells, "-" if power is None else f"{power:.2f}"])
    return markdown(["stage", *(f"{size:,} {kind}" for size in sizes), "exponent"], rows)


def measure(images: int, classes: Sequence[int], *, side: int, small: int, rounds: int) -> dict[str, Measurement]:
    """Every stage at each size, the numbers of classes at the middle one; prints the tables."""
    sizes = [images, FACTOR * images, FACTOR**2 * images]
    by_images: dict[int, Costs] = {}
    by_classes: dict[int, Costs] = {}
    with tempfile.TemporaryDirectory() as folder:
        teacher = trained_teacher(Path(folder) / "teacher", side, {"prepare.image_size": small})
        for count, labels in [*((size, classes[0]) for size in sizes), *((sizes[1], labels) for labels in classes[1:])]:
            place = Path(folder) / f"{count}-{labels}"
            often = rounds if count == sizes[-1] else 1
            found = costs_of(place, teacher, count, labels, side=side, small=small, rounds=often)
            print(f"{count} images of {labels} classes measured", flush=True)
            if labels == classes[0]:
                by_images[count] = found
            if count == sizes[1]:
                by_classes[labels] = found
    print(table(by_images, "images"), table(by_classes, "classes"), sep="\n\n")
    return measured(by_images, by_classes)


def main(
    images: Annotated[int, typer.Option(help="n, training and validation images of the smallest size.")] = 2048,
    side: Annotated[int, typer.Option(help=f"Pixels of a side; distillation has {SMALL}.")] = 128,
    rounds: Annotated[int, typer.Option(help="Runs of each training at the largest size.")] = 2,
    smallest: Annotated[bool, typer.Option("--smallest", help="80 to 1,280 images of 16x16 pixels: a trial.")] = False,
    output: Annotated[Path | None, typer.Option(help="Write the measurements as JSON.")] = None,
) -> None:
    """Measure how time and peak memory of the stages grow."""
    if smallest:
        found = measure(80, (10, 20, 40), side=16, small=8, rounds=1)
    else:
        found = measure(images, CLASSES, side=side, small=SMALL, rounds=rounds)
    report("growth", found, output, device="cpu", arguments=sys.argv[1:])


if __name__ == "__main__":
    run(main)
