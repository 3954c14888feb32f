"""Work in progress, so that a killed run resumes where it stopped.

It lives in `.cache/<stage>-<fingerprint>/` of the main repository (DVC names it in DVC_ROOT, also for experiments that
run in a temporary copy). The fingerprint covers parameters, input contents, code, versions and device: work
that was begun under other conditions is never resumed.
"""

import contextlib
import hashlib
import io
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from pag_core.compute import process_group
from pag_core.compute.device import device_description
from pag_core.compute.processes import is_rank, this_process
from pag_core.pipeline.artifacts import digest, replacing_file, write_json
from pag_core.pipeline.code_identity import code_fingerprint
from pag_core.pipeline.locks import holding
from pag_core.pipeline.provenance import versions

DIGEST_BYTES = hashlib.sha256().digest_size
# where ranks, whose number of threads differs, find the folder of the rank 0 that started them
RUN_FOLDER = "PAG_RUN_FOLDER"


class RunFolder:
    """The folder of one piece of long work: a checkpoint that is overwritten, and finished units that stay."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def save_checkpoint(self, state: dict[str, Any]) -> None:
        """Replace the checkpoint, atomically. Its SHA-256 comes first, because torch does not notice a changed weight."""
        buffer = io.BytesIO()
        torch.save(state, buffer)
        content = buffer.getbuffer()
        with replacing_file(self.path / "checkpoint.pt") as partial, partial.open("wb") as file:
            file.write(hashlib.sha256(content).digest())
            file.write(content)

    def load_checkpoint(self, device: torch.device) -> dict[str, Any] | None:
        """The last checkpoint with its tensors on `device`, or None. A damaged one is moved aside, with a message."""
        path = self.path / "checkpoint.pt"
        if not path.exists():
            return None
        whole = path.read_bytes()
        stated, content = whole[:DIGEST_BYTES], whole[DIGEST_BYTES:]
        if hashlib.sha256(content).digest() != stated:
            aside = path.with_suffix(".unreadable")
            path.replace(aside)
            print(f"The checkpoint {path} is damaged; it is kept as {aside.name}. Starting again.", flush=True)
            return None
        state: dict[str, Any] = torch.load(io.BytesIO(content), map_location=device, weights_only=True)
        return state

    def save_unit(self, name: str, result: dict[str, Any]) -> None:
        """Keep the result of a finished unit of work."""
        write_json(self.path / "units" / f"{name}.json", result)

    def load_unit(self, name: str) -> dict[str, Any] | None:
        """The result of the unit `name`, or None if it is not finished."""
        path = self.path / "units" / f"{name}.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    def claim(self, name: str) -> bool:
        """Whether this process is the first to claim the unit `name` since `forget_claims`."""
        path = self.path / "claims" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            path.touch(exist_ok=False)
        except FileExistsError:
            return False
        return True

    def forget_claims(self) -> None:
        """Drop all claims: those of a killed run no longer count."""
        shutil.rmtree(self.path / "claims", ignore_errors=True)

    def discard(self) -> None:
        """Remove the folder: the work has become an artifact."""
        shutil.rmtree(self.path)


def cache_root() -> Path:
    """The folder of all work in progress: `.cache` of the main repository, or of the current folder without DVC."""
    return Path(os.environ.get("DVC_ROOT", ".")) / ".cache"


@contextlib.contextmanager
def run_folder(stage: str, identity: dict[str, Any], device: torch.device) -> Iterator[RunFolder]:
    """The work folder of `stage` for `identity` (its params and the fingerprints of its inputs).

    Held by one process at a time, or by the processes that share the work; a second run with the same identity waits.
    Removed when the body succeeds. Raises RankLost if a rank of torchrun is gone.
    """
    if not this_process().leads:
        told = os.environ.get(RUN_FOLDER) or process_group.join(device).from_leader(None)
        yield RunFolder(Path(told))
        return
    root = cache_root()
    whole = {
        "identity": identity,
        "code": code_fingerprint(),
        "versions": versions(),
        "device": device_description(device),
    }
    path = root / f"{stage}-{digest(whole)[:20]}"
    with holding(root / "locks" / path.name, f"doing the same work in {path}"):
        path.mkdir(exist_ok=True)
        os.environ[RUN_FOLDER] = str(path.resolve())
        if is_rank():
            process_group.join(device).from_leader(str(path.resolve()))
        folder = RunFolder(path)
        yield folder
        folder.discard()
