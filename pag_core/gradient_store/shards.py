"""Reading stored gradients shard by shard, here or at an address: checksums are checked, damage is reported with its shard."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr
from numpy.typing import NDArray
from zarr.core.buffer import default_buffer_prototype
from zarr.storage import MemoryStore, StorePath

from pag_core.errors import StoreError
from pag_core.gradient_store.remote import RemoteShards


def checked(path: Path, place: str, read: Callable[[], Any]) -> NDArray[Any]:
    """What `read` returns; raises StoreError if a checksum or the format shows damage, or if it cannot be read."""
    try:
        return np.asarray(read())
    except OSError as error:
        if not isinstance(error, FileNotFoundError):
            raise StoreError(
                f"{path}: {place} could not be read ({error}); nothing says that it is damaged, so run again"
            ) from error
        raise _damaged(path, place, error) from error
    except (ValueError, RuntimeError, KeyError) as error:
        raise _damaged(path, place, error) from error


def _damaged(path: Path, place: str, error: Exception) -> StoreError:
    return StoreError(f"{path}: {place} is damaged ({error}); remove the store and run its stage again")


class ShardedArray:
    """The array `name` of the store `path` with the group `root`, of which whole shards are read, here or at `remote`."""

    def __init__(self, path: Path, root: zarr.Group, name: str, remote: RemoteShards | None = None) -> None:
        array = root[name]
        assert isinstance(array, zarr.Array)
        self.path = path
        self.place = name if remote is None else f"{name} at {remote.address}"
        self.name = name
        self.remote = remote
        self.array = array
        self.shape: tuple[int, ...] = array.shape
        self.per_shard: int = (array.shards or array.chunks)[0]
        self.dtype = torch.from_numpy(np.empty(0, array.dtype)).dtype

    def __len__(self) -> int:
        return -(-self.shape[0] // self.per_shard)

    def rows(self, number: int) -> slice:
        """The images of a shard."""
        return slice(number * self.per_shard, min((number + 1) * self.per_shard, self.shape[0]))

    def read(self, number: int) -> NDArray[Any]:
        """One shard; raises StoreError if it is damaged or cannot be reached."""
        array = self.array if self.remote is None else self._fetched(number, self.remote)
        return checked(self.path, f"shard {number} of {self.place}", lambda: array[self.rows(number)])

    def _fetched(self, number: int, remote: RemoteShards) -> "zarr.Array[Any]":
        """The array with one shard alone, in memory: of a shorter last one Zarr would ask the address for each chunk."""
        key = f"{self.name}/{self.array.metadata.encode_chunk_key((number, *[0] * (len(self.shape) - 1)))}"
        shard = default_buffer_prototype().buffer.from_bytes(remote.read(key))
        return zarr.Array.from_dict(StorePath(MemoryStore({key: shard}), self.name), self.array.metadata.to_dict())

    def __iter__(self) -> Iterator[tuple[slice, NDArray[Any]]]:
        for number in range(len(self)):
            yield self.rows(number), self.read(number)

    def resident(self, device: torch.device) -> torch.Tensor:
        """The whole array on `device`, streamed in shard by shard."""
        whole = torch.empty(self.shape, dtype=self.dtype, device=device)
        for rows, values in self:
            whole[rows] = torch.from_numpy(values).to(device)
        return whole
