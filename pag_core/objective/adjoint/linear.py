"""Linear operations: convolution, matrix products. The cotangents of all classes share the weights, or the other factor."""

from typing import Any

import torch
from torch.nn import functional as F

from pag_core.objective.adjoint.cotangent import (
    Call,
    ChannelScaled,
    Cotangent,
    NotApplicable,
    Pullback,
    applied,
    fold,
    operation_name,
    rule,
)

TRANSPOSED = {3: F.conv_transpose1d, 4: F.conv_transpose2d, 5: F.conv_transpose3d}


def _scaled_weight(cotangent: Cotangent, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A pending scale of the output channels goes to the weight, [out, ...]."""
    if isinstance(cotangent, ChannelScaled):
        return cotangent.value, weight * cotangent.scale.view([-1] + [1] * (weight.dim() - 1))
    return cotangent, weight


def _per_dimension(value: Any, dimensions: int) -> list[int]:
    values = [value] if isinstance(value, int) else list(value)
    return values * dimensions if len(values) == 1 else values


@rule("conv1d", "conv2d", "conv3d", "convolution")
def convolution(call: Call) -> tuple[torch.Tensor, Pullback]:
    """u J = the transposed convolution of u with the same weight."""
    images, weight = call.arguments[:2]
    spatial = weight.dim() - 2
    stride, padding, dilation = (
        call.argument(position, name, default)
        for position, name, default in ((3, "stride", 1), (4, "padding", 0), (5, "dilation", 1))
    )
    generic = operation_name(call.operation) == "convolution"
    transposed = generic and call.argument(6, "transposed")
    groups = call.argument(8 if generic else 6, "groups", 1)
    if call.active[1] or isinstance(padding, str) or transposed or images.dim() != weight.dim():
        raise NotApplicable
    stride, padding, dilation = (_per_dimension(value, spatial) for value in (stride, padding, dilation))
    features = call.operation(*call.arguments, **call.keywords)
    # the stride swallows rows and columns at the far border; they get their (zero) share back here
    surplus = [
        images.shape[2 + i]
        - ((features.shape[2 + i] - 1) * stride[i] - 2 * padding[i] + dilation[i] * (weight.shape[2 + i] - 1) + 1)
        for i in range(spatial)
    ]

    def pullback(cotangent: Cotangent) -> tuple[torch.Tensor]:
        value, kernel = _scaled_weight(cotangent, weight)
        back = TRANSPOSED[weight.dim()](fold(value), kernel, None, stride, padding, surplus, groups, dilation)
        return (back.unflatten(0, value.shape[:2]),)

    return features, pullback


@rule("linear")
def linear(call: Call) -> tuple[torch.Tensor, Pullback]:
    """u J = u W."""
    weight = call.arguments[1]
    if call.active[1]:
        raise NotApplicable

    def pullback(cotangent: Cotangent) -> tuple[torch.Tensor]:
        # a channel scale is along dimension 2, which is the one of `weight` only for features [B, out]
        if isinstance(cotangent, ChannelScaled) and cotangent.value.dim() == 3:
            value, kernel = _scaled_weight(cotangent, weight)
        else:
            value, kernel = applied(cotangent), weight
        return (value @ kernel,)

    return call.operation(*call.arguments, **call.keywords), pullback


def times_shared(cotangent: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """[K, ..., n, m] @ [..., m, l] with the classes folded into the rows: the factor is not copied for each class."""
    classes, rows = cotangent.shape[0], cotangent.shape[-2]
    folded = cotangent.movedim(0, -3).flatten(-3, -2)
    product: torch.Tensor = (folded @ factor).unflatten(-2, (classes, rows))
    return product.movedim(-3, 0)


@rule("matmul", "bmm")
def matrix_product(call: Call) -> tuple[torch.Tensor, Pullback]:
    """y = a b: u J = u b^T for a, and a^T u for b."""
    first, second = call.arguments[:2]
    if first.dim() != second.dim() or first.dim() < 3 or first.shape[:-2] != second.shape[:-2]:
        raise NotApplicable

    def pullback(cotangent: Cotangent) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        value = applied(cotangent)
        return (
            times_shared(value, second.mT) if call.active[0] else None,
            times_shared(value.mT, first).mT if call.active[1] else None,
        )

    return call.operation(first, second), pullback
