"""The batches of a training run in their order, drawn ahead where images or target gradients have to be fetched."""

import math
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch

from pag_core.compute.randomness import generator
from pag_core.compute.replicas import Share, undivided
from pag_core.datasets.prepared import Split
from pag_core.gradient_store.targets import GradientBatch, TargetGradients
from pag_core.gradients.online import OnlineGradients
from pag_core.objective.methods import STANDARD
from pag_core.objective.pag import AlignedBatch, drawn_classes
from pag_core.params.sections import TrainParams
from pag_core.training.augmentation import CropsAndFlips, draw_crops_and_flips

# from the shape of a batch [B, C, H, W] and the stream of draws to where an inner attack begins; None where there is none
DrawStart = Callable[[tuple[int, ...], torch.Generator], torch.Tensor | None]


@dataclass(frozen=True)
class Batch:
    """What a process trains on in one step, its `share` of the batch, on the device: images [B, C, H, W], labels [B].

    `aligned` holds the same images and labels with their target gradients; None without an alignment term. `start` float
    [B, C, H, W] is where an inner attack begins, relative to the images.
    """

    share: Share
    images: torch.Tensor
    labels: torch.Tensor
    aligned: AlignedBatch | None = None
    start: torch.Tensor | None = None


@dataclass(frozen=True)
class _Planned:
    """A step whose draws are made; `draws` is the state of the random stream before them."""

    draws: torch.Tensor
    share: Share
    indices: torch.Tensor
    images: "Future[torch.Tensor] | None"
    chosen: "_Chosen | None"
    crops: torch.Tensor | None
    start: torch.Tensor | None
    rows: "Future[GradientBatch] | None"


@dataclass(frozen=True)
class _Chosen:
    """The gradients drawn for a step: slots, their classes and weights, each [B, K]; the noise of a teacher."""

    slots: torch.Tensor
    classes: torch.Tensor
    weights: torch.Tensor | None
    noise: torch.Tensor | None


class Batches:
    """Shuffled epochs of `train`, with `drawn` of an image's target gradients, or all of them, drawn anew each step.

    All draws are made on the CPU, so that runs on any device see the same. Images and targets that are not on the device are
    fetched by a background thread some steps ahead; the state of the draws that `draws_state` returns is that of the first
    step not yet taken, so a run that resumes from it is the same as an unbroken one.
    """

    def __init__(
        self,
        train: Split,
        *,
        classes: int,
        params: TrainParams,
        targets: TargetGradients | OnlineGradients | None,
        drawn: int | None,
        seed: int,
        device: torch.device,
        start: DrawStart = STANDARD.start,
    ) -> None:
        self.data = train.to(device)
        self.image_shape = train.image_shape
        self.draw_start = start
        self.classes = classes
        self.params = params
        self.targets = targets
        self.ahead = max(self.data.ahead, 0 if targets is None else targets.ahead)
        self.slots = classes if targets is None else targets.slots(classes)
        self.drawn = drawn or self.slots
        self.seed = seed
        self.device = device
        self.steps_per_epoch = math.ceil(len(train) / params.batch_size)
        self.steps = params.epochs * self.steps_per_epoch
        self.draws = generator("cpu", seed, "training draws")
        self.planned: deque[_Planned] = deque()
        self.next_step = 0
        self.order_epoch = -1
        self.fetcher: ThreadPoolExecutor | None = None

    def start(self, step: int, draws_state: torch.Tensor | None, share: Callable[[int], Share] = undivided) -> None:
        """Begin with the batch of `step`, with the state of the draws that `draws_state` returned before it.

        `share` gives this process's rows of a batch of that many images. All processes make the draws of the whole batch.
        """
        self.next_step = step
        self.share = share
        if draws_state is not None:
            self.draws.set_state(draws_state.cpu())
        if self.ahead:
            self.fetcher = ThreadPoolExecutor(1, thread_name_prefix="batches")

    def close(self) -> None:
        """End the background threads; what they have not begun is dropped."""
        if self.fetcher is not None:
            self.fetcher.shutdown(cancel_futures=True)
        if self.targets is not None:
            self.targets.close()

    def size(self, step: int) -> int:
        """The number of images of a step; the last of an epoch may have fewer."""
        start = step % self.steps_per_epoch * self.params.batch_size
        return min(self.params.batch_size, len(self.data) - start)

    def draws_state(self) -> torch.Tensor:
        """The state of the draws before the first step that was not taken."""
        return self.planned[0].draws if self.planned else self.draws.get_state()

    def take(self) -> Batch:
        """The next step's batch; raises what the fetching of its targets raised."""
        while len(self.planned) <= self.ahead and self.next_step < self.steps:
            self.planned.append(self._plan(self.next_step))
            self.next_step += 1
        return self._batch(self.planned.popleft())

    def _plan(self, step: int) -> _Planned:
        epoch, number = divmod(step, self.steps_per_epoch)
        if epoch != self.order_epoch:
            if self.targets is not None and self.targets.window:
                order = self.targets.epoch_order(len(self.data), seed=self.seed, epoch=epoch)
            else:
                order = self.data.epoch_order(seed=self.seed, epoch=epoch)
            self.order, self.order_epoch = order, epoch
        indices = self.order[number * self.params.batch_size : (number + 1) * self.params.batch_size]
        state = self.draws.get_state()
        slots = noise = crops = rows = None
        if self.targets is not None:
            slots = drawn_classes(len(indices), self.slots, self.drawn, self.draws)
        if self.params.augmentation == "crop_flip":
            crops = draw_crops_and_flips(len(indices), self.draws)
        start = self.draw_start((len(indices), *self.image_shape), self.draws)
        if isinstance(self.targets, OnlineGradients):
            noise = self.targets.noise((len(indices), *self.image_shape), self.draws)
        share = self.share(len(indices))
        indices = indices[share.rows]
        start = None if start is None else start[share.rows]
        crops = None if crops is None else crops[share.rows]
        chosen = None
        if self.targets is not None and slots is not None:
            slots = slots[share.rows]
            classes, weights = self.targets.classes_of(indices, slots), self.targets.weights_of(slots, self.classes)
            chosen = _Chosen(slots, classes, weights, None if noise is None else noise[:, :, share.rows])
            if self.fetcher is not None and self.targets.ahead and isinstance(self.targets, TargetGradients):
                rows = self.fetcher.submit(self.targets.rows, indices, slots, epoch=epoch)
        images = (
            self.fetcher.submit(self.data.chosen, indices) if self.fetcher is not None and self.data.ahead else None
        )
        return _Planned(state, share, indices, images, chosen, crops, start, rows)

    def _batch(self, planned: _Planned) -> Batch:
        indices = self._sent(planned.indices)
        images = self.data.pixels(indices) if planned.images is None else self.data.as_pixels(planned.images.result())
        labels = self.data.labels[indices]
        start = None if planned.start is None else self._sent(planned.start)
        moved = None if planned.crops is None else CropsAndFlips(self._sent(planned.crops), *images.shape[2:])
        if moved is not None:
            images = moved(images)
        aligned = None
        if planned.chosen is not None:
            aligned = self._aligned(planned, planned.chosen, indices, images, labels, moved)
        return Batch(planned.share, images, labels, aligned, start)

    def _aligned(
        self,
        planned: _Planned,
        chosen: _Chosen,
        indices: torch.Tensor,
        images: torch.Tensor,
        labels: torch.Tensor,
        moved: CropsAndFlips | None,
    ) -> AlignedBatch:
        classes = self._sent(chosen.classes)
        weights = None if chosen.weights is None else self._sent(chosen.weights)
        if chosen.noise is not None:
            assert isinstance(self.targets, OnlineGradients)
            # of the augmented images themselves, so that nothing has to be moved with them
            return AlignedBatch(
                images, labels, classes, self.targets.gradients(images, classes, self._sent(chosen.noise))
            )
        if planned.rows is not None:
            rows = planned.rows.result().to(self.device)
        else:
            assert isinstance(self.targets, TargetGradients)
            rows = self.targets.rows(indices, self._sent(chosen.slots))
        if moved is None:
            return AlignedBatch(images, labels, classes, rows.dequantised(), weights=weights)
        targets = rows.with_codes(moved(rows.codes)).dequantised()
        return AlignedBatch(images, labels, classes, targets, moved.mask, rows.norms(), weights)

    def _sent(self, drawn: torch.Tensor) -> torch.Tensor:
        """Drawn numbers on the device; a GPU is not waited for."""
        return drawn.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else drawn
