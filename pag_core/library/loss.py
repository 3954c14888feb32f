"""Eq. 4 in any training loop: the loss as a function and as a module, and its alignment term alone."""

from typing import Literal, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from pag_core.errors import ShapeMismatch
from pag_core.objective.cosine_alignment import cosine_alignment_loss
from pag_core.objective.input_gradient import input_gradients
from pag_core.params.values import Output

BatchNorm = Literal["frozen", "repeat", "class"]
Differentiation = Literal["adjoint", "autograd"]
Scaling = Literal["all", "drawn"]


class LossAndLogits(NamedTuple):
    """A loss, a scalar whose `backward()` gives parameter gradients, and the logits [N, classes] of the same forward pass."""

    loss: torch.Tensor
    logits: torch.Tensor


def alignment_loss(
    network: nn.Module,
    images: torch.Tensor,
    targets: torch.Tensor,
    classes: torch.Tensor | None = None,
    class_weights: torch.Tensor | None = None,
    *,
    output: Output = "log_softmax",
    batch_norm: BatchNorm = "frozen",
    differentiation: Differentiation = "adjoint",
    scaling: Scaling = "all",
) -> LossAndLogits:
    """The alignment term of Eq. 4, the sum over classes of 1 minus the cosine of Eq. 5, to be added to any loss of the logits.

    `images` float [N, C, H, W] in [0, 1], which `network` maps to logits; `targets` float [N, K, C, H, W], the gradients
    g(x, c) of the `classes` int64 [N, K], or of all classes in their order (None). `class_weights` float [N, K] as
    `GradientTargets.draw` gives them. The other arguments as `objective` has them in params.yaml: `output` is whose
    input-gradient is aligned, `scaling` "all" estimates the sum over all classes from the K.
    Raises ShapeMismatch for tensors that do not fit each other, AdjointUnavailable for a network that needs
    `differentiation="autograd"`, NotTwiceDifferentiable for one that cannot learn from its input-gradients.
    """
    targets = targets.to(images.device)
    chosen = _classes(images, targets, classes)
    logits, gradients = input_gradients(
        network, images, chosen, output=output, differentiation=differentiation, batch_norm=batch_norm
    )
    if classes is None and logits.shape[1] != chosen.shape[1]:
        raise ShapeMismatch(
            f"targets are of {chosen.shape[1]} classes and the network has {logits.shape[1]} logits; say by `classes` int64 "
            "[N, K] which they are of"
        )
    weights = None if class_weights is None else class_weights.to(images.device)
    alignment = cosine_alignment_loss(gradients, targets, weights=weights)
    if scaling == "all":
        alignment = alignment * (logits.shape[1] / chosen.shape[1])
    return LossAndLogits(alignment, logits)


def pag_loss(
    network: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    targets: torch.Tensor,
    classes: torch.Tensor | None = None,
    class_weights: torch.Tensor | None = None,
    *,
    weight: float = 2.0,
    output: Output = "log_softmax",
    batch_norm: BatchNorm = "frozen",
    differentiation: Differentiation = "adjoint",
    scaling: Scaling = "all",
) -> LossAndLogits:
    """Eq. 4: cross-entropy with `labels` int64 [N], plus `weight` (lambda) times `alignment_loss`, whose arguments it takes.

    `weight` and `output` are those of score-based gradients; one image, class means and neighbors do better with
    `output="logit"` and 0.7, 1.5 and 1.5. Raises as `alignment_loss` does.
    """
    alignment, logits = alignment_loss(
        network,
        images,
        targets,
        classes,
        class_weights,
        output=output,
        batch_norm=batch_norm,
        differentiation=differentiation,
        scaling=scaling,
    )
    return LossAndLogits(F.cross_entropy(logits, labels) + weight * alignment, logits)


class PAGLoss(nn.Module):
    """`pag_loss` as a module around `network`, for frameworks that replicate or wrap one; `weight` may be set between steps."""

    def __init__(
        self,
        network: nn.Module,
        *,
        weight: float = 2.0,
        output: Output = "log_softmax",
        batch_norm: BatchNorm = "frozen",
        differentiation: Differentiation = "adjoint",
        scaling: Scaling = "all",
    ) -> None:
        super().__init__()
        self.network = network
        self.weight = weight
        self.output: Output = output
        self.batch_norm: BatchNorm = batch_norm
        self.differentiation: Differentiation = differentiation
        self.scaling: Scaling = scaling

    def forward(
        self,
        images: torch.Tensor,
        labels: torch.Tensor,
        targets: torch.Tensor,
        classes: torch.Tensor | None = None,
        class_weights: torch.Tensor | None = None,
    ) -> LossAndLogits:
        """As `pag_loss`."""
        return pag_loss(
            self.network,
            images,
            labels,
            targets,
            classes,
            class_weights,
            weight=self.weight,
            output=self.output,
            batch_norm=self.batch_norm,
            differentiation=self.differentiation,
            scaling=self.scaling,
        )


def _classes(images: torch.Tensor, targets: torch.Tensor, classes: torch.Tensor | None) -> torch.Tensor:
    """The classes int64 [N, K] that `targets` are of; raises ShapeMismatch where the tensors do not fit each other."""
    if targets.dim() != 5 or len(targets) != len(images) or targets.shape[2:] != images.shape[1:]:
        raise ShapeMismatch(
            f"targets {list(targets.shape)} must be [N, K, C, H, W], K for each of the images {list(images.shape)}"
        )
    if not targets.is_floating_point():
        raise ShapeMismatch(f"targets are {targets.dtype}; they must be of floating point")
    if classes is None:
        return torch.arange(targets.shape[1], device=images.device).expand(len(images), -1)
    if classes.shape != targets.shape[:2] or classes.dtype != torch.int64:
        raise ShapeMismatch(
            f"classes must be int64 {list(targets.shape[:2])} as the targets have them, not {classes.dtype} "
            f"{list(classes.shape)}"
        )
    return classes.to(images.device)
