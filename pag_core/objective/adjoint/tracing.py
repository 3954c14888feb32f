"""A network as a list of ATen operations, with those marked whose result depends on the image."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.fx.experimental.proxy_tensor import make_fx

from pag_core.errors import AdjointUnavailable
from pag_core.objective.adjoint.cotangent import RULES, operation_name
from pag_core.objective.network_state import state_kept

# these take only the shape of their argument
CONSTANTS = (
    {"detach"}
    | {f"new_{kind}" for kind in ("ones", "zeros", "full", "empty")}
    | {f"{kind}_like" for kind in ("ones", "zeros", "full", "empty", "rand", "randn")}
)
REMEDY = "objective.differentiation: autograd takes any network"


@dataclass(frozen=True)
class Traced:
    """The operations of a network in their order, for one batch shape and one mode of each layer."""

    nodes: tuple[fx.Node, ...]
    parameters: tuple[fx.Node, ...]
    buffers: tuple[fx.Node, ...]
    image: fx.Node
    logits: fx.Node
    active: frozenset[fx.Node]
    without_grad: frozenset[fx.Node]  # what the network computes under no_grad
    last_use: dict[fx.Node, tuple[fx.Node, ...]]  # node: the values that nothing needs after it
    general: tuple[str, ...]  # active operations without a rule of their own


def trace(network: nn.Module, images: torch.Tensor) -> Traced:
    """Trace `network` on images of the given shape, without computing anything.

    Raises AdjointUnavailable for a network whose operations depend on values (not shapes) or overwrite what is shared, and
    an error that the network raises in a plain forward pass too as it is.
    """
    parameters, buffers = dict(network.named_parameters()), dict(network.named_buffers())

    def forward(parameters: dict[str, Any], buffers: dict[str, Any], images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = torch.func.functional_call(network, (parameters, buffers), (images,))
        return logits

    refusal: Exception | None = None
    try:
        # where gradients are off, a network's own no_grad cannot be told from what surrounds it
        with state_kept(network, images.device), torch.enable_grad(), torch.autocast(images.device.type, enabled=False):
            # a tensor that is neither parameter nor buffer is a constant
            graph = make_fx(forward, pre_dispatch=True, tracing_mode="fake", _allow_non_fake_inputs=True)(
                parameters, buffers, images.detach()
            ).graph
    except Exception as error:  # whatever the network does may be what tracing refuses
        refusal = error
    if refusal is not None:
        _require_plain_forward(network, images)
        reason = str(refusal).strip().splitlines()[0] if str(refusal).strip() else type(refusal).__name__
        raise AdjointUnavailable(
            f"the operations of {type(network).__name__} cannot be listed beforehand ({reason}); {REMEDY}"
        ) from refusal
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    first, second = len(parameters), len(parameters) + len(buffers)
    body, without_grad = _without_switches([node for node in graph.nodes if node.op not in ("placeholder", "output")])
    output = next(node for node in graph.nodes if node.op == "output").args[0]
    logits = output[0] if isinstance(output, (list, tuple)) else output
    active = _active(body, inputs[second], without_grad)
    _make_out_of_place(body, active)
    if logits not in active:
        raise AdjointUnavailable(f"the logits of {type(network).__name__} do not depend on the image; {REMEDY}")
    general = [node for node in body if node in active and _has_no_rule(node)]
    for node in general:
        _require_general_form(node, active)
    return Traced(
        tuple(body), tuple(inputs[:first]), tuple(inputs[first:second]), inputs[second], logits, active, without_grad,
        _last_uses(body, keep=logits), tuple(sorted({operation_name(node.target) for node in general})),
    )  # fmt: skip


def _require_plain_forward(network: nn.Module, images: torch.Tensor) -> None:
    """Run `network` on `images`, so that an error of its own shows; its state and the random streams stay as they are."""
    with state_kept(network, images.device), torch.no_grad():
        network(images)


def _has_no_rule(node: fx.Node) -> bool:
    return operation_name(node.target) not in RULES and operation_name(node.target) != "getitem"


def _require_general_form(node: fx.Node, active: frozenset[fx.Node]) -> None:
    if not isinstance(node.meta.get("val"), torch.Tensor) or any(source in active for source in node.kwargs.values()):
        raise AdjointUnavailable(f"the operation {operation_name(node.target)} has no adjoint rule; {REMEDY}")


def _without_switches(nodes: list[fx.Node]) -> tuple[list[fx.Node], frozenset[fx.Node]]:
    """The operations without the switches of no_grad and enable_grad, and those that ran while gradients were off."""
    body, off, enabled = [], set(), True
    for node in nodes:
        if node.target is torch._C._set_grad_enabled:
            enabled = bool(node.args[0])
            continue
        body.append(node)
        if not enabled:
            off.add(node)
    return body, frozenset(off)


def _active(body: list[fx.Node], image: fx.Node, without_grad: frozenset[fx.Node]) -> frozenset[fx.Node]:
    active = {image}
    for node in body:
        value = node.meta.get("val")
        constant = operation_name(node.target) in CONSTANTS or node in without_grad
        if isinstance(value, torch.Tensor) and not (value.dtype.is_floating_point or value.dtype.is_complex):
            constant = True
        if not constant and any(source in active for source in node.all_input_nodes):
            active.add(node)
    return frozenset(active)


def _is_view(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return operation_name(node.target) == "getitem"
    return any(value.alias_info is not None and not value.alias_info.is_write for value in schema.arguments)


def _alone(view: fx.Node) -> bool:
    """Whether nothing but this view, whether of a view or not, reads what it views; an image is the caller's too."""
    while _is_view(view):
        base = view.args[0]
        if not isinstance(base, fx.Node) or base.op != "call_function" or len(base.users) > 1:
            return False
        view = base
    return True


def _make_out_of_place(body: list[fx.Node], active: frozenset[fx.Node]) -> None:
    """Replace operations that overwrite an active value, which the pullbacks may still need, by those that do not."""
    for node in body:
        schema = getattr(node.target, "_schema", None)
        if node not in active or schema is None or not schema.is_mutable:
            continue
        name, overwritten = operation_name(node.target), node.args[0]
        if name == "batch_norm":
            continue
        replacement = getattr(
            getattr(torch.ops.aten, name.rstrip("_"), None), getattr(node.target, "_overloadname", ""), None
        )
        if not isinstance(overwritten, fx.Node) or not name.endswith("_") or replacement is None:
            raise AdjointUnavailable(
                f"the network overwrites values in a way that has no other form ({name}); {REMEDY}"
            )
        if (_is_view(overwritten) and not _alone(overwritten)) or any(_is_view(user) for user in overwritten.users):
            raise AdjointUnavailable(
                f"the network overwrites a part or a view of a tensor that other operations read ({name}); {REMEDY}"
            )
        node.target = replacement


def _last_uses(body: list[fx.Node], keep: fx.Node) -> dict[fx.Node, tuple[fx.Node, ...]]:
    last: dict[fx.Node, fx.Node] = {}
    for node in body:
        for source in node.all_input_nodes:
            last[source] = node
    ends: dict[fx.Node, list[fx.Node]] = {}
    for source, node in last.items():
        if source is not keep:
            ends.setdefault(node, []).append(source)
    return {node: tuple(sources) for node, sources in ends.items()}
