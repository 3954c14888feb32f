"""The attack inside adversarial training: projected gradient descent (Eq. 1) on the network being trained."""

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import nn

from pag_core.params.radii import radius_value
from pag_core.params.sections import InnerAttackParams

TINY = 1e-12
# TRADES begins this far from the image (standard deviation per pixel), whatever the radius
TRADES_SPREAD = 0.001


def start_in_ball(norm: str, shape: tuple[int, ...], draws: torch.Generator) -> torch.Tensor:
    """A point drawn uniformly in the ball of radius 1 of `norm` (L2, Linf) for each image: float32 [B, C, H, W]."""
    if norm == "Linf":
        return 2 * torch.rand(shape, generator=draws) - 1
    direction = torch.randn(shape, generator=draws)
    pixels = direction[0].numel()
    distance = torch.rand(shape[0], 1, 1, 1, generator=draws) ** (1 / pixels)
    return direction / _lengths(direction) * distance


def start_beside(shape: tuple[int, ...], draws: torch.Generator) -> torch.Tensor:
    """The start of TRADES: normal noise of TRADES_SPREAD for each pixel: float32 [B, C, H, W]."""
    return TRADES_SPREAD * torch.randn(shape, generator=draws)


def adversarial_examples(
    forward: Callable[[torch.Tensor], torch.Tensor],
    images: torch.Tensor,
    start: torch.Tensor,
    loss: Callable[[torch.Tensor], torch.Tensor],
    params: InnerAttackParams,
    share: float = 1.0,
) -> torch.Tensor:
    """Images [B, C, H, W] in [0, 1] within the radius of `images` that raise `loss`, by `steps` steps from `start`.

    `forward` gives logits, `loss` of logits one value, the sum over the images. Each step goes by `step_size` along the
    gradient over its length (L2) or its sign (Linf), then back into the ball and into [0, 1]. `share` in (0, 1] is of both the
    radius and the step.
    """
    radius, images = radius_value(params.radius), images.detach()
    step_size = radius_value(params.step_size) if params.step_size is not None else 2.5 * radius / params.steps
    radius, step_size = share * radius, share * step_size
    adversarial = start.detach()
    for _ in range(params.steps):
        adversarial.requires_grad_()
        (gradient,) = torch.autograd.grad(loss(forward(adversarial)), adversarial)
        adversarial = adversarial.detach() + step_size * _direction(gradient, params.norm)
        adversarial = projected(adversarial, images, params.norm, radius)
    return adversarial


def projected(adversarial: torch.Tensor, images: torch.Tensor, norm: str, radius: float) -> torch.Tensor:
    """`adversarial` brought into the ball of `radius` around `images`, and into [0, 1]."""
    difference = adversarial - images
    if norm == "Linf":
        difference = difference.clamp(-radius, radius)
    else:
        difference = difference * (radius / _lengths(difference).clamp_min(radius))
    return (images + difference).clamp(0, 1)


def _direction(gradient: torch.Tensor, norm: str) -> torch.Tensor:
    return gradient.sign() if norm == "Linf" else gradient / _lengths(gradient)


def _lengths(values: torch.Tensor) -> torch.Tensor:
    lengths: torch.Tensor = values.flatten(1).norm(dim=1).clamp_min(TINY).view(-1, 1, 1, 1)
    return lengths


@contextlib.contextmanager
def in_mode(classifier: nn.Module, mode: str) -> Iterator[None]:
    """The classifier in `train` or `eval` mode inside the body, its layers as they were after it."""
    before = [(layer, layer.training) for layer in classifier.modules()]
    classifier.train(mode == "train")
    try:
        yield
    finally:
        for layer, training in before:
            layer.training = training


@contextlib.contextmanager
def attacked(classifier: nn.Module, mode: str, *, compiled: bool) -> Iterator[None]:
    """As `in_mode`; a `compiled` classifier has no gradients of its parameters there, which it would compute unasked."""
    learning = [parameter for parameter in classifier.parameters() if compiled and parameter.requires_grad]
    for parameter in learning:
        parameter.requires_grad_(False)
    try:
        with in_mode(classifier, mode):
            yield
    finally:
        for parameter in learning:
            parameter.requires_grad_()
