"""The only place here that calls the project's objective: Eq. 4 as the training loop computes it."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn

from pag_core.classifiers.building import build_classifier
from pag_core.compute.randomness import generator
from pag_core.objective.pag import AlignedBatch, pag_objective
from pag_core.params.sections import ObjectiveParams

# of batch-norm in the input-gradient; the last one is the cheapest
MEANINGS = ("repeat", "class", "frozen")
CHEAPEST = MEANINGS[-1]

WEIGHT = 1.0
LEARNING_RATE = 0.001
SEED = 3407


@dataclass(frozen=True)
class StepSize:
    """The images of a step: `drawn` of `classes` target gradients each, of `side` x `side` pixels in colour."""

    batch: int
    side: int
    classes: int
    drawn: int
    device: str


@dataclass(frozen=True)
class Batch:
    """Images float [B, 3, H, W] in [0, 1], labels [B], classes [B, K] and targets float [B, K, 3, H, W]; all random."""

    images: torch.Tensor
    labels: torch.Tensor
    class_indices: torch.Tensor
    targets: torch.Tensor
    classes: int


@dataclass(frozen=True)
class Variant:
    """How the project computes the objective: what batch-norm means, memory format, precision, compilation, differentiation."""

    batch_norm: str
    channels_last: bool = False
    bf16: bool = False
    compiled: bool = False
    differentiation: str = "adjoint"


def build_batch(size: StepSize) -> Batch:
    """A random batch; the same in every process."""
    draws = generator("cpu", SEED, "benchmark batch")
    shape = (3, size.side, size.side)
    images = torch.rand(size.batch, *shape, generator=draws)
    labels = torch.randint(size.classes, (size.batch,), generator=draws)
    order = torch.rand(size.batch, size.classes, generator=draws).argsort(1)[:, : size.drawn]
    targets = torch.randn(size.batch, size.drawn, *shape, generator=draws)
    device = torch.device(size.device)
    return Batch(images.to(device), labels.to(device), order.to(device), targets.to(device), size.classes)


def build_resnet18(size: StepSize) -> nn.Module:
    """A ResNet-18 with the stem for small images in train mode; the same weights in every process."""
    torch.manual_seed(SEED)
    shape = (3, size.side, size.side)
    network = build_classifier("resnet18", width=None, activation=None, image_shape=shape, classes=size.classes)
    return network.to(torch.device(size.device)).train()


def pag_loss(variant: Variant) -> Callable[[nn.Module, Batch], torch.Tensor]:
    """Eq. 4 by the project's `pag_objective` in this variant."""

    def loss(classifier: nn.Module, batch: Batch) -> torch.Tensor:
        autocast: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
        if variant.bf16:
            autocast = torch.autocast(batch.images.device.type, torch.bfloat16)
        with autocast:
            aligned = AlignedBatch(batch.images, batch.labels, batch.class_indices, batch.targets)
            how: dict[str, Any] = {"differentiation": variant.differentiation, "batch_norm": variant.batch_norm}
            config = ObjectiveParams(
                output="log_softmax",
                scaling="all",
                classes_per_step="all",
                weight_warmup=None,
                **how,
            )
            # what Eq. 4 shares with the alignment is compiled with it, and this one is never called
            compiled = cast(nn.Module, torch.compile(classifier)) if variant.compiled else None
            terms = pag_objective(classifier, aligned, config, lambda_=WEIGHT, classes=batch.classes, compiled=compiled)
        return terms.total

    return loss


class TrainingStep:
    """One step of training: the loss, its backward pass, and SGD."""

    def __init__(self, classifier: nn.Module, batch: Batch, loss: Callable[[nn.Module, Batch], torch.Tensor]) -> None:
        self.classifier = classifier
        self.batch = batch
        self.loss = loss
        self.optimizer = torch.optim.SGD(classifier.parameters(), lr=LEARNING_RATE, momentum=0.9)
        self.last: torch.Tensor | None = None

    def __call__(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss(self.classifier, self.batch)
        loss.backward()
        self.optimizer.step()
        self.last = loss.detach()

    def require_finite(self) -> None:
        """Raise RuntimeError where the loss is not a number: such arithmetic has other speeds."""
        if self.last is None or not torch.isfinite(self.last):
            raise RuntimeError(f"the loss of a timed step is {self.last}")


def build_pag_step(size: StepSize, variant: Variant) -> TrainingStep:
    """A step of the project's own on a new network."""
    classifier, batch = build_resnet18(size), build_batch(size)
    if variant.channels_last:
        classifier = classifier.to(memory_format=torch.channels_last)
        images = batch.images.contiguous(memory_format=torch.channels_last)
        batch = Batch(images, batch.labels, batch.class_indices, batch.targets, batch.classes)
    return TrainingStep(classifier, batch, pag_loss(variant))
