"""Cosine alignment of the classifier's input-gradients with target gradients (Eq. 5)."""

import torch

from pag_core.errors import ShapeMismatch

EPSILON = 1e-12


def cosine_similarity(input_gradient_BKCHW: torch.Tensor, target_gradient_BKCHW: torch.Tensor) -> torch.Tensor:
    """`v.u / max(|v| |u|, eps)` over pixels: float [B, K] in [-1, 1]; 0 where either gradient is zero.

    Raises ShapeMismatch if the two differ in shape.
    """
    if input_gradient_BKCHW.shape != target_gradient_BKCHW.shape:
        raise ShapeMismatch(
            f"input-gradients {list(input_gradient_BKCHW.shape)} and targets {list(target_gradient_BKCHW.shape)} "
            "must have one shape [B, K, C, H, W]"
        )
    gradient, target = input_gradient_BKCHW.flatten(2), target_gradient_BKCHW.flatten(2)
    # squared norms below the square root's clamp have no gradient, where that of a plain norm at zero is NaN
    norms = (gradient.square().sum(2) * target.square().sum(2)).clamp_min(EPSILON**2).sqrt()
    return (gradient * target).sum(2) / norms


def cosine_alignment_loss(input_gradient_BKCHW: torch.Tensor, target_gradient_BKCHW: torch.Tensor) -> torch.Tensor:
    """Cosine alignment of Eq. 5, `1 - cosine`, summed over the K classes and averaged over the batch: a scalar.

    Scale-free: each class contributes a value in [0, 2]; an all-zero target contributes 1.
    Raises ShapeMismatch if the two differ in shape.
    """
    return (1 - cosine_similarity(input_gradient_BKCHW, target_gradient_BKCHW)).sum(1).mean()
