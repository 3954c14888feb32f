"""Target gradients of a store too large to hold or to copy: shards in a shuffled order, images mixed within a window."""

from concurrent.futures import Future, ThreadPoolExecutor

import torch

from pag_core.datasets.prepared import shard_order, window_order
from pag_core.gradient_store.shards import ShardedArray
from pag_core.gradient_store.targets import GradientBatch, TargetGradients


class WindowGradients(TargetGradients):
    """Reads each shard once an epoch, whole and in a shuffled order, and mixes the images of `window` shards.

    While one window is trained on, a background thread reads the next, also that of the next epoch, so that two are in
    memory (more only where one batch spans more). The order follows from seed, epoch and window alone.
    """

    def __init__(
        self,
        codes: ShardedArray,
        scales: torch.Tensor,
        kept_classes: torch.Tensor | None = None,
        *,
        window: int,
        ahead: int,
        pinned: bool,
    ) -> None:
        """`scales` float32 [N, k] and `kept_classes` as the base says, on the CPU."""
        self.codes = codes
        self.scales = scales
        self.kept_classes = kept_classes
        self.window = min(window, len(codes))
        self.ahead = ahead
        self.pinned = pinned
        self.windows = -(-len(codes) // self.window)
        self.seed = 0
        self.reader: ThreadPoolExecutor | None = None
        self.loaded: dict[int, Future[torch.Tensor]] = {}

    def epoch_order(self, images: int, *, seed: int, epoch: int) -> torch.Tensor:
        """All images of the first window of shards, shuffled, then those of the next: int64 [images] on the CPU."""
        if images != self.codes.shape[0]:
            raise ValueError(f"{images} images, the store holds {self.codes.shape[0]}")
        self.seed = seed
        rows = list(map(self.codes.rows, range(len(self.codes))))
        return window_order(rows, self.window, seed=seed, epoch=epoch)

    def rows(self, image_indices: torch.Tensor, slots: torch.Tensor, *, epoch: int = 0) -> GradientBatch:
        """As the base says; the batches must be asked for in the order of the epochs, because earlier windows are dropped."""
        place = shard_order(len(self.codes), seed=self.seed, epoch=epoch).argsort()[
            image_indices // self.codes.per_shard
        ]
        # windows are numbered through all epochs
        numbers = epoch * self.windows + place // self.window
        within = place % self.window * self.codes.per_shard + image_indices % self.codes.per_shard
        first, last = int(numbers.min()), int(numbers.max())
        self._load(first, max(first + 1, last))
        shape = (*slots.shape, *self.codes.shape[2:])
        found = torch.empty(shape, dtype=self.codes.dtype, pin_memory=self.pinned)
        for number in range(first, last + 1):
            mine = numbers == number
            found[mine] = self.loaded[number].result()[within[mine, None], slots[mine]]
        scales = self.scales[image_indices[:, None], slots]
        return GradientBatch(found, scales.pin_memory() if self.pinned else scales)

    def close(self) -> None:
        if self.reader is not None:
            self.reader.shutdown(cancel_futures=True)
        self.reader = None
        self.loaded.clear()

    def _load(self, first: int, last: int) -> None:
        """Drop the windows before `first`, and have those up to `last` read."""
        if self.reader is None:
            self.reader = ThreadPoolExecutor(1, thread_name_prefix="shards")
        for number in [number for number in self.loaded if number < first]:
            self.loaded.pop(number).cancel()
        for number in range(first, last + 1):
            if number not in self.loaded:
                self.loaded[number] = self.reader.submit(self._read, number)

    def _read(self, number: int) -> torch.Tensor:
        epoch, place = divmod(number, self.windows)
        order = shard_order(len(self.codes), seed=self.seed, epoch=epoch)
        shards = order[place * self.window : (place + 1) * self.window]
        per_shard = self.codes.per_shard
        window = torch.empty((len(shards) * per_shard, *self.codes.shape[1:]), dtype=self.codes.dtype)
        for slot, shard in enumerate(shards.tolist()):
            values = torch.from_numpy(self.codes.read(shard))
            window[slot * per_shard : slot * per_shard + len(values)] = values
        return window
