"""Several processes at one piece of work: the ranks that torchrun starts, or that a stage starts beside itself."""

import contextlib
import logging
import multiprocessing
import os
import runpy
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing import resource_tracker
from typing import Any

import torch
from torch.multiprocessing.spawn import ProcessContext, ProcessExitedException, start_processes

from pag_core.compute import process_group
from pag_core.compute.interruption import SIGNALS
from pag_core.errors import RankLost

STARTED_RANK = "PAG_STARTED_RANK"
SECONDS_TO_STOP = 15.0  # for a process when another failed, before it is given up

# it warns of every rank that it ends because another failed
logging.getLogger(start_processes.__module__).setLevel(logging.ERROR)


@dataclass(frozen=True)
class Process:
    """This process among those that share the work: `rank` of `count`; rank 0 takes locks and writes what all made."""

    rank: int
    count: int

    @property
    def leads(self) -> bool:
        return self.rank == 0


def is_rank() -> bool:
    """Whether this process was started as one of several, by torchrun or by a rank 0."""
    return "TORCHELASTIC_RUN_ID" in os.environ or STARTED_RANK in os.environ


def this_process() -> Process:
    """Rank and count that torchrun, or the rank 0 that started this process, gave it; else 0 of 1."""
    return Process(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])) if is_rank() else Process(0, 1)


def usable_cores() -> int:
    """Cores of the CPU that this process may use; where the system has no such limit (macOS), all there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def process_count(wanted: int | None, device: torch.device) -> int:
    """Processes for independent units of work: `wanted`, or if that is None one per core of the CPU, one on a GPU.

    Under torchrun they are always its ranks.
    """
    if wanted is None:
        wanted = usable_cores() if device.type == "cpu" else 1
    return replica_count(wanted)


def replica_count(wanted: int | None) -> int:
    """Processes for training one network: `wanted`, or one if that is None; under torchrun its ranks."""
    return this_process().count if is_rank() else wanted or 1


def processes_here(wanted: int | None) -> int:
    """Of the processes that train one network, those on this machine, which share its memory."""
    return int(os.environ["LOCAL_WORLD_SIZE"]) if is_rank() else replica_count(wanted)


def divide_cores(count: int) -> None:
    """Leave this process the CPU threads of one of `count` on this machine; one that was started as a rank has them."""
    if not is_rank() and count > 1:
        torch.set_num_threads(min(torch.get_num_threads(), max(1, usable_cores() // count)))


@contextlib.contextmanager
def ranks(count: int, *, device: torch.device | None = None, units: int | None = None) -> Iterator[Process]:
    """Start `count - 1` further ranks, which run this very command, and yield this process's place among them.

    At most as many as there are `units` of work, if their number is given. Each still has the threads of one of `count`, so
    that results do not depend on how many units were left.
    With `device` they form a process group for work on it. On leaving, rank 0 waits for the others, and goes on alone;
    raises RankLost, also in the middle of the work, if one failed. They end when rank 0 dies, so that a killed run leaves
    nothing behind. On the CPU the processes share the cores. Under torchrun nothing is started, and its ranks enter together.
    """
    if is_rank():
        if started := STARTED_RANK in os.environ:
            torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
        with _group(device if started else device or torch.device("cpu")):
            yield this_process()
        if not this_process().leads:
            sys.exit(0)
        return
    divide_cores(count)
    count = count if units is None else max(1, min(count, units))
    if count == 1:
        yield Process(0, 1)
    else:
        yield from _started(count, device)


def _group(device: torch.device | None) -> contextlib.AbstractContextManager[None]:
    return contextlib.nullcontext() if device is None else process_group.joined(device)


def _started(count: int, device: torch.device | None) -> Iterator[Process]:
    place = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    if device is not None:
        store = process_group.open_store()
        address = {"MASTER_ADDR": store.host, "MASTER_PORT": str(store.port)}
        place |= {**address, "TORCHELASTIC_USE_AGENT_STORE": "True"}  # rank 0 does not open another
    watch = _Watch(count)
    handler = signal.signal(signal.SIGCHLD, watch.tell)
    try:
        watch.begin(_start(count - 1, place))
        os.environ.update(place, RANK="0", LOCAL_RANK="0")  # as torchrun, for libraries that read them
        with _group(device):
            yield Process(0, count)
        watch.thread.join()
    except RankLost:
        watch.wait_for_failure()
        raise
    finally:
        signal.signal(signal.SIGCHLD, handler)
        watch.end()


class _Watch:
    """Looks from a thread at the ranks that were started; where one fails it ends the others and raises in the main thread."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._lost: RankLost | None = None
        self._left = threading.Event()
        self.thread = threading.Thread(target=self._look, daemon=True)

    def begin(self, others: ProcessContext) -> None:
        self._others = others
        self.thread.start()

    def tell(self, *_: object) -> None:
        """As a handler of the signal that a process has ended."""
        if self._lost:
            raise self._lost

    def wait_for_failure(self) -> None:
        """A broken connection is noticed before the process behind it has ended, which `tell` then raises."""
        if not self._lost:
            self.thread.join(SECONDS_TO_STOP)

    def end(self) -> None:
        """End the ranks and the watch."""
        self._left.set()
        for process in multiprocessing.active_children():
            process.kill()
        if self.thread.ident is not None:
            self.thread.join()

    def _look(self) -> None:
        try:
            while not self._others.join(grace_period=0):
                pass
        except ProcessExitedException as error:
            which = f"process {error.error_index + 1} of {self._count} ended with exit code {error.exit_code}"
            remedy = "(its message, if it had one, is above); finished work is kept; run again to resume"
            self._lost = RankLost(f"{which} {remedy}")
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGCHLD)
            # the main thread takes no signal in a collective on a GPU, which waits for what is gone
            if not self._left.wait(SECONDS_TO_STOP):
                print(f"\nRankLost: {self._lost}", file=sys.stderr, flush=True)
                os._exit(1)


def _start(count: int, place: dict[str, str]) -> ProcessContext:
    """Ranks that never see the signals of `interruption`: a terminal sends them to all, and rank 0 ends its others."""
    resource_tracker.ensure_running()  # Python 3.11 unblocks signals in there
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        place = {**place, "OMP_NUM_THREADS": str(torch.get_num_threads())}
        others: ProcessContext = start_processes(_run, (place,), nprocs=count, join=False)
        return others
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _run(index: int, place: dict[str, str]) -> None:
    os.environ.update(place, RANK=str(index + 1), LOCAL_RANK=str(index + 1), **{STARTED_RANK: "1"})
    threading.Thread(target=_end_with_parent, daemon=True).start()
    code: Any = 0
    try:
        runpy.run_path(str(sys.modules["__main__"].__file__), run_name="__main__")
    except SystemExit as end:
        code = end.code
    except Exception:
        traceback.print_exc()
        code = 1
    # rank 0 waits: an interpreter that has torch takes a second to end by itself
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    # torch would tell by SIGINT, which Ctrl-C sends as well
    parent.join()
    os._exit(1)
