"""A traced network run forward with the pullbacks of its operations, then back with the cotangents of K classes."""

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

# the rules register themselves
from pag_core.objective.adjoint import attention, elementwise, linear, normalization, pooling, shape  # noqa: F401
from pag_core.objective.adjoint.cotangent import (
    RULES,
    Call,
    Context,
    Cotangent,
    NotApplicable,
    Pullback,
    applied,
    operation_name,
)
from pag_core.objective.adjoint.general import general_rule
from pag_core.objective.adjoint.tracing import Traced

Step = tuple[fx.Node, tuple[Any, ...], Pullback]


class AdjointProgram:
    """The forward pass of a traced network, and the way back from its logits to its image."""

    def __init__(self, traced: Traced, context: Context) -> None:
        self.traced = traced
        self.context = context

    def forward(
        self, parameters: Sequence[torch.Tensor], buffers: Sequence[torch.Tensor], images: torch.Tensor
    ) -> tuple[torch.Tensor, list[Step]]:
        """Logits [B, classes], and the steps back. Buffers (running statistics) change in place, as in a plain forward."""
        traced = self.traced
        values: dict[fx.Node, Any] = dict(zip(traced.parameters, parameters, strict=True))
        values |= zip(traced.buffers, buffers, strict=True)
        values[traced.image] = images
        steps: list[Step] = []
        for node in traced.nodes:
            if node.op == "get_attr":
                values[node] = getattr(node.graph.owning_module, str(node.target))
            elif node in traced.active and operation_name(node.target) != "getitem":
                values[node], pullback = self._linearized(node, values)
                steps.append((node, node.args, pullback))
            else:
                arguments, keywords = fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
                with torch.no_grad() if node in traced.without_grad else contextlib.nullcontext():
                    values[node] = node.target(*arguments, **keywords)  # type: ignore[operator]
            for unused in traced.last_use.get(node, ()):
                del values[unused]
        return values[traced.logits], steps

    def _linearized(self, node: fx.Node, values: dict[fx.Node, Any]) -> tuple[Any, Pullback]:
        arguments, keywords = fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
        active = tuple(
            any(
                source in self.traced.active
                for source in (argument if isinstance(argument, (list, tuple)) else [argument])
            )
            for argument in node.args
        )
        call = Call(node.target, tuple(arguments), dict(keywords), active, self.context)
        if _is_complex(node, *node.all_input_nodes):
            return general_rule(call)  # the rules are of real numbers: none conjugates
        try:
            return RULES.get(operation_name(node.target), general_rule)(call)
        except NotApplicable:
            return general_rule(call)

    def back(self, steps: list[Step], cotangent_KBN: torch.Tensor) -> torch.Tensor:
        """Cotangents [K, B, C, H, W] of the image from those of the logits [K, B, classes]; `steps` is used up."""
        cotangents: dict[fx.Node, Any] = {self.traced.logits: cotangent_KBN}
        while steps:
            node, arguments, pullback = steps.pop()
            arriving = self._arriving(node, cotangents)
            if arriving is None:
                continue  # nothing that reaches the logits came from here
            # shares of trailing inactive arguments may be left out
            for argument, share in zip(arguments, pullback(arriving), strict=False):
                if isinstance(argument, (list, tuple)) and share is not None:
                    for part, part_share in zip(argument, share, strict=True):
                        self._add(cotangents, part, part_share)
                else:
                    self._add(cotangents, argument, share)
        return applied(cotangents[self.traced.image])

    def _arriving(self, node: fx.Node, cotangents: dict[fx.Node, Any]) -> Any:
        """The cotangent of a node, or the list of those of its outputs."""
        outputs = [user for user in node.users if operation_name(user.target) == "getitem"]
        if not outputs:
            return cotangents.pop(node, None)
        parts: dict[Any, Any] = {}
        for user in outputs:
            share = cotangents.pop(user, None)
            if share is not None:
                parts[user.args[1]] = (
                    share if user.args[1] not in parts else applied(parts[user.args[1]]) + applied(share)
                )
        if not parts:
            return None
        return [parts.get(position) for position in range(len(node.meta["val"]))]

    def _add(self, cotangents: dict[fx.Node, Any], node: Any, share: Cotangent | None) -> None:
        if share is None or node not in self.traced.active:
            return
        known = cotangents.get(node)
        cotangents[node] = share if known is None else applied(known) + applied(share)


def _is_complex(*nodes: fx.Node) -> bool:
    values = (node.meta.get("val") for node in nodes)
    return any(isinstance(value, torch.Tensor) and value.dtype.is_complex for value in values)
