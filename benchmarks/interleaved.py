"""Timing of variants side by side: every round runs each of them once, so that a busy machine slows all alike."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.measurement import TIMES_AS_FAST, Measurement
from pag_core.compute.device import keep_freed_memory
from pag_core.compute.randomness import require_determinism


@dataclass(frozen=True)
class Rounds:
    """Seconds of one call of each variant, round by round."""

    seconds: dict[str, list[float]]

    def median(self, variant: str) -> float:
        """The median time of a call in seconds."""
        return statistics.median(self.seconds[variant])

    def speedup(self, variant: str, against: str, described: str) -> Measurement:
        """How many times as fast `variant` is as `against`: the median of each round's own ratio, and their range."""
        ratios = [slow / fast for fast, slow in zip(self.seconds[variant], self.seconds[against], strict=True)]
        spread = (min(ratios), max(ratios)) if len(ratios) > 1 else None
        return Measurement(statistics.median(ratios), TIMES_AS_FAST, described, spread)


def prepare(device: str, threads: int) -> torch.device:
    """The device of a benchmark. On the CPU it runs `threads` threads; on a GPU matrix products may use TF32.

    Memory is kept as the project's stages keep it, for all variants alike.
    """
    torch.set_num_threads(threads)
    if device == "cpu":
        keep_freed_memory()
    if device.startswith("cuda"):
        require_determinism(torch.device(device))  # as the stages do
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = True
    return torch.device(device)


def synchronise(device: torch.device) -> None:
    """Wait until the device has done what it was asked for; the CPU always has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def interleaved(
    variants: Mapping[str, Callable[[], Any]],
    *,
    rounds: int,
    warm_up: int,
    device: torch.device,
    at_least_seconds: float = 0.0,
) -> Rounds:
    """Time every variant once a round, `warm_up` rounds uncounted before; the order turns round every time.

    A variant is called again within its turn until `at_least_seconds` have passed, and its time is the mean of a call.
    """
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(warm_up + rounds):
        order = list(variants) if number % 2 == 0 else list(variants)[::-1]
        for name in order:
            taken = _seconds_of_a_call(variants[name], device, at_least_seconds)
            if number >= warm_up:
                seconds[name].append(taken)
    return Rounds(seconds)


def _seconds_of_a_call(variant: Callable[[], Any], device: torch.device, at_least_seconds: float) -> float:
    synchronise(device)
    start, calls = time.perf_counter(), 0
    while True:
        variant()
        calls += 1
        synchronise(device)
        taken = time.perf_counter() - start
        if taken >= at_least_seconds:
            return taken / calls
