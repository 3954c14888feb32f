"""Pooling over positions [B, C, H, W]."""

import torch

from pag_core.objective.adjoint.cotangent import Call, Cotangent, NotApplicable, Pullback, applied, fold, rule

aten = torch.ops.aten


def _shape_only(value: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """A tensor of `shape` without storage of its own, for kernels that ask only for the shape of their input."""
    return value.new_zeros(1).expand(shape)


@rule("max_pool2d")
def max_pool(call: Call) -> tuple[torch.Tensor, Pullback]:
    """u at the position of each window's maximum."""
    features = call.arguments[0]
    if features.dim() != 4:
        raise NotApplicable
    output, positions = aten.max_pool2d_with_indices(*call.arguments, **call.keywords)
    height, width = features.shape[2:]
    places = positions.flatten(2)

    def pullback(cotangent: Cotangent) -> tuple[torch.Tensor]:
        value = applied(cotangent).flatten(3)
        zeros = value.new_zeros(*value.shape[:3], height * width)
        # windows may overlap, so shares are added
        spread = zeros.scatter_add(3, places.expand(value.shape[0], *places.shape), value)
        return (spread.unflatten(3, (height, width)),)

    return output, pullback


@rule("avg_pool2d")
def average_pool(call: Call) -> tuple[torch.Tensor, Pullback]:
    """u spread evenly over each window."""
    features = call.arguments[0]
    if features.dim() != 4:
        raise NotApplicable
    kernel = call.arguments[1]
    options = (
        call.argument(2, "stride", []) or kernel,
        call.argument(3, "padding", [0, 0]),
        call.argument(4, "ceil_mode", False),
        call.argument(5, "count_include_pad", True),
        call.argument(6, "divisor_override", None),
    )

    def pullback(cotangent: Cotangent) -> tuple[torch.Tensor]:
        value = applied(cotangent)
        shape = (value.shape[0] * value.shape[1], *features.shape[1:])
        back = aten.avg_pool2d_backward(fold(value), _shape_only(value, shape), kernel, *options)
        return (back.unflatten(0, value.shape[:2]),)

    return call.operation(*call.arguments, **call.keywords), pullback


@rule("adaptive_avg_pool2d")
def adaptive_average_pool(call: Call) -> tuple[torch.Tensor, Pullback]:
    """u spread evenly over the positions that each output averages."""
    features, size = call.arguments[:2]
    if features.dim() != 4:
        raise NotApplicable
    height, width = features.shape[2:]
    if list(size) == [1, 1]:
        output = features.mean((2, 3), keepdim=True)

        def spread(cotangent: Cotangent) -> tuple[torch.Tensor]:
            value = applied(cotangent) / (height * width)
            return (value.expand(*value.shape[:3], height, width),)

        return output, spread
    if height % size[0] or width % size[1]:
        raise NotApplicable
    kernel = [height // size[0], width // size[1]]

    def pullback(cotangent: Cotangent) -> tuple[torch.Tensor]:
        value = applied(cotangent) / (kernel[0] * kernel[1])
        return (value.repeat_interleave(kernel[0], 3).repeat_interleave(kernel[1], 4),)

    return call.operation(*call.arguments), pullback
