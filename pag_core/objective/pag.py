"""The PAG objective of Eq. 4: a classification part plus lambda times the cosine alignment summed over classes."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn

from pag_core.objective.cosine_alignment import cosine_alignment_loss
from pag_core.objective.input_gradient import input_gradients, logits_of
from pag_core.objective.methods import STANDARD, ClassificationStep, Method
from pag_core.params.sections import ObjectiveParams


class AlignedBatch(NamedTuple):
    """What Eq. 4 is computed on: images float [B, C, H, W] in [0, 1], labels int64 [B], and the targets of K classes.

    `class_indices` int64 [B, K], `targets` float [B, K, C, H, W]. For augmented images `mask` bool [B, 1, H, W] and
    `target_norm` float [B, K] make the cosine that of the images as they were. `weights` float [B, K], one on average, are
    what the classes count where they were not drawn alike.
    """

    images: torch.Tensor
    labels: torch.Tensor
    class_indices: torch.Tensor
    targets: torch.Tensor
    mask: torch.Tensor | None = None
    target_norm: torch.Tensor | None = None
    weights: torch.Tensor | None = None


@dataclass(frozen=True)
class ObjectiveTerms:
    """The terms of Eq. 4 as scalars: `total = classification + lambda * alignment`, and the batch's logits [B, classes].

    `classification` is cross-entropy, or what the method has in its place. `alignment` estimates the sum over all C classes
    (`scaling: all`) or is the sum over the drawn K (`drawn`).
    """

    total: torch.Tensor
    classification: torch.Tensor
    alignment: torch.Tensor
    logits: torch.Tensor


def drawn_classes(batch: int, classes: int, drawn: int, generator: torch.Generator) -> torch.Tensor:
    """K distinct classes for each image, uniform: int64 [B, K] on the generator's device."""
    scores = torch.rand(batch, classes, generator=generator, device=generator.device)
    return scores.topk(drawn, dim=1).indices


def pag_objective(
    classifier: nn.Module,
    batch: AlignedBatch,
    config: ObjectiveParams,
    *,
    lambda_: float,
    classes: int,
    method: Method = STANDARD,
    start: torch.Tensor | None = None,
    epoch: int = 0,
    compiled: nn.Module | None = None,
) -> ObjectiveTerms:
    """Eq. 4 for a batch; `lambda_` is lambda, `config` how the alignment term is computed.

    `compiled`, the classifier by torch.compile, takes the passes of `method`, and then the alignment term is compiled too.

    With `scaling` "all" lambda multiplies the sum over all `classes` C, estimated as C/K times the sum over the K drawn
    (the paper's CIFAR-10 and STL-10); with "drawn", the sum over the K (its CIFAR-100). The classification part is that
    of `method`, whose inner attack begins at `start`. Raises as `input_gradients` does.
    """
    logits, gradients, loss_gradient = _shared_pass(
        classifier, batch.images, batch.labels, batch.class_indices, config, method, compiled=compiled is not None
    )
    alignment = cosine_alignment_loss(
        gradients, batch.targets, mask=batch.mask, target_norm=batch.target_norm, weights=batch.weights
    )
    if config.scaling == "all":
        alignment = alignment * (classes / batch.class_indices.shape[1])
    step = ClassificationStep(
        classifier=classifier if compiled is None else compiled,  # not `or`: some modules have no truth value
        images=batch.images,
        labels=batch.labels,
        logits=logits,
        loss_gradient=loss_gradient,
        start=start,
        epoch=epoch,
        compiled=compiled is not None,
    )
    classification, counted = method.loss(step)
    return ObjectiveTerms(classification + lambda_ * alignment, classification, alignment, counted)


def plain_objective(
    classifier: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    config: ObjectiveParams | None = None,
    *,
    method: Method = STANDARD,
    start: torch.Tensor | None = None,
    epoch: int = 0,
    compiled: nn.Module | None = None,
) -> ObjectiveTerms:
    """Eq. 4 with lambda 0: the classification part alone; the alignment is neither computed nor reported (NaN).

    `config` says how a method's own input-gradient is computed; a method without one needs none. `compiled` is as in
    `pag_objective`.
    """
    logits = loss_gradient = None
    network = classifier if compiled is None else compiled
    if method.wants_gradient:
        assert config is not None
        no_class = labels[:, None][:, :0]
        logits, _, loss_gradient = _shared_pass(
            classifier, images, labels, no_class, config, method, compiled=compiled is not None
        )
    elif method.wants_clean:
        logits = logits_of(network, images)
    step = ClassificationStep(
        classifier=network,
        images=images,
        labels=labels,
        logits=logits,
        loss_gradient=loss_gradient,
        start=start,
        epoch=epoch,
        compiled=compiled is not None,
    )
    classification, counted = method.loss(step)
    return ObjectiveTerms(classification, classification, torch.full_like(classification, torch.nan), counted)


def _shared_pass(
    classifier: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    class_indices: torch.Tensor,
    config: ObjectiveParams,
    method: Method,
    *,
    compiled: bool = False,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Logits, the input-gradients of the classes, and that of the cross-entropy where `method` wants it."""
    wanted = class_indices
    if method.wants_gradient:
        wanted = torch.cat([class_indices, -1 - labels[:, None]], dim=1)
    logits, gradients = input_gradients(
        classifier,
        images,
        wanted,
        output=config.output,
        differentiation=config.differentiation,
        batch_norm=config.batch_norm,
        compiled=compiled,
        with_loss=method.wants_gradient,
    )
    if not method.wants_gradient:
        return logits, gradients, None
    return logits, gradients[:, :-1], gradients[:, -1]
