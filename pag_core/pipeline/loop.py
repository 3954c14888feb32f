"""What every training loop needs: a watch for losses that stop being finite, checkpoints by the clock, progress."""

import math
import time
from collections.abc import Callable
from typing import Any

import torch
from tqdm import tqdm

from pag_core.compute.interruption import interruption, saving_when_interrupted
from pag_core.compute.processes import this_process
from pag_core.errors import TrainingDiverged
from pag_core.pipeline.checkpoint import RunFolder
from pag_core.pipeline.saved_network import require_finite


class LossWatch:
    """Collects each step's loss, and values beside it, without waiting for the device; `flush` refuses non-finite losses.

    `total` sums rows float32 [steps, values] over the processes that share the steps.
    """

    def __init__(self, what: str, total: Callable[[torch.Tensor], torch.Tensor] = lambda rows: rows) -> None:
        self.what = what
        self.total = total
        self.first_step = 0
        self.rows: list[torch.Tensor] = []

    def add(self, step: int, loss: torch.Tensor, *beside: torch.Tensor) -> None:
        """Remember the loss of `step`, and scalars beside it; steps follow one another."""
        if not self.rows:
            self.first_step = step
        self.rows.append(torch.stack([value.detach().to(torch.float32) for value in (loss, *beside)]))

    def flush(self) -> list[list[float]]:
        """A row per step since the last flush; raises TrainingDiverged that names the first step with a bad loss."""
        rows: list[list[float]] = self.total(torch.stack(self.rows)).tolist() if self.rows else []
        for step, row in enumerate(rows, start=self.first_step):
            if not math.isfinite(row[0]):
                raise TrainingDiverged(
                    f"{self.what}: the loss of step {step} is {row[0]}; the last finite checkpoint is kept. "
                    "Lower the learning rate (or lambda) and run again"
                )
        self.rows.clear()
        return rows


class CheckpointClock:
    """Saves a checkpoint when `seconds` have passed since the last one, and as a context before a signal ends the process."""

    def __init__(self, folder: RunFolder, seconds: float) -> None:
        self.folder = folder
        self.seconds = seconds
        self.last = time.monotonic()

    def __enter__(self) -> "CheckpointClock":
        self._saving = saving_when_interrupted()
        self._saving.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._saving.__exit__(*error)

    @property
    def interrupted(self) -> bool:
        """Whether the next `tick` is the last."""
        return interruption() is not None

    def tick(self, state: Callable[[], dict[str, Any]]) -> None:
        """Save what `state` returns if it is time, or if a signal came, and raise Interrupted then.

        Raises TrainingDiverged if a weight in it is not finite.
        """
        signal = interruption()
        if signal is not None or time.monotonic() - self.last >= self.seconds:
            content = state()
            for part, tensors in content.items():
                if isinstance(tensors, dict):
                    require_finite(tensors, part)
            self.folder.save_checkpoint(content)
            self.last = time.monotonic()
        if signal is not None:
            raise signal


def progress_bar(what: str, total: int, done: int, unit: str) -> "tqdm[Any]":
    """A progress bar with the time left, on standard error; in a log file it prints a line every ten seconds.

    Of processes that share the work only rank 0 shows it.
    """
    return tqdm(
        total=total,
        initial=done,
        desc=what,
        unit=unit,
        mininterval=1.0,
        maxinterval=10.0,
        dynamic_ncols=True,
        disable=not this_process().leads,
    )
