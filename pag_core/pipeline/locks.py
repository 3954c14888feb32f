"""Work that one process does at a time, also where several were started."""

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

import filelock
import psutil

from pag_core.errors import LocksUnavailable

# what a file system without flock answers. There filelock would lock by a file that exists, which a killed process leaves
MISSING = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


@contextlib.contextmanager
def holding(path: Path, work: str) -> Iterator[None]:
    """Hold the lock file `path`; a process that has to wait for another says what `work` that one is at.

    Raises LocksUnavailable on a file system without locks.
    """
    with locked(path, wait=False) as held:
        if held:
            yield
            return
    print(f"Another process is {work}; waiting for it.", flush=True)
    with locked(path):
        yield


@contextlib.contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[bool]:
    """Hold the lock file `path`; without `wait` False, and nothing is held, where another process has it.

    Raises LocksUnavailable on a file system without locks.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(path, fallback_to_soft=False)
    try:
        with naming_missing_locks(path):
            lock.acquire(timeout=-1 if wait else 0)
    except filelock.Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


@contextlib.contextmanager
def naming_missing_locks(path: Path) -> Iterator[None]:
    """Turn the error of a lock that the file system of `path` does not have into LocksUnavailable, which says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno not in MISSING:
            raise
        raise LocksUnavailable(
            f"{path} cannot be locked ({error.strerror}): {_file_system(path)} is mounted without file locks (flock); mount "
            "it with them (Lustre: -o flock; NFS: its lock service), or work in a folder on another disk"
        ) from error


def _file_system(path: Path) -> str:
    """The file system that `path` lies on, by its kind and its place."""
    mounts = {part.mountpoint: part.fstype for part in psutil.disk_partitions(all=True)}
    place = next((str(parent) for parent in path.resolve().parents if str(parent) in mounts), "/")
    return f"{place} ({mounts[place]})" if place in mounts else place
