"""A PAG training step against steps of adversarial training with PGD-7 and PGD-20 (Appendix H), ResNet-18."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import nn
from torch.nn import functional as F

from benchmarks.arithmetic import PEAK_TFLOPS, counted_flops, device_figures
from benchmarks.interleaved import interleaved, prepare
from benchmarks.measurement import Measurement, report
from benchmarks.pag_step import (
    CHEAPEST,
    MEANINGS,
    Batch,
    StepSize,
    TrainingStep,
    Variant,
    build_batch,
    build_pag_step,
    build_resnet18,
)
from pag_core.pipeline.stage import run

CLASSES = 10
DRAWN = (CLASSES, 3)
PGD_STEPS = (7, 20)
RADIUS = 8 / 255


def adversarial_loss(steps: int) -> Callable[[nn.Module, Batch], torch.Tensor]:
    """Cross-entropy of PGD's Linf images (Madry et al., 2018): random start, `steps` signed steps of 1.5 radius / steps."""
    length = 1.5 * RADIUS / steps

    def loss(classifier: nn.Module, batch: Batch) -> torch.Tensor:
        shift = torch.empty_like(batch.images).uniform_(-RADIUS, RADIUS)
        attacked = (batch.images + shift).clamp(0, 1)
        for _ in range(steps):
            attacked = attacked.detach().requires_grad_()
            wrong = F.cross_entropy(classifier(attacked), batch.labels, reduction="sum")
            (gradient,) = torch.autograd.grad(wrong, attacked)
            with torch.no_grad():
                shift = (attacked + length * gradient.sign() - batch.images).clamp(-RADIUS, RADIUS)
                attacked = (batch.images + shift).clamp(0, 1)
        return F.cross_entropy(classifier(attacked.detach()), batch.labels)

    return loss


def build_steps(batch_size: int, side: int, device: str, batch_norm: str) -> dict[str, TrainingStep]:
    """A PAG step for each number of classes and an adversarial one for each number of PGD's steps."""
    sizes = {drawn: StepSize(batch_size, side, CLASSES, drawn, device) for drawn in DRAWN}
    steps = {f"pag_{drawn}_classes": build_pag_step(size, Variant(batch_norm)) for drawn, size in sizes.items()}
    size = sizes[CLASSES]
    for count in PGD_STEPS:
        steps[f"pgd_{count}"] = TrainingStep(build_resnet18(size), build_batch(size), adversarial_loss(count))
    return steps


def counted_operations(batch_size: int, side: int, device: str, batch_norm: str) -> dict[str, int]:
    """FLOPs of each step."""
    steps = build_steps(batch_size, side, device, batch_norm)
    for name, step in steps.items():
        if name.startswith("pag"):
            step()  # the project's first step lists the network's operations, by a pass that computes nothing
    return {name: counted_flops(step) for name, step in steps.items()}


def floor_of(name: str) -> int:
    """Forward passes below which no exact method is known for a step of this name."""
    kind, number = name.split("_")[:2]
    return 3 + (3 if kind == "pag" else 2) * int(number)


def measure_batch(
    batch_size: int, *, side: int, device: torch.device, batch_norm: str, rounds: int, peak_tflops: float | None
) -> dict[str, Measurement]:
    """Every PAG step against every adversarial one, at one batch size: times, and the ratio that arithmetic expects."""
    steps = build_steps(batch_size, side, str(device), batch_norm)
    size = StepSize(batch_size, side, CLASSES, CLASSES, str(device))
    network, images = build_resnet18(size), build_batch(size).images
    forward = counted_flops(lambda: network(images))
    # FLOPs of an image do not depend on how many there are
    few = min(batch_size, 2)
    flops = {
        name: count * batch_size / few for name, count in counted_operations(few, side, str(device), batch_norm).items()
    }
    for name, step in steps.items():
        if name.startswith("pag"):
            step()  # lists the network's operations
    timed = interleaved(steps, rounds=rounds, warm_up=3 if device.type == "cuda" else 0, device=device)
    found: dict[str, Measurement] = {}
    for name, step in steps.items():
        step.require_finite()
        found[f"{name}.flops"] = Measurement(flops[name] / forward, "F", "F: one forward pass over the same images")
        figures = device_figures(
            seconds=timed.median(name),
            images=batch_size,
            executed_flops=flops[name],
            floor_flops=floor_of(name) * forward,
            peak_tflops=peak_tflops,
            epoch_name="seconds_per_epoch",
        )
        found.update({f"{name}.{key}": figure for key, figure in figures.items()})
    for drawn in DRAWN:
        for count in PGD_STEPS:
            own, other = f"pag_{drawn}_classes", f"pgd_{count}"
            against = f"a step of PGD-{count} adversarial training, {batch_size} images"
            found[f"{own}.speedup_over_{other}"] = timed.speedup(own, other, against)
            found[f"{own}.arithmetic_ratio_to_{other}"] = Measurement(
                flops[other] / flops[own], "times fewer FLOPs", against
            )
    return found


def main(
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    batch_size: Annotated[list[int] | None, typer.Option(help="Once for each; 1 and 16 (on a GPU 64).")] = None,
    rounds: Annotated[int, typer.Option(help="Timed steps of each kind at more than one image.")] = 3,
    rounds_of_one: Annotated[int, typer.Option(help="Timed steps of each kind at batch size 1.")] = 9,
    batch_norm: Annotated[str, typer.Option(help="Meaning of batch-norm in the PAG step.")] = CHEAPEST,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 1,
    peak_tflops: Annotated[float | None, typer.Option(help="The device's peak; 790 on a GPU.")] = None,
    smallest: Annotated[
        bool, typer.Option("--smallest", help="1 and 2 images of 16x16 pixels, 1 round: a trial.")
    ] = False,
    output: Annotated[Path | None, typer.Option(help="Write the measurements as JSON.")] = None,
) -> None:
    """Compare PAG training steps (ten classes, three drawn) with PGD-7 and PGD-20 adversarial training steps."""
    if batch_norm not in MEANINGS:
        raise typer.BadParameter(f"{batch_norm!r} is not one of: {', '.join(MEANINGS)}", param_hint="--batch-norm")
    on_gpu = device.startswith("cuda")
    side, batches = 32, batch_size or [1, 64 if on_gpu else 16]
    if smallest:
        side, batches, rounds, rounds_of_one = 16, [1, 2], 1, 1
    peak = peak_tflops or (PEAK_TFLOPS if on_gpu else None)
    place = prepare(device, threads)
    found: dict[str, Measurement] = {}
    for count in batches:
        measured = measure_batch(
            count,
            side=side,
            device=place,
            batch_norm=batch_norm,
            rounds=rounds_of_one if count == 1 else rounds,
            peak_tflops=peak,
        )
        found.update({f"batch_{count}.{name}": measurement for name, measurement in measured.items()})
    report("adversarial_training", found, output, device=device, arguments=sys.argv[1:])


if __name__ == "__main__":
    run(main)
