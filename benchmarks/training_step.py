"""A PAG training step of ResNet-18: time, FLOPs and peak memory against plain methods, first that of repeated images."""

import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import torch
import typer

from benchmarks import peak_memory
from benchmarks.arithmetic import PEAK_TFLOPS, counted_flops, device_figures
from benchmarks.default_memory import DefaultMemoryStep
from benchmarks.interleaved import Rounds, interleaved, prepare
from benchmarks.measurement import TIMES_AS_FAST, Measurement, processor_flags, report
from benchmarks.pag_step import (
    CHEAPEST,
    MEANINGS,
    StepSize,
    TrainingStep,
    Variant,
    build_batch,
    build_pag_step,
    build_resnet18,
    pag_loss,
)
from benchmarks.plain_methods import PLAIN_METHODS
from pag_core.compute.device import keep_freed_memory
from pag_core.pipeline.stage import run

PLAIN = "plain_repeat"
DEFAULT_MEMORY = f"{PLAIN}_default_memory"
BF16_UNITS = {"amx_bf16", "avx512_bf16", "bf16"}
NO_BF16 = "no bf16 unit"

# the project's variants, and the plain methods by their names
Methods = dict[str, Variant | str]


def build_step(size: StepSize, method: Variant | str, threads: int) -> TrainingStep:
    """The project's step in a variant, or that of a plain method by its name."""
    prepare(size.device, threads)
    return build_pag_step(size, method) if isinstance(method, Variant) else build_plain_step(size, method)


def build_plain_step(size: StepSize, name: str) -> TrainingStep:
    """A step of a plain method on a new network."""
    return TrainingStep(build_resnet18(size), build_batch(size), PLAIN_METHODS[name][0])


def chosen_variants(device: torch.device, *, compiled: bool) -> tuple[dict[str, Variant], dict[str, str]]:
    """The variants to run, and those that cannot be run here with the reason."""
    variants = {meaning: Variant(meaning) for meaning in MEANINGS}
    variants[f"{CHEAPEST}_channels_last"] = Variant(CHEAPEST, channels_last=True)
    absent: dict[str, str] = {}
    if device.type == "cuda" or processor_flags() & BF16_UNITS:
        variants[f"{CHEAPEST}_bf16"] = Variant(CHEAPEST, channels_last=True, bf16=True)
    else:
        absent[f"{CHEAPEST}_bf16"] = NO_BF16
    if compiled:
        bf16 = device.type == "cuda"
        variants[f"{CHEAPEST}_compiled"] = Variant(CHEAPEST, channels_last=bf16, bf16=bf16, compiled=True)
    return variants, absent


def gradient_difference(name: str, size: StepSize) -> float:
    """|g - r| / |r| over all parameters in float64, r of the plain method `name` and g of the project's same meaning."""
    plain, meaning = PLAIN_METHODS[name]
    batch, gradients = build_batch(size), []
    batch = replace(batch, images=batch.images.double(), targets=batch.targets.double())
    for loss in (pag_loss(Variant(meaning)), plain):
        network = build_resnet18(size).double()
        loss(network, batch).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None]))
    return float((gradients[0] - gradients[1]).norm() / gradients[1].norm())


def measured_differences() -> dict[str, Measurement]:
    """How far the parameter gradients of the project and of each plain method lie apart, under the name of the row."""
    size = StepSize(2, 16, 10, 10, "cpu")
    rows = {"repeat" if name == PLAIN else name: name for name in PLAIN_METHODS}
    return {
        f"{row}.gradient_difference": Measurement(
            gradient_difference(name, size),
            "relative",
            f"parameter gradients of {name} and of the project's meaning `{PLAIN_METHODS[name][1]}`, float64",
        )
        for row, name in rows.items()
    }


def flops_in_forward_passes(steps: Mapping[str, Callable[[], None]], size: StepSize) -> dict[str, float]:
    """FLOPs of a step in units of F, one forward pass over its images."""
    network, images = build_resnet18(size), build_batch(size).images
    forward = counted_flops(lambda: network(images))
    for name, step in steps.items():
        if name not in PLAIN_METHODS:
            step()  # the project's first step lists the network's operations, by a pass that computes nothing
    return {name: counted_flops(step) / forward for name, step in steps.items()}


def measured_memory(methods: Methods, size: StepSize, threads: int, plain: str) -> dict[str, Measurement]:
    """The peak of each method as a share of plain repeat's, whose own is in MiB."""
    unit, device = "of its peak memory", torch.device(size.device)
    if not peak_memory.available(device):
        return {
            f"{name}.peak_memory": Measurement(None, unit, plain, not_measured=peak_memory.UNAVAILABLE)
            for name in methods
            if name != PLAIN
        }
    bytes_of = {
        name: peak_memory.peak_of_step(build_step, size, method, threads, device=device)
        for name, method in methods.items()
    }
    found = {f"{PLAIN}.peak_memory": Measurement(bytes_of[PLAIN] / 2**20, "MiB", "what is held before the step")}
    for name, peak in bytes_of.items():
        if name != PLAIN:
            found[f"{name}.peak_memory"] = Measurement(peak / bytes_of[PLAIN], unit, plain)
    return found


def measured_speed(
    rounds: Rounds, flops: dict[str, float], absent: dict[str, str], plain: str
) -> dict[str, Measurement]:
    """The speed of every variant against the plain method, and the FLOPs of each."""
    found = {f"{name}.speedup": rounds.speedup(name, PLAIN, plain) for name in rounds.seconds if name != PLAIN}
    if DEFAULT_MEMORY in rounds.seconds:
        script = f"{plain}; in a process that gives freed memory back, as one does by default"
        found |= {
            f"{name}.speedup_over_default_memory": rounds.speedup(name, DEFAULT_MEMORY, script)
            for name in rounds.seconds
            if name not in (PLAIN, DEFAULT_MEMORY)
        }
    for name, reason in absent.items():
        found[f"{name}.speedup"] = Measurement(None, TIMES_AS_FAST, plain, not_measured=reason)
    for name, count in flops.items():
        found[f"{name}.flops"] = Measurement(count, "F", "F: one forward pass over the same images")
    return found


def measured_figures(
    rounds: Rounds, flops: dict[str, float], size: StepSize, peak_tflops: float | None
) -> dict[str, Measurement]:
    """Images per second of each variant, and with a peak rate what is made of it."""
    network, images = build_resnet18(size), build_batch(size).images
    forward = counted_flops(lambda: network(images))
    found = {}
    for name in rounds.seconds:
        figures = device_figures(
            seconds=rounds.median(name),
            images=size.batch,
            # operations inside a compiled graph cannot be seen; they are those of the same variant uncompiled
            executed_flops=flops.get(PLAIN if name == DEFAULT_MEMORY else name, flops[CHEAPEST]) * forward,
            floor_flops=(3 + 3 * size.drawn) * forward,
            peak_tflops=peak_tflops,
            epoch_name="seconds_per_epoch",
        )
        found.update({f"{name}.{key}": figure for key, figure in figures.items()})
    return found


def timed_steps(steps: Mapping[str, TrainingStep], size: StepSize, *, rounds: int, threads: int) -> Rounds:
    """Every step side by side; on a CPU also the plain one with the C library's default memory, where it has another."""
    device, all_steps = torch.device(size.device), dict[str, Callable[[], None]](steps)
    default = None
    if device.type == "cpu" and keep_freed_memory():
        default = all_steps[DEFAULT_MEMORY] = DefaultMemoryStep(build_plain_step, size, PLAIN, threads=threads)
    # on a GPU the first steps choose kernels
    timed = interleaved(all_steps, rounds=rounds, warm_up=3 if device.type == "cuda" else 0, device=device)
    if default is not None:
        default.close()
    for step in steps.values():
        step.require_finite()
    return timed


def measure(
    size: StepSize, *, rounds: int, threads: int, compiled: bool, memory: bool, peak_tflops: float | None
) -> dict[str, Measurement]:
    """All measurements of a step of this size."""
    device = prepare(size.device, threads)
    variants, absent = chosen_variants(device, compiled=compiled)
    methods: Methods = {**{name: name for name in PLAIN_METHODS}, **variants}
    steps = {name: build_step(size, method, threads) for name, method in methods.items()}
    how = "TF32 allowed" if device.type == "cuda" else f"float32, CPU threads: {threads}"
    plain = f"the plain repeat method, {how}, {size.batch} images, {size.classes} classes"
    # operations inside a compiled graph cannot be counted, and the peak of its first step is the compiler's
    seen = {name: method for name, method in methods.items() if not (isinstance(method, Variant) and method.compiled)}
    # FLOPs of an image do not depend on how many there are
    few = replace(size, batch=min(size.batch, 2))
    flops = flops_in_forward_passes({name: build_step(few, method, threads) for name, method in seen.items()}, few)
    found = measured_differences()
    for name, step in steps.items():
        if name not in PLAIN_METHODS:
            step()  # lists the network's operations, and compiles them
    timed = timed_steps(steps, size, rounds=rounds, threads=threads)
    found.update(measured_speed(timed, flops, absent, plain))
    found.update(measured_figures(timed, flops, size, peak_tflops))
    if memory:
        del steps, step
        found.update(measured_memory(seen, size, threads, plain))
    return found


def main(
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    batch_size: Annotated[int | None, typer.Option(help="Images of a step; 16 on the CPU, 64 on a GPU.")] = None,
    rounds: Annotated[int, typer.Option(help="Timed steps of each variant.")] = 3,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 1,
    compiled: Annotated[
        bool, typer.Option("--compile", help="Also run the cheapest variant under torch.compile.")
    ] = False,
    memory: Annotated[bool, typer.Option(help="Measure peak memory, each variant once more.")] = True,
    peak_tflops: Annotated[float | None, typer.Option(help="The device's peak; 790 on a GPU.")] = None,
    smallest: Annotated[bool, typer.Option("--smallest", help="2 images of 8x8 pixels, 1 round: a trial.")] = False,
    output: Annotated[Path | None, typer.Option(help="Write the measurements as JSON.")] = None,
) -> None:
    """Compare a PAG training step of ResNet-18 with ten classes against the plain methods."""
    on_gpu = device.startswith("cuda")
    size = StepSize(batch_size or (64 if on_gpu else 16), 32, 10, 10, device)
    if smallest:
        size, rounds = StepSize(2, 8, 10, 10, device), 1
    peak = peak_tflops or (PEAK_TFLOPS if on_gpu else None)
    found = measure(size, rounds=rounds, threads=threads, compiled=compiled, memory=memory, peak_tflops=peak)
    report("training_step", found, output, device=device, arguments=sys.argv[1:])


if __name__ == "__main__":
    run(main)
