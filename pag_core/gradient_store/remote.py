"""A store's shards at an fsspec address, such as a bucket of an object store; its manifest and metadata stay local."""

from pathlib import Path
from typing import Any

import fsspec
import zarr
from zarr.storage import FsspecStore

from pag_core.errors import ParamsError, StoreError


class RemoteShards:
    """The files of one store below `address`, for example `s3://bucket/pag/sbg-1f2e.zarr`.

    Raises ParamsError for an address of a kind that is unknown or whose package is not installed.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        try:
            self.system, self.root = fsspec.core.url_to_fs(address)
        except (ValueError, ImportError) as error:
            raise ParamsError(
                f"gradient_store.address: {address} cannot be opened ({error}); s3:// needs the package s3fs, gs:// gcsfs, "
                "az:// adlfs"
            ) from error

    def send(self, local: Path, name: str) -> None:
        """Copy a file to `name` below the address; raises StoreError if what arrived has another size."""
        place = f"{self.root}/{name}"
        # an object store makes no folders, and needs none
        self.system.makedirs(place.rpartition("/")[0], exist_ok=True)
        self.system.put_file(str(local), place)
        self.system.invalidate_cache()
        arrived, sent = self.size(name), local.stat().st_size
        if arrived != sent:
            raise StoreError(f"{self.address}/{name} has {arrived} bytes after {sent} were sent; run the stage again")

    def size(self, name: str) -> int | None:
        """The size in bytes of one file, None if it is not there."""
        try:
            return int(self.system.size(f"{self.root}/{name}"))
        except FileNotFoundError:
            return None

    def sizes(self) -> dict[str, int]:
        """The size in bytes of every file below the address, by name."""
        self.system.invalidate_cache()
        try:
            found = self.system.find(self.root, detail=True)
        except FileNotFoundError:
            return {}
        return {place[len(self.root) :].lstrip("/"): int(info["size"]) for place, info in found.items()}

    def array(self, name: str) -> "zarr.Array[Any]":
        """The array `name` of the store, as its own metadata describe it."""
        array = zarr.open_group(FsspecStore.from_url(self.address, read_only=True), mode="r")[name]
        assert isinstance(array, zarr.Array)
        return array
