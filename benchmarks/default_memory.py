"""A step in a process of its own that leaves memory to the C library, as a script does that asks for nothing else."""

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import torch

from benchmarks.pag_step import TrainingStep

_steps: list[TrainingStep] = []


def _build(build: Callable[..., TrainingStep], arguments: tuple[Any, ...], threads: int) -> None:
    torch.set_num_threads(threads)
    _steps.append(build(*arguments))


def _step() -> None:
    _steps[0]()
    _steps[0].require_finite()


class DefaultMemoryStep:
    """`build(*arguments)` built in a new process, which the next call takes one step of; `build` is one of a module."""

    def __init__(self, build: Callable[..., TrainingStep], *arguments: Any, threads: int) -> None:
        self._pool = ProcessPoolExecutor(
            1, multiprocessing.get_context("spawn"), initializer=_build, initargs=(build, arguments, threads)
        )
        self._pool.submit(int).result()  # the process has started

    def __call__(self) -> None:
        """Take one step; raises RuntimeError where its loss is not a number."""
        self._pool.submit(_step).result()

    def close(self) -> None:
        """End the process, and so free its memory."""
        self._pool.shutdown()
