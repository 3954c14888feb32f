"""SIGTERM (a cluster, `docker stop`) and Ctrl-C: a loop that can save its state saves it and ends, all else ends at once."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

import psutil

SIGNALS = (signal.SIGTERM, signal.SIGINT)
SECONDS_BETWEEN_LOOKS = 0.1  # at the DVC that started this stage
OF_DVC = "DVC_STAGE"  # a variable of all that it starts


class Interrupted(BaseException):
    """A signal asked this process to end; no Exception, so that nothing that handles errors handles it."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.exit_code = 128 + number  # as shells have it


class _State:
    received: int | None = None
    loops_that_save = 0


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Within the block a signal raises Interrupted: at once, or in `saving_when_interrupted` after it is looked at.

    Signals that were ignored stay so (nohup). If the DVC that started a stage is gone, that counts as SIGTERM: it tells its
    stages nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    taken = [number for number, other in before.items() if other is not signal.SIG_IGN]
    for number in taken:
        signal.signal(number, _receive)
    done = threading.Event()
    if OF_DVC in os.environ:
        threading.Thread(target=_end_with_dvc, args=(_started_by_dvc(), done), daemon=True).start()
    try:
        yield
    finally:
        done.set()
        for number in taken:
            signal.signal(number, before[number] or signal.SIG_DFL)
        _State.received = None


@contextlib.contextmanager
def saving_when_interrupted() -> Iterator[None]:
    """Within the block a signal is kept for `interruption`, which a loop asks where it can save; a second Ctrl-C raises."""
    _State.loops_that_save += 1
    try:
        yield
    finally:
        _State.loops_that_save -= 1


def interruption() -> Interrupted | None:
    """What to raise after saving, if a signal has asked this process to end."""
    return None if _State.received is None else Interrupted(_State.received)


def _receive(number: int, frame: FrameType | None) -> None:
    # Slurm, torchrun and the end of DVC may each send a SIGTERM for one wish
    first, impatient = _State.received is None, _State.received == number == signal.SIGINT
    _State.received = _State.received or number
    if first and _State.loops_that_save:
        # not print: the main thread may be in it
        os.write(2, b"\nSaving a checkpoint before the end; a second Ctrl-C ends at once.\n")
    elif first or impatient:
        raise Interrupted(number)


def _started_by_dvc() -> psutil.Process:
    """The process of this stage that DVC is the parent of: a shell may have stayed in between (dash does), or torchrun."""
    first = psutil.Process()
    with contextlib.suppress(psutil.Error):  # processes of other users do not show what they were started with
        for parent in first.parents():
            if parent.environ().get(OF_DVC) != os.environ[OF_DVC]:
                break
            first = parent
    return first


def _end_with_dvc(first: psutil.Process, done: threading.Event) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):  # it is gone itself
        parent = first.ppid()
        while first.ppid() == parent:
            if done.wait(SECONDS_BETWEEN_LOOKS):
                return
    os.kill(os.getpid(), signal.SIGTERM)
