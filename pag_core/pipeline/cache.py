"""What is in `.cache`, and what of it can be removed: `python -m pag_core.pipeline.cache`, with `--clear` to remove it.

A run folder is removed when its work succeeds. One that stays belongs to work that was interrupted; only a run with the same
parameters, inputs, code and versions resumes it. The raw copy of a gradient store (`feed.mode: memory_map`) stays for the
next training. Both can be removed whenever no process holds them: the work starts again, the copy is made again.
"""

import contextlib
import datetime
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from pag_core.errors import PagError
from pag_core.pipeline.artifacts import readable_bytes
from pag_core.pipeline.checkpoint import cache_root
from pag_core.pipeline.locks import locked
from pag_core.pipeline.raw_copies import is_held, remove_unheld


@dataclass(frozen=True)
class Entry:
    """A run folder, a raw copy, an unfinished one or a lock: its size, when it was last written, whether a process holds it."""

    kind: str
    path: Path
    bytes: int
    written: float
    held: bool


def entries(root: Path) -> list[Entry]:
    """Everything in `root`, the oldest first."""
    found: list[Entry] = []
    for path in root.iterdir() if root.exists() else ():
        sizes = list(_sizes(path))
        if not sizes or path.name == "locks":
            continue
        size, written = sum(size for size, _ in sizes), max(at for _, at in sizes)
        if path.is_dir():
            found.append(Entry("run folder", path, size, written, _is_locked(root, path.name)))
        elif path.suffix == ".raw":
            found.append(Entry("raw copy", path, size, written, is_held(path)))
        elif path.suffix == ".partial":
            found.append(Entry("unfinished", path, size, written, _is_locked(root, _lock_of_writer(path))))
    named = {entry.path.name for entry in found}
    for lock in (root / "locks").glob("*"):
        for size, written in _sizes(lock):
            if lock.name not in named:
                found.append(Entry("lock", lock, size, written, _is_locked(root, lock.name)))
    return sorted(found, key=lambda entry: entry.written)


def _sizes(path: Path) -> Iterator[tuple[int, float]]:
    """Bytes, and when it was written, of `path` and all in it; what a running stage renames or removes meanwhile is gone."""
    for place in [path, *(Path(folder, name) for folder, _, files in os.walk(path) for name in files)]:
        with contextlib.suppress(FileNotFoundError):
            state = place.stat()
            yield (0 if place.is_dir() else state.st_size), state.st_mtime


def _lock_of_writer(partial: Path) -> str:
    """The lock that the writer of an unfinished raw copy, `.NAME-CONTENT.raw.*.partial`, holds."""
    return f"{partial.name[1:].rsplit('-', 1)[0]}.raw"


def clear(root: Path) -> list[Entry]:
    """Remove what no process holds, and return it; a process that arrives meanwhile waits, and starts again."""
    removed = []
    for entry in entries(root):
        if entry.kind == "raw copy":
            gone = remove_unheld(entry.path)
        else:
            unfinished = entry.kind == "unfinished"
            with _locked(root, _lock_of_writer(entry.path) if unfinished else entry.path.name) as gone:
                if gone and unfinished:
                    entry.path.unlink(missing_ok=True)
                elif gone and entry.kind == "run folder":
                    shutil.rmtree(entry.path, ignore_errors=True)
        if gone:
            removed.append(entry)
    return removed


def _is_locked(root: Path, name: str) -> bool:
    with locked(root / "locks" / name, wait=False) as held:
        return not held


@contextlib.contextmanager
def _locked(root: Path, name: str) -> Iterator[bool]:
    """Hold the lock `name`, and remove it in the end; False where another process has it."""
    path = root / "locks" / name
    with locked(path, wait=False) as held:
        yield held
        # before it is released: a process that waits for it finds it gone, and makes a new one
        if held:
            path.unlink()


def main(
    clear_unheld: Annotated[bool, typer.Option("--clear", help="Remove what no running process holds.")] = False,
) -> None:
    """List what is in .cache; with --clear remove what no running process holds."""
    root = cache_root()
    try:
        shown = clear(root) if clear_unheld else entries(root)
    except PagError as error:
        print(error, file=sys.stderr)
        sys.exit(1)
    for entry in shown:
        written = datetime.datetime.fromtimestamp(entry.written).isoformat(sep=" ", timespec="minutes")
        state = "removed" if clear_unheld else "in use" if entry.held else "not in use"
        print(f"{entry.kind:10}  {written}  {readable_bytes(entry.bytes):>10}  {state:10}  {entry.path.name}")
    total = readable_bytes(sum(entry.bytes for entry in shown))
    print(f"{root}: {len(shown)} {'removed' if clear_unheld else 'entries'}, {total}")


if __name__ == "__main__":
    typer.run(main)
