"""The manifest of a gradient store: what it holds, what it was made from, and every file with its size and SHA-256.

A missing shard would read as zeros, so a store is what its manifest says and nothing else.
"""

import hashlib
from pathlib import Path
from typing import Any

from pag_core.datasets.prepared import Dataset
from pag_core.errors import StoreError
from pag_core.gradient_store.remote import MAKE_AGAIN, RemoteShards
from pag_core.pipeline.artifacts import file_digest, file_record, read_sealed_json, write_sealed_json

MANIFEST = "manifest.json"
FORMAT = 2


def store_header(dataset: Dataset, source: str, kind: str, provenance: dict[str, Any]) -> dict[str, Any]:
    """What the manifest of every store states."""
    return {
        "source": source,
        "kind": kind,
        "class_names": list(dataset.class_names),
        "dataset": dataset.fingerprint,
        "image_shape": list(dataset.image_shape),
        "provenance": provenance,
    }


def write_manifest(store: Path, content: dict[str, Any], finished: dict[str, dict[str, Any]]) -> None:
    """Write the manifest of a complete store; `finished` holds the records of shards that were taken when written.

    Shards of a store with an `address` are not among its files here.
    """
    here = {
        str(path.relative_to(store)): path
        for path in sorted(store.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }
    names = sorted({*here, *finished})
    files = {name: finished.get(name) or file_record(here[name]) for name in names}
    body = {**content, "format": FORMAT, "files": files}
    write_sealed_json(store / MANIFEST, body)


def read_manifest(store: Path) -> dict[str, Any]:
    """The manifest of a store, checked against its own checksum, with every file present in its stated size.

    The metadata files are small and are checked by SHA-256; shards carry crc32c checksums that reading them checks.
    Raises StoreError that names the file, at the store's address too.
    """
    try:
        content = read_sealed_json(store / MANIFEST)
    except FileNotFoundError:
        raise StoreError(f"{store} is not a finished gradient store (no {MANIFEST}); run its stage again") from None
    except ValueError as error:
        raise StoreError(
            f"{store / MANIFEST} is damaged ({error}); remove the store and run its stage again"
        ) from error
    if content.get("format") != FORMAT:
        raise StoreError(
            f"{store} has the format {content.get('format')}, this version reads {FORMAT}; remove it and run its stage again"
        )
    away = [name for name in content["files"] if not (store / name).exists()]
    if content.get("address") is not None:
        _require_there(store, content, away)
    elif away:
        raise StoreError(
            f"{store / away[0]} is missing, though the manifest lists it; remove the store and run its stage again"
        )
    for name in sorted(content["files"].keys() - away):
        path, record = store / name, content["files"][name]
        size = path.stat().st_size
        if size != record["bytes"]:
            raise StoreError(
                f"{path} has {size} bytes, the manifest says {record['bytes']}; remove the store and run its stage again"
            )
        if path.name == "zarr.json" and file_digest(path) != record["sha256"]:
            raise StoreError(f"{path} is damaged (its SHA-256 differs); remove the store and run its stage again")
    return content


def _require_there(store: Path, content: dict[str, Any], names: list[str]) -> None:
    """Raise StoreError unless the files `names` of a store are at its address in their sizes, with its own description."""
    remote, files = RemoteShards(content["address"]), content["files"]
    if hashlib.sha256(remote.read("zarr.json")).hexdigest() != files["zarr.json"]["sha256"]:
        raise StoreError(f"{remote.address}/zarr.json is of another store than {store}; {MAKE_AGAIN}")
    sizes = remote.sizes()
    for name in names:
        if (size := sizes.get(name)) != files[name]["bytes"]:
            found = "is missing" if size is None else f"has {size} bytes"
            raise StoreError(
                f"{remote.address}/{name} {found}, the manifest of {store} says {files[name]['bytes']} bytes; {MAKE_AGAIN}"
            )
