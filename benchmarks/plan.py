"""A plan of an experiment on many images: bytes, FLOPs by torch's counter, hours and bandwidth; checked on a small one.

The simulation runs the stages on 1/2000 and 1/1000 of ImageNet-1k's training images, draws a line through their seconds over
the counted work, and compares what it says of 1/250 with a run.
"""

import sys
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from PIL import Image
from torch.nn import functional as F

from benchmarks.arithmetic import counted_flops
from benchmarks.distillation import NETWORKS
from benchmarks.growth import BASE, TEACHER, trained_teacher
from benchmarks.measurement import Measurement, markdown, report
from benchmarks.pag_step import CHEAPEST, StepSize, TrainingStep, Variant, build_batch, pag_loss
from benchmarks.workplace import Cost, Workplace, write_images, write_teacher
from pag_core.classifiers.architectures import build_classifier
from pag_core.datasets.image_folder import ImageFiles
from pag_core.diffusion.network import build_network
from pag_core.gradients.label_effect import DRAW_SAMPLE
from pag_core.gradients.score_based import COMPARED
from pag_core.pipeline.stage import run

IMAGENET = 1_281_167
ATTACK_PASSES = 10_000  # forward passes of AutoAttack on an image that withstands it, about
NOT_SIMULATED = "the simulation was left out"


@dataclass(frozen=True)
class Experiment:
    """What is planned: `images` for training, of `classes`, of which the store keeps `kept` (None: all) of each image.

    The teacher sees `taught` images in its training; the classifier is aligned with `drawn` classes in each step; `attacked`
    counts an image for each norm, `held_out` are test images with gradients of all classes.
    """

    images: int
    validation: int
    classes: int
    kept: int | None
    side: int
    teacher: dict[str, Any]
    taught: int
    arch: str
    epochs: int
    drawn: int
    attacked: int = 2000
    held_out: int = 200
    options: dict[str, Any] = field(default_factory=lambda: {"width": None, "activation": None})

    @property
    def stored(self) -> int:
        """Classes of each image in the store."""
        return self.kept or self.classes

    @property
    def image_bytes(self) -> int:
        """Of one image, and of one int8 gradient."""
        return 3 * self.side**2

    @property
    def gradient_bytes(self) -> int:
        """Of an image in the store: codes, scales, and the numbers of its classes where some are kept."""
        return self.stored * (self.image_bytes + (4 if self.kept is None else 8))

    @property
    def predictions(self) -> int:
        """Of the teacher, of one image each, in the stage `sbg`: distillation, and the check of its labels and draws."""
        checked = 3 * self.validation + 2 * min(DRAW_SAMPLE, self.validation) * (min(COMPARED, self.classes) + 1)
        return self.images * (self.stored + 1) + self.held_out * (self.classes + 1) + checked


ADM = {
    **NETWORKS["paper"], "channels": 256, "channel_multipliers": [1, 1, 2, 2, 4, 4], "residual_blocks": 2,
    "attention_resolutions": [28, 14, 7], "head_channels": 64, "resblock_updown": True, "schedule": "linear",
}  # fmt: skip
IMAGENET_64 = Experiment(
    IMAGENET - 12_800, 12_800, 1000, 10, 64, {**NETWORKS["paper"], "channel_multipliers": [1, 2, 3, 4]}, 64_000_000,
    "resnet18", epochs=100, drawn=3,
)  # fmt: skip
EXPERIMENTS = {
    "cifar10_32": Experiment(
        47_500, 2500, 10, None, 32, NETWORKS["paper"], 6000 * 128, "resnet18", 100, 10, held_out=500
    ),
    "imagenet_64": IMAGENET_64,
    "imagenet_224": replace(IMAGENET_64, side=224, teacher=ADM, arch="timm:resnet50"),
}
SHARE = 16  # of the simulation's images one is for validation
SIDE = 64


def simulation(images: int, classes: int, side: int = SIDE) -> Experiment:
    """That of `images` of a folder, of `side` pixels, by networks as small as they are useful."""
    validation = -(-images // SHARE)
    card = {**NETWORKS["small"], "channel_multipliers": BASE["diffusion.channel_multipliers"]}
    steps = max(1, images // 64) * BASE["diffusion.batch_size"]
    return Experiment(
        images - validation, validation, classes, 2, side, card, steps, "small_resnet", 1, 2, 0, 1,
        options={"width": 8, "activation": None},
    )  # fmt: skip


def work(experiment: Experiment) -> dict[str, float]:
    """FLOPs of each stage, from those of one image: predictions and steps of the teacher, steps of the classifier."""
    shape = (3, experiment.side, experiment.side)
    with torch.device("meta"):
        network = build_network(experiment.teacher, shape, experiment.classes)
        inputs = torch.empty(1, *shape), torch.empty(1), torch.empty(1, dtype=torch.long)
    predicting = counted_flops(torch.no_grad()(lambda: network(*inputs)))
    teaching = counted_flops(lambda: network(*inputs).sum().backward())
    size = StepSize(2, experiment.side, experiment.classes, experiment.drawn, "cpu")
    classifier = build_classifier(
        experiment.arch, **experiment.options, image_shape=shape, classes=experiment.classes
    ).train()
    batch = build_batch(size)
    plain = counted_flops(lambda: F.cross_entropy(classifier(batch.images), batch.labels).backward()) / 2
    step = TrainingStep(classifier, batch, pag_loss(Variant(CHEAPEST)))
    step()  # the network is traced and looked at
    aligned = counted_flops(step) / 2
    seen = experiment.epochs * experiment.images
    return {
        "diffusion": experiment.taught * teaching,
        "sbg": experiment.predictions * predicting,
        "baseline": seen * plain,
        "train": seen * aligned,
        "autoattack": experiment.attacked * ATTACK_PASSES * plain / 3,
    }


def traffic(experiment: Experiment) -> dict[str, float]:
    """Bytes that each stage reads, where shards are read whole, or writes."""
    images = experiment.images * experiment.image_bytes
    gradients = experiment.images * experiment.gradient_bytes
    return {
        "diffusion": experiment.taught * experiment.image_bytes,
        "sbg": gradients,
        "baseline": experiment.epochs * images,
        "train": experiment.epochs * (images + gradients),
        "autoattack": 0.0,
    }


def decoding(folder: Path, side: int, count: int = 48) -> float:
    """Seconds in which a core reads and shrinks a JPEG of 500x375 pixels to `side`, as `prepare` does; made-up pictures."""
    draws = np.random.default_rng(0)
    paths = []
    for number in range(count):
        coarse = Image.fromarray(draws.integers(0, 256, (48, 64, 3), dtype=np.uint8))
        paths.append(folder / f"{number}.jpg")
        coarse.resize((500, 375), Image.Resampling.BICUBIC).save(paths[-1], quality=95)
    files = ImageFiles(paths, side, folder, folder)
    start = time.perf_counter()
    files.read(np.arange(count))
    return (time.perf_counter() - start) / count


def rounded(number: float) -> str:
    """Two digits at least."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.2g}"


def planned(name: str, tflops: list[float], gpus: int, here: dict[str, float], folder: Path) -> dict[str, Measurement]:
    """The plan of an experiment, printed as tables; `here` has FLOP/s of a core of this machine by stage."""
    experiment = EXPERIMENTS[name]
    images = experiment.images + experiment.validation
    dense, sparse = replace(experiment, kept=None), replace(experiment, kept=10)
    gigabytes = {
        "images": images * experiment.image_bytes,
        "store of all classes": experiment.images * dense.gradient_bytes,
        "store of ten": experiment.images * sparse.gradient_bytes,
        "raw copies": experiment.images * (experiment.stored + 1) * experiment.image_bytes,
    }
    found = {f"{name}.{what}": Measurement(size / 1e9, "GB", None) for what, size in gigabytes.items()}
    reading = images * decoding(folder, experiment.side) / 3600
    found[f"{name}.prepare.hours_here"] = Measurement(reading, "h", "one core, JPEG of 500x375 pixels")
    rows = [["prepare", "", *[""] * len(tflops), rounded(reading), ""]]
    moved = traffic(experiment)
    for stage, flops in work(experiment).items():
        found[f"{name}.{stage}.work"] = Measurement(flops / 1e15, "PFLOP", None)
        hours = [flops / rate / 1e12 / gpus / 3600 for rate in tflops]
        for rate, taken in zip(tflops, hours, strict=True):
            found[f"{name}.{stage}.hours_at_{rate:g}"] = Measurement(taken, "h", f"{gpus} GPUs of {rate:g} TFLOP/s")
        needed = moved[stage] / (hours[-1] * 3600) / 1e6
        found[f"{name}.{stage}.bandwidth"] = Measurement(needed, "MB/s", f"{gpus} GPUs of {tflops[-1]:g} TFLOP/s")
        core = flops / here[stage] / 3600 if stage in here else None
        found[f"{name}.{stage}.hours_here"] = (
            Measurement(None, "h", None, not_measured=NOT_SIMULATED)
            if core is None
            else Measurement(core, "h", "one core")
        )
        numbers = [flops / 1e15, *hours, core, needed or None]
        rows.append([stage, *("" if number is None else rounded(number) for number in numbers)])
    print(
        f"\n{name}, GPUs: {gpus}; "
        + ", ".join(f"{what} {rounded(size / 1e9)} GB" for what, size in gigabytes.items())
        + "\n"
    )
    columns = [f"hours at {rate:g} TFLOP/s" for rate in tflops]
    print(markdown(["stage", "PFLOP", *columns, "hours of one core here", "MB/s at the last rate"], rows), flush=True)
    return found


def simulated(
    folder: Path, experiment: Experiment, teacher: Path, rounds: int
) -> tuple[dict[str, Cost], dict[str, int]]:
    """Cost of each stage, and bytes of what they leave."""

    def least(*command: str) -> Cost:
        """Of `rounds` runs of a short stage: what else the machine does only adds to its time."""
        return min((place.stage(*command) for _ in range(rounds)), key=lambda cost: cost.seconds)

    write_images(folder / "images", experiment.images + experiment.validation, experiment.classes, experiment.side)
    values = {
        "image_folder": str(folder / "images"),
        "prepare.validation_fraction": 1 / SHARE,
        "diffusion.steps": experiment.taught // BASE["diffusion.batch_size"],
        "arch": experiment.arch,
        "classifier.width": experiment.options["width"],
        "classifier.depth": None,
        "classifier.patch_size": None,
        "objective.classes_per_step": experiment.drawn,
    }
    place = Workplace(folder / "place", {**BASE, **values})
    costs = {"prepare": least("prepare"), "diffusion": place.stage("diffusion")}
    place.set({"diffusion_checkpoint": str(teacher)})
    costs |= {
        "sbg": place.stage("sbg"),
        "baseline": least("train", "--baseline"),
        "train": least("train"),
    }
    kinds = {"images": "data/*.zarr", "store": "data/gradients/*.zarr", "raw copies": ".cache/*.raw"}
    found = {
        kind: [file for root in place.path.glob(of) for file in (root, *root.rglob("*"))] for kind, of in kinds.items()
    }
    return costs, {kind: sum(file.stat().st_size for file in of if file.is_file()) for kind, of in found.items()}


def compared(
    sizes: tuple[int, int, int], folder: Path, *, side: int, rounds: int
) -> tuple[dict[str, Measurement], dict[str, float]]:
    """The third size as the first two predict it against a run, printed as a table; and FLOP/s of each stage."""
    taught = trained_teacher(
        folder, side, {key: BASE[key] for key in TEACHER if key.endswith(("batch_size", "multipliers"))}
    )
    experiments = [simulation(size, sizes[0] // SHARE, side) for size in sizes]
    last = experiments[-1]
    write_teacher(taught, folder / "shared", last.classes)
    costs, left = zip(
        *(simulated(folder / str(e.images), e, folder / "shared", rounds) for e in experiments), strict=True
    )
    amounts = [
        {"prepare": float(size), **work(experiment)} for size, experiment in zip(sizes, experiments, strict=True)
    ]
    found: dict[str, Measurement] = {}
    rates, rows = {}, []

    def row(name: str, predicted: float, measured: float, unit: str) -> None:
        found[f"simulation.{name}"] = Measurement(measured / predicted, "of the prediction", f"{predicted:.4g} {unit}")
        rows.append([name, f"{predicted:,.4g} {unit}", f"{measured:,.4g} {unit}", f"{measured / predicted:.2f}"])

    for stage in costs[0]:
        first, second, third = (amount[stage] for amount in amounts)
        seconds = [cost[stage].seconds for cost in costs]
        slope = (seconds[1] - seconds[0]) / (second - first)
        rates[stage] = 1 / slope
        row(f"{stage}.seconds", seconds[1] + slope * (third - second), seconds[2], "s")
        # maps and shards are as large as before: the peak is that of the second size
        row(f"{stage}.peak", costs[1][stage].anonymous / 1e6 or 1, costs[2][stage].anonymous / 1e6, "MB")
    chunk = taught.content["gradient_store"]["images_per_chunk"]  # which is written whole, also for one held-out image
    expected = {
        "images": (last.images + last.validation + last.classes) * last.image_bytes,
        "store": last.images * last.gradient_bytes + chunk * last.classes * last.image_bytes,
        "raw copies": last.images * (last.stored + 1) * last.image_bytes,
    }
    for kind, size in expected.items():
        row(f"{kind}.bytes", size / 1e6, left[2][kind] / 1e6, "MB")
    print(markdown([f"{sizes[2]} images", "predicted", "measured", "ratio"], rows), flush=True)
    del rates["prepare"]
    return found, rates


def main(
    experiments: Annotated[list[str] | None, typer.Argument(help=f"Of {', '.join(EXPERIMENTS)}; all.")] = None,
    tflops: Annotated[list[float] | None, typer.Option(help="TFLOP/s that a GPU sustains; 20 and 200.")] = None,
    gpus: Annotated[int, typer.Option(help="GPUs that share each stage under torchrun.")] = 8,
    simulate: Annotated[bool, typer.Option(help="Check the plan on few images (eleven minutes).")] = True,
    smallest: Annotated[bool, typer.Option("--smallest", help="CIFAR-10; 160 to 640 images of 32x32, once.")] = False,
    output: Annotated[Path | None, typer.Option(help="Write the measurements as JSON.")] = None,
) -> None:
    """Plan experiments: bytes, FLOPs, hours and bandwidth of every stage."""
    names = ["cifar10_32"] if smallest else experiments or list(EXPERIMENTS)
    if unknown := [name for name in names if name not in EXPERIMENTS]:
        raise typer.BadParameter(f"{unknown[0]!r} is not one of: {', '.join(EXPERIMENTS)}")
    sizes = (160, 320, 640) if smallest else (IMAGENET // 2000, IMAGENET // 1000, IMAGENET // 250)
    side, rounds = (32, 1) if smallest else (SIDE, 3)
    with tempfile.TemporaryDirectory() as folder:
        found, rates = compared(sizes, Path(folder), side=side, rounds=rounds) if simulate else ({}, {})
        for name in names:
            found |= planned(name, tflops or [20, 200], gpus, rates, Path(folder))
    report("plan", found, output, device="cpu", arguments=sys.argv[1:])


if __name__ == "__main__":
    run(main)
