"""Cosine alignment of the classifier's input-gradients with target gradients (Eq. 5)."""

import torch

from pag_core.errors import ShapeMismatch

# of |v| |u|: far below that of a network that is sure, whose gradients of log-probabilities have 1e-13 and less; below it the
# derivative by targets of length 1000 overflows float32
SMALLEST = 1e-16


def cosine_similarity(
    input_gradient_BKCHW: torch.Tensor,
    target_gradient_BKCHW: torch.Tensor,
    *,
    mask: torch.Tensor | None = None,
    target_norm: torch.Tensor | None = None,
) -> torch.Tensor:
    """`v.u / (|v| |u|)` over pixels: float [B, K] in [-1, 1]; 0, without a derivative, where either gradient is zero.

    For an augmented image both differ from what differentiating through the augmentation gives, but only in their norms:
    `mask` (bool [B, 1, H, W]) is False where a pixel came from outside the image, so that its gradient does not count, and
    `target_norm` (float [B, K]) is |u| of the whole target, of which the crop may have cut a part.
    Raises ShapeMismatch if the two differ in shape.
    """
    if input_gradient_BKCHW.shape != target_gradient_BKCHW.shape:
        raise ShapeMismatch(
            f"input-gradients {list(input_gradient_BKCHW.shape)} and targets {list(target_gradient_BKCHW.shape)} "
            "must have one shape [B, K, C, H, W]"
        )
    # sums over thousands of pixels would lose the digits of a half-precision gradient
    input_gradient_BKCHW = input_gradient_BKCHW.to(target_gradient_BKCHW.dtype)
    if mask is not None:
        input_gradient_BKCHW = input_gradient_BKCHW * mask[:, None]
    gradient, target = input_gradient_BKCHW.flatten(2), target_gradient_BKCHW.flatten(2)
    target_square = target.square().sum(2) if target_norm is None else target_norm.square()
    squares = gradient.square().sum(2) * target_square
    there = squares > SMALLEST**2
    # of both outcomes of `where` the derivative is computed, and that of a root at zero is not finite
    norms = torch.where(there, squares, 1.0).sqrt()
    return (gradient * target).sum(2) * there / norms


def cosine_alignment_loss(
    input_gradient_BKCHW: torch.Tensor,
    target_gradient_BKCHW: torch.Tensor,
    *,
    mask: torch.Tensor | None = None,
    target_norm: torch.Tensor | None = None,
    weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """Cosine alignment of Eq. 5, `1 - cosine`, summed over the K classes and averaged over the batch: a scalar.

    Scale-free: each class contributes a value in [0, 2]; an all-zero target contributes 1. `mask` and `target_norm` as
    in `cosine_similarity`; `weights` float [B, K] multiply the classes' contributions. Raises ShapeMismatch if the two
    differ in shape.
    """
    similarity = cosine_similarity(input_gradient_BKCHW, target_gradient_BKCHW, mask=mask, target_norm=target_norm)
    distances = 1 - similarity
    if weights is not None:
        distances = distances * weights
    return distances.sum(1).mean()
