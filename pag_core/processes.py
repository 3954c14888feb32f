"""Several processes at one piece of work: ranks as torchrun numbers them, or companions that a stage starts itself."""

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from pag_core.errors import CompanionLost

COMPANION = "PAG_COMPANION"


@dataclass(frozen=True)
class Process:
    """This process among those that share the work: `rank` of `count`; rank 0 takes locks and writes what all made."""

    rank: int
    count: int

    @property
    def leads(self) -> bool:
        return self.rank == 0


def this_process() -> Process:
    """Rank and count from the environment (RANK and WORLD_SIZE, as torchrun sets them), else 0 of 1."""
    return Process(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))


def process_count(wanted: int | None, device: torch.device) -> int:
    """`wanted`, or where it is None one process for each core of the CPU; one where a GPU does the work."""
    if wanted is not None:
        return wanted
    return len(os.sched_getaffinity(0)) if device.type == "cpu" else 1


@contextlib.contextmanager
def companions(count: int) -> Iterator[Process]:
    """Start `count - 1` further processes of this very command and yield this one's place among them.

    On leaving, a companion exits, and rank 0 waits for the others; raises CompanionLost if one failed. They end when
    rank 0 dies, so that a killed run leaves nothing behind. On the CPU the processes share the cores.
    """
    if os.environ.get(COMPANION):
        _end_with_parent()
        yield this_process()
        sys.exit(0)
    if count > 1:
        torch.set_num_threads(max(1, torch.get_num_threads() // count))
    started = [_start(rank, count) for rank in range(1, count)]
    try:
        yield Process(0, count)
        for rank, process in enumerate(started, start=1):
            if process.wait() != 0:
                raise CompanionLost(
                    f"process {rank} of {count} ended with exit code {process.returncode} (its message is above); "
                    "finished work is kept, run again to go on"
                )
    finally:
        for process in started:
            process.kill()
            process.wait()


def _start(rank: int, count: int) -> "subprocess.Popen[bytes]":
    threads = str(torch.get_num_threads())
    environment = {
        **os.environ, COMPANION: "1", "RANK": str(rank), "WORLD_SIZE": str(count), "OMP_NUM_THREADS": threads,
    }  # fmt: skip
    # the pipe to its standard input closes when this process dies, however it dies
    return subprocess.Popen([sys.executable, *sys.argv], env=environment, stdin=subprocess.PIPE)


def _end_with_parent() -> None:
    def watch() -> None:
        # not sys.stdin, whose lock a thread that waits in it would hold at the interpreter's end
        while os.read(0, 1):
            pass
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
