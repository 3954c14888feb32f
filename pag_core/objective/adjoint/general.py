"""The rule for operations that have none: automatic differentiation of the single operation, batched over the classes."""

from typing import Any

import torch

from pag_core.errors import AdjointUnavailable
from pag_core.objective.adjoint.cotangent import Call, Cotangent, Pullback, applied, operation_name


def general_rule(call: Call) -> tuple[torch.Tensor, Pullback]:
    """u J of any differentiable operation with one output; an active argument is a tensor or a list of tensors."""
    if not call.context.general:
        raise AdjointUnavailable(
            f"{operation_name(call.operation)} has no adjoint rule for this form, and automatic differentiation inside a "
            "compiled step is not possible; train.compile: false"
        )
    arguments = list(call.arguments)
    sources: list[torch.Tensor] = []
    for position, value in enumerate(arguments):
        if call.active[position]:
            parts = [_differentiable(part) for part in (value if isinstance(value, (list, tuple)) else [value])]
            sources.extend(parts)
            arguments[position] = parts if isinstance(value, (list, tuple)) else parts[0]
    with torch.enable_grad():  # also where the caller wants values only
        output = call.operation(*arguments, **call.keywords)

    def pullback(cotangent: Cotangent) -> list[Any]:
        if not output.requires_grad:  # takes only the shape of its arguments, as new_zeros does
            return [None] * len(arguments)
        shares = iter(
            torch.autograd.grad(
                output, sources, applied(cotangent), is_grads_batched=True, create_graph=True, materialize_grads=True
            )
        )
        return [
            None if not active else [next(shares) for _ in value] if isinstance(value, list) else next(shares)
            for active, value in zip(call.active, arguments, strict=True)
        ]

    return output, pullback


def _differentiable(value: torch.Tensor) -> torch.Tensor:
    # an alias of its own: a value may come in twice, or depend on another argument
    return value.view_as(value) if value.requires_grad else value.detach().requires_grad_()
