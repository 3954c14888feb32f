"""Work that one process does at a time, also where several were started."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import filelock


@contextlib.contextmanager
def holding(path: Path, work: str) -> Iterator[None]:
    """Hold the lock file `path`; a process that has to wait for another says what `work` that one is at."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(path)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        print(f"Another process is {work}; waiting for it.", flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
