"""Cotangents of K classes on their way back through the network, and the table of rules that take them there."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class ChannelScaled:
    """The cotangent `value * scale` [K, B, C, ...] with its scale [C] still to be applied.

    Batch-norm hands it to a convolution before it, which applies the scale to its weight: K*B feature maps are then
    neither multiplied nor kept for the backward pass.
    """

    value: torch.Tensor
    scale: torch.Tensor

    def applied(self) -> torch.Tensor:
        """The product [K, B, C, ...]."""
        channels = [1, 1, -1] + [1] * (self.value.dim() - 3)
        return self.value * self.scale.view(channels)


Cotangent = torch.Tensor | ChannelScaled
# from the cotangent of the output (a list of them for several outputs) to those of the active arguments, in their order
Pullback = Callable[[Any], Sequence[Any]]


@dataclass(frozen=True)
class Context:
    """What a rule may depend on besides its arguments: the meaning of batch-norm (see `normalization`).

    `general` allows automatic differentiation of single operations, which a compiler cannot take.
    """

    batch_norm: str
    general: bool = True


@dataclass(frozen=True)
class Call:
    """One operation of the traced network: its arguments as values, and which of them depend on the image (`active`)."""

    operation: Any
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    active: tuple[bool, ...]
    context: Context

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        """An argument by position or keyword."""
        if position < len(self.arguments):
            return self.arguments[position]
        return self.keywords.get(name, default)


def operation_name(operation: Any) -> str:
    """`conv2d` of `aten.conv2d.default`."""
    name = operation._schema.name if hasattr(operation, "_schema") else getattr(operation, "__name__", str(operation))
    return name.split("::")[-1]


class NotApplicable(Exception):
    """A rule does not cover this form of its operation; the general rule does."""


Rule = Callable[[Call], tuple[Any, Pullback]]
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register the function as the rule of the ATen operations `names`."""

    def register(function: Rule) -> Rule:
        for name in names:
            RULES[name] = function
        return function

    return register


def applied(cotangent: Cotangent) -> torch.Tensor:
    """A cotangent as one tensor."""
    return cotangent.applied() if isinstance(cotangent, ChannelScaled) else cotangent


def fold(cotangent: torch.Tensor) -> torch.Tensor:
    """[K, B, ...] to [K*B, ...]: operations whose weights all classes share see one larger batch."""
    return cotangent.flatten(0, 1)


def sum_to(cotangent: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """Undo the broadcasting of an argument of `shape` [B, ...]: [K, (broadcast shape)] to [K, *shape]."""
    surplus = cotangent.dim() - 1 - len(shape)
    if surplus:
        cotangent = cotangent.sum(tuple(range(1, 1 + surplus)))
    widened = tuple(1 + dim for dim, size in enumerate(shape) if size == 1 and cotangent.shape[1 + dim] != 1)
    return cotangent.sum(widened, keepdim=True) if widened else cotangent
