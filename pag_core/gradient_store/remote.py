"""A store's shards at an fsspec address, such as a bucket of an object store; its manifest and metadata stay local."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec

from pag_core.errors import ParamsError, StoreError

MAKE_AGAIN = "make the store again with dvc repro --force and the name of its stage"


class RemoteShards:
    """The files of one store below `address`, for example `s3://bucket/pag/sbg-1f2e.zarr`.

    Raises ParamsError for an address of a kind that is unknown or whose package is not installed; every other method raises
    StoreError, with address, file and remedy, where the address does not answer as it should.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        on_s3 = address.startswith("s3")
        # s3fs else asks for the size first and takes a large file in ranges, which the checksum of the whole does not cover
        options: dict[str, Any] = {"max_concurrency": 1} if on_s3 else {}
        try:
            self.system, self.root = fsspec.core.url_to_fs(address, **options)
        except (ValueError, ImportError) as error:
            raise ParamsError(
                f"gradient_store.address: {address} cannot be opened ({error}); s3:// needs the package s3fs, gs:// gcsfs, "
                "az:// adlfs"
            ) from error
        if on_s3:
            # of its own 5, 5 around them and the 5 of botocore, a server that is silent would be told after half an hour
            self.system.retries = 2

    def send(self, local: Path, name: str) -> None:
        """Copy a file to `name` below the address; raises StoreError also if what arrived has another size."""
        place = f"{self.root}/{name}"
        with self._told(f"/{name}"):
            # object stores, which are the asynchronous ones, have no folders: s3fs would make the bucket
            if not self.system.async_impl:
                self.system.makedirs(place.rpartition("/")[0], exist_ok=True)
            self.system.put_file(str(local), place)
            self.system.invalidate_cache()
        arrived, sent = self.size(name), local.stat().st_size
        if arrived != sent:
            raise StoreError(f"{self.address}/{name} has {arrived} bytes after {sent} were sent; run the stage again")

    def read(self, name: str) -> bytes:
        """A whole file, by one request."""
        with self._told(f"/{name}"):
            try:
                content: bytes = self.system.cat_file(f"{self.root}/{name}")
            except FileNotFoundError as error:
                raise StoreError(f"{self.address}/{name} is missing ({error}); {MAKE_AGAIN}") from error
        return content

    def size(self, name: str) -> int | None:
        """The size in bytes of one file, None if it is not there."""
        with self._told(f"/{name}"), contextlib.suppress(FileNotFoundError):
            return int(self.system.size(f"{self.root}/{name}"))
        return None

    def sizes(self) -> dict[str, int]:
        """The size in bytes of every file below the address, by name."""
        found = {}
        with self._told(), contextlib.suppress(FileNotFoundError):
            self.system.invalidate_cache()
            found = self.system.find(self.root, detail=True)
        return {place[len(self.root) :].lstrip("/"): int(info["size"]) for place, info in found.items()}

    @contextlib.contextmanager
    def _told(self, name: str = "") -> Iterator[None]:
        """Make any error a StoreError: each kind of address has classes of errors of its own."""
        try:
            yield
        except (StoreError, MemoryError):
            raise
        except Exception as error:
            said = " ".join(str(error).split()) or type(error).__name__
            if "checksum" in said.lower():
                raise StoreError(f"{self.address}{name} is damaged ({said}); {MAKE_AGAIN}") from error
            raise StoreError(
                f"{self.address}{name} could not be reached ({said}); see to the server, the bucket and your credentials, "
                "and run again: what is finished is kept"
            ) from error
