"""Raw copies of what a training reads, in `.cache`: written once, checked when opened, held while a process reads them."""

import fcntl
import warnings
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray

from pag_core.compute.processes import this_process
from pag_core.pipeline.artifacts import file_record, read_sealed_json, replacing_file, write_sealed_json
from pag_core.pipeline.locks import locked, naming_missing_locks

# the copies that this process reads, open and locked so that no other run removes them
_held: list[BinaryIO] = []


def hold_raw_copy(path: Path, write: Callable[[BinaryIO], None]) -> None:
    """Make sure that the raw copy `path`, `NAME-CONTENT.raw`, exists, and hold it for as long as this process lives.

    `write` fills it, whole or not at all, if it is missing or its SHA-256 is not the one recorded beside it. Of processes
    that share the work one looks, the others take what it holds: each would read the whole file, one after the other.
    """
    with _locked(path):
        seen = not this_process().leads and path.exists() and is_held(path)
        if path.exists() and not seen and not _is_as_written(path):
            print(f"{path} is not what was written; it is made again.", flush=True)
            path.unlink()
        if not path.exists():
            with replacing_file(path) as partial:
                with partial.open("wb") as file:
                    write(file)
                # the record first: a copy without one is made again, but one with another copy's record would be trusted
                write_sealed_json(_record_of(path), file_record(partial))
        held = path.open("rb")
        with naming_missing_locks(path):
            fcntl.flock(held, fcntl.LOCK_SH)
        _held.append(held)


def mapped_copy(path: Path, parts: Iterable[NDArray[Any]], dtype: DTypeLike, shape: tuple[int, ...]) -> torch.Tensor:
    """A read-only map of the raw copy `path`, held as by `hold_raw_copy`; `parts` in their order are all of it."""

    def write(file: BinaryIO) -> None:
        for values in parts:
            # not by tofile, which does not report a block that a full disk did not take
            file.write(np.ascontiguousarray(values).data)

    hold_raw_copy(path, write)
    mapped = np.memmap(path, dtype=dtype, mode="r", shape=shape)
    with warnings.catch_warnings():
        # torch has no read-only tensors; nothing writes to this one
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(mapped)


def remove_stale_copies(path: Path) -> None:
    """Remove what is left of other contents, and of killed writers, of the copy `path`, unless a process holds it."""
    with _locked(path):
        for stale in path.parent.glob(f"{_name(path)}-*.raw"):
            if stale != path:
                _remove_unheld(stale)
        for partial in path.parent.glob(f".{_name(path)}-*.partial"):
            partial.unlink()


def _name(path: Path) -> str:
    return path.name.rsplit("-", 1)[0]


def _locked(path: Path) -> AbstractContextManager[bool]:
    """The lock of all copies of one name, of which a writer holds it while it writes."""
    return locked(path.parent / "locks" / f"{_name(path)}.raw")


def _record_of(path: Path) -> Path:
    return path.with_suffix(".raw.json")


def _is_as_written(path: Path) -> bool:
    """Whether the copy has the size and SHA-256 that were recorded when it was written: one sequential read of it."""
    try:
        stated = read_sealed_json(_record_of(path))
    except (OSError, ValueError):
        return False
    return {**file_record(path), "checksum": stated["checksum"]} == stated


def _remove_unheld(path: Path) -> None:
    """Remove a raw copy with its record unless a process reads it."""
    with path.open("rb") as file:
        if _locked_alone(file):
            path.unlink()
            _record_of(path).unlink(missing_ok=True)


def is_held(path: Path) -> bool:
    """Whether a process reads a raw copy."""
    with path.open("rb") as file:
        return not _locked_alone(file)


def _locked_alone(file: BinaryIO) -> bool:
    try:
        with naming_missing_locks(Path(file.name)):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
