"""Input-gradients by automatic differentiation, of any network: the general path, one function for each batch-norm meaning."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm

from pag_core.objective.batch_statistics import batch_statistics

# from logits [B, classes] and classes int64 [B, K] to the cotangents [K, B, classes] of the logits
Seeds = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def _one_by_one(
    logits: torch.Tensor, images: torch.Tensor, cotangent_KBN: torch.Tensor, create_graph: bool
) -> torch.Tensor:
    gradients = [
        torch.autograd.grad(
            logits,
            images,
            cotangent_BN,
            create_graph=create_graph,
            retain_graph=create_graph or k + 1 < len(cotangent_KBN),
        )[0]
        for k, cotangent_BN in enumerate(cotangent_KBN)
    ]
    return torch.stack(gradients, dim=1)


def per_class(
    classifier: nn.Module,
    images: torch.Tensor,
    class_indices: torch.Tensor,
    seeds: Seeds,
    create_graph: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Batch-norm meaning `class`: the classes one after the other through the graph of one forward pass."""
    images = images.detach().requires_grad_()
    logits = classifier(images)
    return logits, _one_by_one(logits, images, seeds(logits, class_indices), create_graph)


def repeated(
    classifier: nn.Module,
    images: torch.Tensor,
    class_indices: torch.Tensor,
    seeds: Seeds,
    create_graph: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Batch-norm meaning `repeat`: every class differentiates its own copy of the image in a second forward pass."""
    logits = classifier(images)
    drawn = class_indices.shape[1]
    copies = images.detach().repeat_interleave(drawn, dim=0).requires_grad_()
    with _running_statistics_kept(classifier):
        copied = classifier(copies)
    (cotangent_BN,) = seeds(copied, class_indices.reshape(-1, 1))
    gradients = torch.autograd.grad(copied, copies, cotangent_BN, create_graph=create_graph)[0]
    return logits, gradients.unflatten(0, (len(images), drawn))


def frozen(
    classifier: nn.Module,
    images: torch.Tensor,
    class_indices: torch.Tensor,
    seeds: Seeds,
    create_graph: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Batch-norm meaning `frozen`: a second forward pass with the statistics of the first.

    They do not depend on the second pass's images, but on the parameters. Covers batch-norm layers (not the function).
    """
    statistics: dict[nn.Module, tuple[torch.Tensor, torch.Tensor]] = {}
    with _replaced(classifier, lambda layer, features: _record(layer, features, statistics)):
        logits = classifier(images)
    images = images.detach().requires_grad_()
    with _replaced(classifier, lambda layer, features: _normalized(layer, features, *statistics[layer])):
        again = classifier(images)
    return logits, _one_by_one(again, images, seeds(again, class_indices), create_graph)


PATHS = {"class": per_class, "repeat": repeated, "frozen": frozen}


def autograd_input_gradients(
    classifier: nn.Module, images: torch.Tensor, class_indices: torch.Tensor, seeds: Seeds,
    *, batch_norm: str, create_graph: bool,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """Logits [B, classes] and input-gradients [B, K, C, H, W] in the batch-norm meaning asked for."""
    # fused attention kernels have no second derivative
    with sdpa_kernel(SDPBackend.MATH):
        return PATHS[batch_norm](classifier, images, class_indices, seeds, create_graph)


def training_batch_norms(classifier: nn.Module) -> list[_BatchNorm]:
    """The batch-norm layers that take their statistics from the batch."""
    return [
        layer
        for layer in classifier.modules()
        if isinstance(layer, _BatchNorm) and (layer.training or layer.running_mean is None)
    ]


@contextlib.contextmanager
def _replaced(classifier: nn.Module, forward: Callable[[Any, torch.Tensor], torch.Tensor]) -> Iterator[None]:
    """Batch-norm layers in train mode compute `forward(layer, features)` inside the body."""
    layers = training_batch_norms(classifier)
    try:
        for layer in layers:
            layer.__dict__["forward"] = lambda features, layer=layer: forward(layer, features)
        yield
    finally:
        for layer in layers:
            layer.__dict__.pop("forward", None)


def _record(layer: _BatchNorm, features: torch.Tensor, statistics: dict[Any, Any]) -> torch.Tensor:
    if layer in statistics:
        raise ValueError(
            f"the batch-norm layer {layer} runs twice in one forward pass, so it has no single mean and variance"
        )
    statistics[layer] = batch_statistics(features)[:2]
    output: torch.Tensor = type(layer).forward(layer, features)
    return output


def _normalized(layer: _BatchNorm, features: torch.Tensor, mean: torch.Tensor, variance: torch.Tensor) -> torch.Tensor:
    channels = [-1] + [1] * (features.dim() - 2)
    output = (features - mean.view(channels)) * torch.rsqrt(variance + layer.eps).view(channels)
    if layer.affine:
        output = output * layer.weight.view(channels) + layer.bias.view(channels)
    return output.to(features.dtype)


@contextlib.contextmanager
def _running_statistics_kept(classifier: nn.Module) -> Iterator[None]:
    """The second pass sees the same images again: it must not count twice in the running statistics."""
    kept = [(layer, dict(layer._buffers)) for layer in training_batch_norms(classifier)]
    try:
        for layer, buffers in kept:
            layer._buffers.update({name: value.clone() for name, value in buffers.items() if value is not None})
        yield
    finally:
        for layer, buffers in kept:
            layer._buffers.update(buffers)
