"""The PAG objective of Eq. 4: cross-entropy plus lambda times the cosine alignment summed over classes."""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from pag_core.objective.cosine_alignment import cosine_alignment_loss
from pag_core.objective.input_gradient import input_gradients, logits_of


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
    images: torch.Tensor,
    labels: torch.Tensor,
    class_indices: torch.Tensor,
    target_gradients: torch.Tensor,
    *,
    weight: float,
    classes: int,
    output: str,
    scaling: str,
    differentiation: str,
    batch_norm: str,
    compiled: bool = False,
    mask: torch.Tensor | None = None,
    target_norm: torch.Tensor | None = None,
) -> ObjectiveTerms:
    """Eq. 4 for images float [B, C, H, W], labels int64 [B], classes int64 [B, K], targets float [B, K, C, H, W].

    `weight` is lambda. With `scaling` "all" it multiplies the sum over all `classes` C, estimated as C/K times the sum
    over the K drawn (the paper's CIFAR-10 and STL-10); with "drawn", the sum over the K (its CIFAR-100). For augmented
    images `mask` bool [B, 1, H, W] and `target_norm` float [B, K] make the cosine that of the images as they were. The
    rest is passed to `input_gradients`.
    """
    logits, gradients = input_gradients(
        classifier,
        images,
        class_indices,
        output=output,
        differentiation=differentiation,
        batch_norm=batch_norm,
        compiled=compiled,
    )
    alignment = cosine_alignment_loss(gradients, target_gradients, mask=mask, target_norm=target_norm)
    if scaling == "all":
        alignment = alignment * (classes / class_indices.shape[1])
    cross_entropy = F.cross_entropy(logits, labels)
    return ObjectiveTerms(cross_entropy + weight * alignment, cross_entropy, alignment, logits)


def vanilla_objective(classifier: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> ObjectiveTerms:
    """Eq. 4 with lambda 0: plain cross-entropy; the alignment is neither computed nor reported (NaN)."""
    logits = logits_of(classifier, images)
    cross_entropy = F.cross_entropy(logits, labels)
    return ObjectiveTerms(cross_entropy, cross_entropy, torch.full_like(cross_entropy, torch.nan), logits)
