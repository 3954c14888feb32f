"""Outputs appear whole or not at all: everything is written beside its destination and renamed into place."""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pag_core.errors import ArtifactError

GIGABYTE = 1e9


def remove_stale_partials(path: Path) -> None:
    """Make the folder of `path`, and remove what a killed writer of `path` left in it (one process writes a path).

    The output that it was about to replace comes back if nothing has taken its place.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _settle(path)
    for stale in path.parent.glob(f".{path.name}.*.partial"):
        if stale.is_dir():
            shutil.rmtree(stale, ignore_errors=True)
        else:
            stale.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`; on success it is synced and renamed to `path`, else removed."""
    remove_stale_partials(path)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
    os.close(handle)
    partial = Path(name)
    try:
        yield partial
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        # mkstemp creates files readable by their owner alone; a result is an ordinary file
        partial.chmod(0o644)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Yield an empty temporary folder beside `path`; on success it takes the place of `path`, else it is removed."""
    remove_stale_partials(path)
    partial = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent))
    try:
        yield partial
        partial.chmod(0o755)
        if path.is_dir():
            # a folder cannot be replaced, and one that is removed file by file would lie there in part after a kill
            path.replace(_aside(path))
        partial.replace(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        _settle(path)


def _aside(path: Path) -> Path:
    return path.with_name(f".{path.name}.before.partial")


def _settle(path: Path) -> None:
    """Remove the folder that was set aside for a new one, or put it back if there is none."""
    aside = _aside(path)
    if aside.is_dir():
        if path.exists():
            shutil.rmtree(aside, ignore_errors=True)
        else:
            aside.replace(path)


def canonical_json(content: Any) -> str:
    """JSON with sorted keys, so that equal contents are equal bytes; raises ValueError on NaN and infinity."""
    return json.dumps(content, sort_keys=True, indent=2, allow_nan=False, ensure_ascii=False) + "\n"


def write_json(path: Path, content: Any) -> None:
    """Write `content` as canonical JSON, atomically."""
    text = canonical_json(content)
    with replacing_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; raises ArtifactError, with the remedy, if it is missing or damaged."""
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ArtifactError(f"{path} does not exist; run the stage that writes it (dvc repro)") from None
    except ValueError as error:
        raise ArtifactError(f"{path} is damaged ({error}); run the stage that writes it again") from error
    return content


def digest(content: Any) -> str:
    """SHA-256 (hexadecimal) of the canonical JSON of `content`."""
    return hashlib.sha256(canonical_json(content).encode()).hexdigest()


def write_sealed_json(path: Path, content: dict[str, Any]) -> None:
    """Write `content` as canonical JSON with a `checksum` of itself, atomically."""
    write_json(path, {**content, "checksum": digest(content)})


def read_sealed_json(path: Path) -> dict[str, Any]:
    """What `write_sealed_json` wrote, its checksum included; raises ValueError if it has changed since."""
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError(f"it holds a {type(content).__name__}")
    body = {key: value for key, value in content.items() if key != "checksum"}
    if content.get("checksum") != digest(body):
        raise ValueError("its checksum differs")
    return content


def file_digest(path: Path) -> str:
    """SHA-256 (hexadecimal) of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def content_digest(path: Path) -> str:
    """SHA-256 (hexadecimal) of a file, or of all files in a folder with their names."""
    if path.is_file():
        return file_digest(path)
    files = sorted(file for file in path.rglob("*") if file.is_file())
    return digest({file.relative_to(path).as_posix(): file_digest(file) for file in files})


def file_record(path: Path) -> dict[str, Any]:
    """Size in bytes and SHA-256 of a finished file."""
    return {"bytes": path.stat().st_size, "sha256": file_digest(path)}


def readable_bytes(count: int) -> str:
    """A number of bytes for people to read."""
    return f"{count / GIGABYTE:.2f} GB" if count >= GIGABYTE / 10 else f"{count / 1e6:.2f} MB"
