"""Input-gradients by automatic differentiation, of any network: the general path, one function for each batch-norm meaning."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from pag_core.objective.batch_statistics import batch_statistics

# from logits [B, classes] and classes int64 [B, K] to the cotangents [K, B, classes] of the logits
Cotangents = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


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
    cotangents: Cotangents,
    create_graph: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Batch-norm meaning `class`: the classes one after the other through the graph of one forward pass."""
    images = images.detach().requires_grad_()
    logits = classifier(images)
    return logits, _one_by_one(logits, images, cotangents(logits, class_indices), create_graph)


def repeated(
    classifier: nn.Module,
    images: torch.Tensor,
    class_indices: torch.Tensor,
    cotangents: Cotangents,
    create_graph: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Batch-norm meaning `repeat`: every class differentiates its own copy of the image in a second forward pass."""
    before = _buffers(classifier)
    logits = classifier(images)
    drawn = class_indices.shape[1]
    copies = images.detach().repeat_interleave(drawn, dim=0).requires_grad_()
    with _with_buffers(classifier, before):
        copied = classifier(copies)
    (cotangent_BN,) = cotangents(copied, class_indices.reshape(-1, 1))
    gradients = torch.autograd.grad(copied, copies, cotangent_BN, create_graph=create_graph)[0]
    return logits, gradients.unflatten(0, (len(images), drawn))


def frozen(
    classifier: nn.Module,
    images: torch.Tensor,
    class_indices: torch.Tensor,
    cotangents: Cotangents,
    create_graph: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Batch-norm meaning `frozen`: a second forward pass with the statistics of the first.

    They do not depend on the second pass's images, but on the parameters.
    """
    before = _buffers(classifier)
    statistics: list[tuple[torch.Tensor, torch.Tensor]] = []
    with _BatchNorms(lambda call: _recorded(call, statistics)):
        logits = classifier(images)
    images = images.detach().requires_grad_()
    in_order = iter(statistics)
    with _with_buffers(classifier, before), _BatchNorms(lambda call: _normalized(call, *next(in_order))):
        again = classifier(images)
    return logits, _one_by_one(again, images, cotangents(again, class_indices), create_graph)


PATHS = {"class": per_class, "repeat": repeated, "frozen": frozen}


def autograd_input_gradients(
    classifier: nn.Module, images: torch.Tensor, class_indices: torch.Tensor, cotangents: Cotangents,
    *, batch_norm: str, create_graph: bool,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """Logits [B, classes] and input-gradients [B, K, C, H, W] in the batch-norm meaning asked for.

    Where the meaning takes a second forward pass, that begins with the buffers that the first began with and leaves none
    of its own.
    """
    # fused attention kernels have no second derivative
    with sdpa_kernel(SDPBackend.MATH):
        return PATHS[batch_norm](classifier, images, class_indices, cotangents, create_graph)


def training_batch_norms(classifier: nn.Module) -> list[_BatchNorm]:
    """The batch-norm layers that take their statistics from the batch."""
    return [
        layer
        for layer in classifier.modules()
        if isinstance(layer, _BatchNorm) and (layer.training or layer.running_mean is None)
    ]


@dataclass(frozen=True)
class _Call:
    """A batch-norm that takes its statistics from the batch; `plain` computes it as it was called."""

    features: torch.Tensor
    weight: torch.Tensor | None
    bias: torch.Tensor | None
    epsilon: float
    plain: Callable[[], torch.Tensor]


class _BatchNorms(TorchFunctionMode):
    """Inside, batch-norm of the batch's statistics is `forward(call)`, whichever layer or function asks for it."""

    def __init__(self, forward: Callable[[_Call], torch.Tensor]) -> None:
        super().__init__()
        self.forward = forward

    def __torch_function__(
        self, function: Any, types: Any, arguments: tuple[Any, ...] = (), keywords: dict[str, Any] | None = None
    ) -> Any:
        keywords = keywords or {}
        if function not in (F.batch_norm, torch.batch_norm):
            return function(*arguments, **keywords)
        read = _of_functional if function is F.batch_norm else _of_operation
        training, features, weight, bias, epsilon = read(*arguments, **keywords)
        if not training:
            return function(*arguments, **keywords)
        return self.forward(_Call(features, weight, bias, epsilon, lambda: function(*arguments, **keywords)))


def _of_functional(
    input: Any, running_mean: Any, running_var: Any, weight: Any = None, bias: Any = None, training: bool = False,
    momentum: float = 0.1, eps: float = 1e-5,
) -> tuple[Any, ...]:  # fmt: skip
    return training, input, weight, bias, eps


def _of_operation(
    input: Any, weight: Any, bias: Any, running_mean: Any, running_var: Any, training: bool, momentum: float, eps: float,
    cudnn_enabled: bool,
) -> tuple[Any, ...]:  # fmt: skip
    return training, input, weight, bias, eps


def _recorded(call: _Call, statistics: list[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
    statistics.append(batch_statistics(call.features)[:2])
    return call.plain()


def _normalized(call: _Call, mean: torch.Tensor, variance: torch.Tensor) -> torch.Tensor:
    channels = [-1] + [1] * (call.features.dim() - 2)
    output = (call.features - mean.view(channels)) * torch.rsqrt(variance + call.epsilon).view(channels)
    if call.weight is not None:
        output = output * call.weight.view(channels)
    if call.bias is not None:
        output = output + call.bias.view(channels)
    return output.to(call.features.dtype)


def _buffers(classifier: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in classifier.named_buffers()}


@contextlib.contextmanager
def _with_buffers(classifier: nn.Module, values: dict[str, torch.Tensor]) -> Iterator[None]:
    """A second pass sees the same images again: it must not count twice in the running statistics, nor see what moved."""
    layers = dict(classifier.named_modules())
    kept = {name: dict(layer._buffers) for name, layer in layers.items()}
    try:
        for name, value in values.items():
            layer, _, key = name.rpartition(".")
            layers[layer]._buffers[key] = value
        yield
    finally:
        for name, buffers in kept.items():
            layers[name]._buffers.clear()
            layers[name]._buffers.update(buffers)
