"""Elementwise operations: activations, whose derivative all classes share, and arithmetic with broadcasting."""

from collections.abc import Callable
from typing import Any

import torch

from pag_core.objective.adjoint.cotangent import (
    Call,
    Cotangent,
    NotApplicable,
    Pullback,
    applied,
    operation_name,
    rule,
    sum_to,
)

aten = torch.ops.aten


@rule("relu")
def relu(call: Call) -> tuple[torch.Tensor, Pullback]:
    """u where y > 0, else 0."""
    output = torch.relu(call.arguments[0])
    # a kernel of its own, which keeps only the output; comparing again is cheaper than reading a stored mask
    kept = output.detach()

    def pullback(cotangent: Cotangent) -> tuple[torch.Tensor]:
        return (aten.threshold_backward(applied(cotangent), kept, 0),)

    return output, pullback


def _softplus(call: Call, x: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
    beta, threshold = call.argument(1, "beta", 1), call.argument(2, "threshold", 20)
    return torch.where(x * beta > threshold, 1.0, torch.sigmoid(x * beta))


def _elu(call: Call, x: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
    alpha, scale, input_scale = (
        call.argument(position, name, 1) for position, name in ((1, "alpha"), (2, "scale"), (3, "input_scale"))
    )
    derivative: torch.Tensor = aten.elu_backward(torch.ones_like(x), alpha, scale, input_scale, False, x)
    return derivative


def _hardtanh(call: Call, x: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
    low, high = call.argument(1, "min_val", -1), call.argument(2, "max_val", 1)
    inside: torch.Tensor = (x > low) & (x < high)
    return inside.to(x.dtype)


def _silu(_: Call, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    share = torch.sigmoid(x)  # written out: the kernel silu_backward has no derivative of its own
    return share + y * (1 - share)


# f'(x) from the call, x and y = f(x); of x's shape, and differentiable for the backward pass
DERIVATIVES: dict[str, Callable[[Call, torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "silu": _silu,
    "gelu": lambda call, x, y: aten.gelu_backward(
        torch.ones_like(x), x, approximate=call.keywords.get("approximate", "none")
    ),
    "tanh": lambda _, x, y: 1 - y * y,
    "sigmoid": lambda _, x, y: y * (1 - y),
    "exp": lambda _, x, y: y,
    "leaky_relu": lambda call, x, y: torch.ones_like(x).masked_fill(x <= 0, call.argument(1, "negative_slope", 0.01)),
    "softplus": _softplus,
    "elu": _elu,
    "hardtanh": _hardtanh,
    "relu6": lambda _, x, y: ((x > 0) & (x < 6)).to(x.dtype),
    "clamp_min": lambda call, x, y: (x >= call.arguments[1]).to(x.dtype),
    # torch has no second derivative of hardsigmoid
    "hardsigmoid": lambda _, x, y: ((x > -3) & (x < 3)).to(x.dtype) / 6,
    "hardswish": lambda _, x, y: aten.hardswish_backward(torch.ones_like(x), x),
}


@rule(*DERIVATIVES)
def activation(call: Call) -> tuple[torch.Tensor, Pullback]:
    """u f'(x)."""
    features = call.arguments[0]
    output = call.operation(*call.arguments, **call.keywords)
    derivative = DERIVATIVES[operation_name(call.operation)](call, features, output)
    return output, lambda cotangent: (applied(cotangent) * derivative,)


def _shape(value: Any) -> tuple[int, ...]:
    return tuple(value.shape) if isinstance(value, torch.Tensor) else ()


@rule("add", "sub")
def add_or_subtract(call: Call) -> tuple[torch.Tensor, Pullback]:
    """y = a + alpha b, or a - alpha b."""
    alpha = call.keywords.get("alpha", 1)
    sign = -alpha if operation_name(call.operation) == "sub" else alpha
    shapes = [_shape(value) for value in call.arguments[:2]]

    def pullback(cotangent: Cotangent) -> tuple[Cotangent | None, Cotangent | None]:
        value = applied(cotangent)
        second = value if sign == 1 else sign * value
        return (
            sum_to(value, shapes[0]) if call.active[0] else None,
            sum_to(second, shapes[1]) if call.active[1] else None,
        )

    return call.operation(*call.arguments, **call.keywords), pullback


@rule("mul")
def multiply(call: Call) -> tuple[torch.Tensor, Pullback]:
    """y = a b: u b for a, u a for b."""
    first, second = call.arguments[:2]

    def pullback(cotangent: Cotangent) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        value = applied(cotangent)
        return (
            sum_to(value * second, _shape(first)) if call.active[0] else None,
            sum_to(value * first, _shape(second)) if call.active[1] else None,
        )

    return call.operation(first, second), pullback


@rule("div")
def divide(call: Call) -> tuple[torch.Tensor, Pullback]:
    """y = a / b: u / b for a, -u y / b for b."""
    if call.keywords:
        raise NotApplicable  # a rounding mode
    first, second = call.arguments[:2]
    output = call.operation(first, second)

    def pullback(cotangent: Cotangent) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        value = applied(cotangent)
        return (
            sum_to(value / second, _shape(first)) if call.active[0] else None,
            sum_to(-value * (output / second), _shape(second)) if call.active[1] else None,
        )

    return output, pullback


@rule("neg")
def negate(call: Call) -> tuple[torch.Tensor, Pullback]:
    """-u."""
    return -call.arguments[0], lambda cotangent: (-applied(cotangent),)


@rule("dropout")
def dropout(call: Call) -> tuple[torch.Tensor, Pullback]:
    """u with the units of the forward pass dropped: all classes see one network."""
    features, probability, train = call.arguments
    if not train or probability == 0:
        return features, lambda cotangent: (cotangent,)
    output, kept = aten.native_dropout(features, probability, train)
    factor = kept.to(features.dtype) / (1 - probability)
    return output, lambda cotangent: (applied(cotangent) * factor,)


@rule("softmax")
def softmax(call: Call) -> tuple[torch.Tensor, Pullback]:
    """p (u - sum u p) along the dimension of the softmax."""
    dim = call.argument(1, "dim")
    along = dim + 1 if dim >= 0 else dim
    output = call.operation(*call.arguments, **call.keywords)

    def pullback(cotangent: Cotangent) -> tuple[torch.Tensor]:
        weighted = applied(cotangent) * output
        return (weighted - output * weighted.sum(along, keepdim=True),)

    return output, pullback


@rule("log_softmax")
def log_softmax(call: Call) -> tuple[torch.Tensor, Pullback]:
    """u - p sum u along the dimension of the softmax."""
    dim = call.argument(1, "dim")
    along = dim + 1 if dim >= 0 else dim
    output = call.operation(*call.arguments, **call.keywords)

    def pullback(cotangent: Cotangent) -> tuple[torch.Tensor]:
        value = applied(cotangent)
        return (value - output.exp() * value.sum(along, keepdim=True),)

    return output, pullback
