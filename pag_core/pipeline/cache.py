"""What is in `.cache`, and what of it can be removed: `python -m pag_core.pipeline.cache`, with `--clear` to remove it.

A run folder is removed when its work succeeds. One that stays belongs to work that was interrupted; only a run with the same
parameters, inputs, code and versions resumes it. The raw copy of a gradient store (`feed.mode: memory_map`) stays for the
next training. Both can be removed whenever no process holds them: the work starts again, the copy is made again.
"""

import contextlib
import datetime
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import filelock
import typer

from pag_core.pipeline.artifacts import readable_bytes
from pag_core.pipeline.checkpoint import cache_root
from pag_core.pipeline.raw_copies import is_held, remove_unheld


@dataclass(frozen=True)
class Entry:
    """A run folder, a raw copy or a lock of `.cache`: its size, when it was last written, whether a process holds it."""

    kind: str
    path: Path
    bytes: int
    written: float
    held: bool


def entries(root: Path) -> list[Entry]:
    """Everything in `root`, the oldest first."""
    found: list[Entry] = []
    for path in root.iterdir() if root.exists() else ():
        if path.is_dir() and path.name != "locks":
            files = [file for file in path.rglob("*") if file.is_file()]
            written = max(file.stat().st_mtime for file in [path, *files])
            size = sum(file.stat().st_size for file in files)
            found.append(Entry("run folder", path, size, written, _is_locked(root, path.name)))
        elif path.suffix == ".raw":
            found.append(Entry("raw copy", path, path.stat().st_size, path.stat().st_mtime, is_held(path)))
    named = {entry.path.name for entry in found}
    for lock in (root / "locks").glob("*"):
        if lock.name not in named:
            found.append(Entry("lock", lock, 0, lock.stat().st_mtime, _is_locked(root, lock.name)))
    return sorted(found, key=lambda entry: entry.written)


def clear(root: Path) -> list[Entry]:
    """Remove what no process holds, and return it; a process that arrives meanwhile waits, and starts again."""
    removed = []
    for entry in entries(root):
        if entry.kind == "raw copy":
            gone = remove_unheld(entry.path)
        else:
            with _locked(root, entry.path.name) as gone:
                if gone and entry.kind == "run folder":
                    shutil.rmtree(entry.path)
        if gone:
            removed.append(entry)
    return removed


def _is_locked(root: Path, name: str) -> bool:
    lock = filelock.FileLock(root / "locks" / name)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        return True
    lock.release()
    return False


@contextlib.contextmanager
def _locked(root: Path, name: str) -> Iterator[bool]:
    """Hold the lock `name`, and remove it in the end; False where another process has it."""
    lock = filelock.FileLock(root / "locks" / name)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        yield False
        return
    try:
        yield True
        # before it is released: a process that waits for it finds it gone, and makes a new one
        os.unlink(lock.lock_file)  # noqa: PTH108
    finally:
        lock.release()


def main(
    clear_unheld: Annotated[bool, typer.Option("--clear", help="Remove what no running process holds.")] = False,
) -> None:
    """List what is in .cache; with --clear remove what no running process holds."""
    root = cache_root()
    shown = clear(root) if clear_unheld else entries(root)
    for entry in shown:
        written = datetime.datetime.fromtimestamp(entry.written).isoformat(sep=" ", timespec="minutes")
        state = "removed" if clear_unheld else "in use" if entry.held else "not in use"
        print(f"{entry.kind:10}  {written}  {readable_bytes(entry.bytes):>10}  {state:10}  {entry.path.name}")
    total = readable_bytes(sum(entry.bytes for entry in shown))
    print(f"{root}: {len(shown)} {'removed' if clear_unheld else 'entries'}, {total}")


if __name__ == "__main__":
    typer.run(main)
