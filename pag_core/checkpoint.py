"""Work in progress, so that a killed run goes on from where it was.

It lives in `.cache/<stage>-<fingerprint>/` of the main repository (DVC names it in DVC_ROOT, also for experiments that
run in a temporary copy). The fingerprint covers parameters, input contents, code, versions and kind of device: work
that was begun under other conditions is never taken up again.
"""

import contextlib
import json
import os
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import filelock
import torch

from pag_core.artifacts import digest, replacing_file, write_json
from pag_core.processes import this_process
from pag_core.provenance import code_digest, versions


class RunFolder:
    """The folder of one piece of long work: a checkpoint that is overwritten, and finished units that stay."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def save_checkpoint(self, state: dict[str, Any]) -> None:
        """Replace the checkpoint, atomically."""
        with replacing_file(self.path / "checkpoint.pt") as partial:
            torch.save(state, partial)

    def load_checkpoint(self, device: torch.device) -> dict[str, Any] | None:
        """The last checkpoint with its tensors on `device`, or None. An unreadable one is moved aside, and said so."""
        path = self.path / "checkpoint.pt"
        if not path.exists():
            return None
        try:
            state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
        except (RuntimeError, EOFError, OSError, pickle.UnpicklingError) as error:
            aside = path.with_suffix(".unreadable")
            path.replace(aside)
            print(f"The checkpoint {path} cannot be read ({error}); kept as {aside.name}, starting anew.", flush=True)
            return None
        return state

    def save_unit(self, name: str, result: dict[str, Any]) -> None:
        """Keep the result of a finished unit of work."""
        write_json(self.path / "units" / f"{name}.json", result)

    def load_unit(self, name: str) -> dict[str, Any] | None:
        """The result of the unit `name`, or None where it is not finished."""
        path = self.path / "units" / f"{name}.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    def discard(self) -> None:
        """Remove the folder: the work has become an artifact."""
        shutil.rmtree(self.path)


@contextlib.contextmanager
def run_folder(stage: str, identity: dict[str, Any], device: torch.device) -> Iterator[RunFolder]:
    """The work folder of `stage` for `identity` (its params and the fingerprints of its inputs).

    Held by one process at a time; a second one with the same identity waits. Removed when the body ends well.
    """
    root = Path(os.environ.get("DVC_ROOT", ".")) / ".cache"
    (root / "locks").mkdir(parents=True, exist_ok=True)
    whole = {"identity": identity, "code": code_digest(), "versions": versions(), "device": device.type}
    path = root / f"{stage}-{digest(whole)[:20]}"
    if not this_process().leads:
        # the process of rank 0 holds the lock, and made or found the folder
        yield RunFolder(path)
        return
    lock = filelock.FileLock(root / "locks" / path.name)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        print(f"Another process is doing the same work in {path}; waiting for it.", flush=True)
        lock.acquire()
    with lock:
        path.mkdir(exist_ok=True)
        folder = RunFolder(path)
        yield folder
        folder.discard()
