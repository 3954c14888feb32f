"""Several processes at one piece of work: ranks that torchrun starts, or companions that a stage starts itself."""

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from pag_core.compute import process_group
from pag_core.compute.interruption import interrupt_main_thread
from pag_core.errors import CompanionLost, PagError

COMPANION = "PAG_COMPANION"
SECONDS_BETWEEN_LOOKS = 0.1  # at the companions
SECONDS_TO_STOP = 15.0  # for a process whose companion failed, before it is ended in any case


@dataclass(frozen=True)
class Process:
    """This process among those that share the work: `rank` of `count`; rank 0 takes locks and writes what all made."""

    rank: int
    count: int

    @property
    def leads(self) -> bool:
        return self.rank == 0


def under_torchrun() -> bool:
    """Whether torchrun started this process, so that its ranks exist already."""
    return "TORCHELASTIC_RUN_ID" in os.environ and COMPANION not in os.environ


def this_process() -> Process:
    """Rank and count that torchrun, or the process that started this companion, gave it; else 0 of 1."""
    if under_torchrun() or COMPANION in os.environ:
        return Process(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
    return Process(0, 1)


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
    return this_process().count if under_torchrun() or COMPANION in os.environ else wanted or 1


def processes_here(wanted: int | None) -> int:
    """Of the processes that train one network, those on this machine, which share its memory."""
    if under_torchrun() or COMPANION in os.environ:
        return int(os.environ["LOCAL_WORLD_SIZE"])
    return replica_count(wanted)


def divide_cores(count: int) -> None:
    """Leave this process the CPU threads of one of `count` on this machine; companions and ranks of torchrun have theirs."""
    if not under_torchrun() and COMPANION not in os.environ and count > 1:
        torch.set_num_threads(min(torch.get_num_threads(), max(1, usable_cores() // count)))


@contextlib.contextmanager
def companions(count: int, *, device: torch.device | None = None, units: int | None = None) -> Iterator[Process]:
    """Start `count - 1` further processes of this very command and yield this one's place among them.

    At most as many as there are `units` of work, if their number is given. Each still has the threads of one of `count`, so
    that results do not depend on how many units were left.
    With `device` they form a process group for work on it. On leaving, a companion exits, and rank 0 waits for the
    others; raises CompanionLost, also in the middle of the work, if one failed. They end when rank 0 dies, so that a
    killed run leaves nothing behind. On the CPU the processes share the cores. Under torchrun nothing is started, its
    ranks enter together, and rank 0 continues alone when all have left.
    """
    if under_torchrun():
        yield from _ranks_of_torchrun(device or torch.device("cpu"))
    elif COMPANION in os.environ:
        _end_with_parent()
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
        group = process_group.join(device, process_group.opened_store()) if device is not None else None
        yield this_process()
        if group is not None:
            group.wait_for_all()
            group.leave()
        sys.exit(0)
    else:
        divide_cores(count)
        started = count if units is None else max(1, min(count, units))
        if started == 1:
            yield Process(0, 1)
        else:
            yield from _started(started, device)


def _ranks_of_torchrun(device: torch.device) -> Iterator[Process]:
    group = process_group.join(device)
    # rank 0 has prepared the work (forgotten stale claims) before any rank begins
    group.wait_for_all()
    yield this_process()
    group.wait_for_all()
    group.leave()
    if not this_process().leads:
        sys.exit(0)


def _started(count: int, device: torch.device | None) -> Iterator[Process]:
    store = process_group.open_store(count) if device is not None else None
    place = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    if store is not None:
        place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)}
    watch = _Watch([_start(rank, place) for rank in range(1, count)])
    try:
        with _environment({**place, "RANK": "0", "LOCAL_RANK": "0"}):
            group = process_group.join(device, store) if device is not None else None
            yield Process(0, count)
            if group is not None:
                group.wait_for_all()
                group.leave()
        watch.wait_for_all()
    except BaseException as error:
        failure = watch.failure_behind(error)
        if failure is None:
            raise
        raise CompanionLost(failure) from error
    finally:
        watch.end_all()


def _start(rank: int, place: dict[str, str]) -> "subprocess.Popen[bytes]":
    threads = str(torch.get_num_threads())
    environment = {
        **os.environ, **place, COMPANION: "1", "RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": threads,
    }  # fmt: skip
    # the pipe to its standard input closes when this process dies, however it dies
    return subprocess.Popen([sys.executable, *sys.argv], env=environment, stdin=subprocess.PIPE)


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Environment variables as torchrun sets them, for the libraries that read them, until the block ends."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


class _Watch:
    """Watches the companions from a thread; when one fails it ends the others and interrupts the main thread.

    A main thread that cannot be interrupted (in a collective that waits for a dead process) is ended after a while.
    """

    def __init__(self, started: "list[subprocess.Popen[bytes]]") -> None:
        self._started = started
        self._failure: str | None = None
        self._working = True
        self._lock = threading.Lock()
        self._left = threading.Event()
        threading.Thread(target=self._look, daemon=True).start()

    def _look(self) -> None:
        while not any(process.poll() for process in self._started):
            if self._left.wait(SECONDS_BETWEEN_LOOKS):
                return
        with self._lock:
            if not self._working:
                return
            self._failure = self._failed()
            for process in self._started:
                process.kill()
            interrupt_main_thread()
        if not self._left.wait(SECONDS_TO_STOP):
            print(f"\nCompanionLost: {self._failure}", file=sys.stderr, flush=True)
            os._exit(1)

    def _failed(self) -> str | None:
        codes = {rank: process.poll() for rank, process in enumerate(self._started, start=1)}
        # those that a signal ended (codes below 0) come first: others may have failed because these were gone
        failed = sorted((code, rank) for rank, code in codes.items() if code)
        if not failed:
            return None
        code, rank = failed[0]
        return (
            f"process {rank} of {len(self._started) + 1} ended with exit code {code} (its message, if it had one, is "
            "above); finished work is kept; run again to resume"
        )

    def wait_for_all(self) -> None:
        """Wait until the companions have ended; raises CompanionLost if one failed."""
        for process in self._started:
            process.wait()
        if failure := self._failed():
            raise CompanionLost(failure)

    def failure_behind(self, error: BaseException) -> str | None:
        """The failed companion because of which the main thread stopped with `error`, or None; ends the watch."""
        if isinstance(error, PagError) and not isinstance(error, CompanionLost):
            self._stop()
            return None
        if isinstance(error, Exception):
            # a broken connection may be noticed before the companion behind it has ended
            with contextlib.suppress(subprocess.TimeoutExpired, KeyboardInterrupt):
                for process in self._started:
                    process.wait(timeout=1.0)
        self._stop()
        return self._failure or (self._failed() if isinstance(error, Exception) else None)

    def _stop(self) -> None:
        # the watch may have interrupted this thread while it was on its way here
        with contextlib.suppress(KeyboardInterrupt), self._lock:
            self._working = False
        self._working = False

    def end_all(self) -> None:
        """End the companions and the watch."""
        self._stop()
        self._left.set()
        for process in self._started:
            process.kill()
            process.wait()


def _end_with_parent() -> None:
    def watch() -> None:
        # not sys.stdin: a thread that waits in it would hold its lock when the interpreter ends
        while os.read(0, 1):
            pass
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
