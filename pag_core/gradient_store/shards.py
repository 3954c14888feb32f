"""Reading stored gradients shard by shard, here or at an address: checksums are checked, damage is reported with its shard."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr
from numpy.typing import NDArray

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
    """The array `name` of the store `path` with the group `root`, of which whole shards are read.

    Where the store's shards lie at `address` its metadata there must be those of `path`; raises StoreError otherwise.
    """

    def __init__(self, path: Path, root: zarr.Group, name: str, address: str | None = None) -> None:
        array = root[name]
        assert isinstance(array, zarr.Array)
        self.path = path
        self.place = name if address is None else f"{name} at {address}"
        if address is not None:
            local, array = array, RemoteShards(address).array(name)
            if array.metadata != local.metadata:
                raise StoreError(f"{address}: {name} is another array than that of {path}; run its stage again")
        self.name = name
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
        return checked(self.path, f"shard {number} of {self.place}", lambda: self.array[self.rows(number)])

    def __iter__(self) -> Iterator[tuple[slice, NDArray[Any]]]:
        for number in range(len(self)):
            yield self.rows(number), self.read(number)

    def resident(self, device: torch.device) -> torch.Tensor:
        """The whole array on `device`, streamed in shard by shard."""
        whole = torch.empty(self.shape, dtype=self.dtype, device=device)
        for rows, values in self:
            whole[rows] = torch.from_numpy(values).to(device)
        return whole
