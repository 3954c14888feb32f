"""The PAG objective of Eq. 4: cross-entropy plus lambda times the cosine alignment summed over classes."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from pag_core.objective.cosine_alignment import cosine_alignment_loss
from pag_core.objective.input_gradient import input_gradients, logits_of
from pag_core.params.sections import ObjectiveParams


class AlignedBatch(NamedTuple):
    """What Eq. 4 is computed on: images float [B, C, H, W] in [0, 1], labels int64 [B], and the targets of K classes.

    `class_indices` int64 [B, K], `targets` float [B, K, C, H, W]. For augmented images `mask` bool [B, 1, H, W] and
    `target_norm` float [B, K] make the cosine that of the images as they were.
    """

    images: torch.Tensor
    labels: torch.Tensor
    class_indices: torch.Tensor
    targets: torch.Tensor
    mask: torch.Tensor | None = None
    target_norm: torch.Tensor | None = None


@dataclass(frozen=True)
class ObjectiveTerms:
    """The terms of Eq. 4 as scalars: `total = cross_entropy + lambda * alignment`, and the batch's logits [B, classes].

    `alignment` estimates the sum over all C classes (`scaling: all`) or is the sum over the drawn K (`drawn`).
    """

    total: torch.Tensor
    cross_entropy: torch.Tensor
    alignment: torch.Tensor
    logits: torch.Tensor


def drawn_classes(batch: int, classes: int, drawn: int, generator: torch.Generator) -> torch.Tensor:
    """K distinct classes for each image, uniform: int64 [B, K] on the generator's device."""
    scores = torch.rand(batch, classes, generator=generator, device=generator.device)
    return scores.topk(drawn, dim=1).indices


def pag_objective(
    classifier: nn.Module,
    batch: AlignedBatch,
    form: ObjectiveParams,
    *,
    weight: float,
    classes: int,
    compiled: bool = False,
) -> ObjectiveTerms:
    """Eq. 4 for a batch; `weight` is lambda, `form` how the alignment term is computed, `compiled` by torch.compile.

    With `scaling` "all" lambda multiplies the sum over all `classes` C, estimated as C/K times the sum over the K drawn
    (the paper's CIFAR-10 and STL-10); with "drawn", the sum over the K (its CIFAR-100). Raises as `input_gradients` does.
    """
    logits, gradients = input_gradients(
        classifier,
        batch.images,
        batch.class_indices,
        output=form.output,
        differentiation=form.differentiation,
        batch_norm=form.batch_norm,
        compiled=compiled,
    )
    alignment = cosine_alignment_loss(gradients, batch.targets, mask=batch.mask, target_norm=batch.target_norm)
    if form.scaling == "all":
        alignment = alignment * (classes / batch.class_indices.shape[1])
    cross_entropy = F.cross_entropy(logits, batch.labels)
    return ObjectiveTerms(cross_entropy + weight * alignment, cross_entropy, alignment, logits)


def vanilla_objective(classifier: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> ObjectiveTerms:
    """Eq. 4 with lambda 0: plain cross-entropy; the alignment is neither computed nor reported (NaN)."""
    logits = logits_of(classifier, images)
    cross_entropy = F.cross_entropy(logits, labels)
    return ObjectiveTerms(cross_entropy, cross_entropy, torch.full_like(cross_entropy, torch.nan), logits)
