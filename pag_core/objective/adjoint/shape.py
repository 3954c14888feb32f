"""Operations that move values: views, joins, parts, means. Each acts on dimension d of the batch, d + 1 of a cotangent."""

from collections.abc import Sequence
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


def _dimension(dim: int, of: torch.Tensor) -> int:
    """The dimension of a cotangent that belongs to `dim` of a value."""
    return dim % of.dim() + 1


@rule("view", "reshape", "reshape_as", "flatten", "unflatten", "unsqueeze", "squeeze", "_unsafe_view")
def reshaped(call: Call) -> tuple[torch.Tensor, Pullback]:
    """The same values in another shape."""
    shape = call.arguments[0].shape

    def pullback(cotangent: Cotangent) -> tuple[torch.Tensor]:
        value = applied(cotangent)
        return (value.reshape(value.shape[0], *shape),)

    return call.operation(*call.arguments, **call.keywords), pullback


@rule("clone", "contiguous", "alias", "lift_fresh", "view_as")
def unchanged(call: Call) -> tuple[torch.Tensor, Pullback]:
    """The same values."""
    return call.operation(*call.arguments, **call.keywords), lambda cotangent: (cotangent,)


@rule("to", "_to_copy", "type_as")
def converted(call: Call) -> tuple[torch.Tensor, Pullback]:
    """The same values in another dtype."""
    dtype = call.arguments[0].dtype
    return call.operation(*call.arguments, **call.keywords), lambda cotangent: (applied(cotangent).to(dtype),)


@rule("transpose", "swapaxes")
def transposed(call: Call) -> tuple[torch.Tensor, Pullback]:
    """Two dimensions swapped back."""
    features, first, second = call.arguments
    back = (_dimension(first, features), _dimension(second, features))
    return features.transpose(first, second), lambda cotangent: (applied(cotangent).transpose(*back),)


@rule("mT", "adjoint")
def matrix_transposed(call: Call) -> tuple[torch.Tensor, Pullback]:
    """The last two dimensions swapped back."""
    return call.arguments[0].mT, lambda cotangent: (applied(cotangent).mT,)


@rule("permute")
def permuted(call: Call) -> tuple[torch.Tensor, Pullback]:
    """Dimensions back in their order."""
    features, order = call.arguments
    inverse = [0] * (len(order) + 1)
    for position, dim in enumerate(order):
        inverse[_dimension(dim, features)] = position + 1
    return features.permute(order), lambda cotangent: (applied(cotangent).permute(inverse),)


@rule("expand", "expand_as")
def expanded(call: Call) -> tuple[torch.Tensor, Pullback]:
    """The sum over what was repeated."""
    shape = call.arguments[0].shape
    return (
        call.operation(*call.arguments, **call.keywords),
        lambda cotangent: (sum_to(applied(cotangent), shape),),
    )


@rule("roll")
def rolled(call: Call) -> tuple[torch.Tensor, Pullback]:
    """Rolled back."""
    features, shifts, dims = call.arguments[0], call.arguments[1], call.argument(2, "dims", [])
    if not dims:
        raise NotApplicable
    back, along = [-shift for shift in shifts], [_dimension(dim, features) for dim in dims]
    return features.roll(shifts, dims), lambda cotangent: (applied(cotangent).roll(back, along),)


@rule("pad")
def padded(call: Call) -> tuple[torch.Tensor, Pullback]:
    """u without the border."""
    if call.argument(2, "mode", "constant") != "constant":
        raise NotApplicable
    back = [-size for size in call.arguments[1]]
    output = call.operation(*call.arguments, **call.keywords)
    return output, lambda cotangent: (aten.constant_pad_nd(applied(cotangent), back),)


@rule("mean", "sum")
def reduced(call: Call) -> tuple[torch.Tensor, Pullback]:
    """u spread over the reduced dimensions, divided by their size for a mean."""
    features = call.arguments[0]
    dims = call.argument(1, "dim")
    dims = list(range(features.dim())) if dims is None or dims == [] else dims
    dims = [dims] if isinstance(dims, int) else list(dims)
    output = call.operation(*call.arguments, **call.keywords)
    kept = [1 if dim in {d % features.dim() for d in dims} else size for dim, size in enumerate(features.shape)]
    count = features.numel() // max(1, torch.Size(kept).numel()) if operation_name(call.operation) == "mean" else 1

    def pullback(cotangent: Cotangent) -> tuple[torch.Tensor]:
        value = applied(cotangent)
        spread = (value / count).reshape(value.shape[0], *kept)
        return (spread.expand(value.shape[0], *features.shape),)

    return output, pullback


@rule("max")
def highest(call: Call) -> tuple[Any, Pullback]:
    """u at the position of the maximum along a dimension; the positions have no cotangent."""
    features = call.arguments[0]
    dim = call.argument(1, "dim")
    if not isinstance(dim, int):
        raise NotApplicable  # of all values, or of two tensors
    values, positions = features.max(dim, keepdim=True)
    kept = call.argument(2, "keepdim", False)
    along = _dimension(dim, features)

    def pullback(cotangents: Sequence[Cotangent | None]) -> tuple[torch.Tensor]:
        assert cotangents[0] is not None
        value = applied(cotangents[0]).reshape(-1, *values.shape)
        zeros = value.new_zeros(value.shape[0], *features.shape)
        return (zeros.scatter(along, positions.expand_as(value), value),)

    return (values, positions) if kept else (values.squeeze(dim), positions.squeeze(dim)), pullback


@rule("cat")
def joined(call: Call) -> tuple[torch.Tensor, Pullback]:
    """Each part takes its slice of u. The parts are one argument, so that one list of cotangents goes back."""
    parts = call.arguments[0]
    dim = call.argument(1, "dim", 0)
    sizes = [part.shape[dim] for part in parts]
    along = _dimension(dim, parts[0])
    return (
        call.operation(*call.arguments, **call.keywords),
        lambda cotangent: (list(applied(cotangent).split(sizes, along)),),
    )


@rule("stack")
def stacked(call: Call) -> tuple[torch.Tensor, Pullback]:
    """Each part takes its own u."""
    dim = call.argument(1, "dim", 0)
    output = call.operation(*call.arguments, **call.keywords)
    along = _dimension(dim, output)
    return output, lambda cotangent: (list(applied(cotangent).unbind(along)),)


def _filled(cotangents: Sequence[Cotangent | None], outputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The cotangents of several outputs, zeros for those that nothing depends on."""
    known = next(applied(cotangent) for cotangent in cotangents if cotangent is not None)
    return [
        known.new_zeros(known.shape[0], *output.shape) if cotangent is None else applied(cotangent)
        for cotangent, output in zip(cotangents, outputs, strict=True)
    ]


@rule("unbind")
def unbound(call: Call) -> tuple[Any, Pullback]:
    """The parts' cotangents stacked."""
    features = call.arguments[0]
    along = _dimension(call.argument(1, "dim", 0), features)
    outputs = call.operation(*call.arguments, **call.keywords)
    return outputs, lambda cotangents: (torch.stack(_filled(cotangents, outputs), along),)


@rule("split", "chunk", "split_with_sizes")
def divided(call: Call) -> tuple[Any, Pullback]:
    """The parts' cotangents joined."""
    features = call.arguments[0]
    along = _dimension(call.argument(2, "dim", 0), features)
    outputs = call.operation(*call.arguments, **call.keywords)
    return outputs, lambda cotangents: (torch.cat(_filled(cotangents, outputs), along),)


@rule("select")
def selected(call: Call) -> tuple[torch.Tensor, Pullback]:
    """u at the place that was selected, zeros elsewhere."""
    features, dim, index = call.arguments
    along, place = _dimension(dim, features), index % features.shape[dim]

    def pullback(cotangent: Cotangent) -> tuple[torch.Tensor]:
        value = applied(cotangent)
        return (aten.select_backward(value, [value.shape[0], *features.shape], along, place),)

    return call.operation(*call.arguments), pullback


@rule("slice")
def sliced(call: Call) -> tuple[torch.Tensor, Pullback]:
    """u at the places that the slice took, zeros elsewhere."""
    features = call.arguments[0]
    dim, step = call.argument(1, "dim", 0), call.argument(4, "step", 1)
    start, end, step = slice(call.argument(2, "start"), call.argument(3, "end"), step).indices(features.shape[dim])
    along = _dimension(dim, features)

    def pullback(cotangent: Cotangent) -> tuple[torch.Tensor]:
        value = applied(cotangent)
        return (aten.slice_backward(value, [value.shape[0], *features.shape], along, start, end, step),)

    return call.operation(*call.arguments, **call.keywords), pullback
