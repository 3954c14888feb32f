"""Pooling over positions [B, C, H, W]."""

from collections.abc import Callable, Sequence

import torch

from pag_core.objective.adjoint.cotangent import Call, Cotangent, NotApplicable, Pullback, applied, fold, rule

aten = torch.ops.aten
# u [K, B, C, h, w] of the pooled features to that of the features [K, B, C, H, W]
Spread = Callable[[torch.Tensor], torch.Tensor]


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
    size = features.shape[2:]
    form = by_windows if addition_sorts(features) and _windows_part(call) else by_addition
    spread = form(positions, size)
    return output, lambda cotangent: (spread(applied(cotangent)),)


def addition_sorts(features: torch.Tensor) -> bool:
    """Whether `scatter_add` sorts its indices: a GPU does in deterministic mode. The CPU adds faster than it compares."""
    return features.is_cuda and torch.are_deterministic_algorithms_enabled()


def by_addition(positions: torch.Tensor, size: Sequence[int]) -> Spread:
    """u [K, B, C, h, w] added up at the `positions` [B, C, h, w] of the maxima in features of `size` [H, W]."""
    height, width = size
    places = positions.flatten(2)

    def spread(value: torch.Tensor) -> torch.Tensor:
        zeros = value.new_zeros(*value.shape[:3], height * width)
        # windows may overlap, so shares are added
        added: torch.Tensor = zeros.scatter_add(3, places.expand(value.shape[0], *places.shape), value.flatten(3))
        return added.reshape(*value.shape[:3], height, width)

    return spread


def by_windows(positions: torch.Tensor, size: Sequence[int]) -> Spread:
    """The same for windows that part the features: each position takes the u of its window, or 0 if not its maximum."""
    height, width = size
    rows, columns = positions.shape[2:]
    # [h, window's rows, w, window's columns]
    window = (rows, height // rows, columns, width // columns)
    own = torch.arange(height * width, device=positions.device).view(window)
    highest = positions[:, :, :, None, :, None] == own

    def spread(value: torch.Tensor) -> torch.Tensor:
        of_window = value[:, :, :, :, None, :, None].expand(*value.shape[:3], *window)
        return torch.where(highest, of_window, 0.0).reshape(*value.shape[:3], height, width)

    return spread


def _windows_part(call: Call) -> bool:
    """Whether each position lies in just one window, so that no shares need to be added."""
    kernel = _pair(call.arguments[1])
    height, width = call.arguments[0].shape[2:]
    return (
        _pair(call.argument(2, "stride", []) or kernel) == kernel
        and _pair(call.argument(3, "padding", 0)) == (0, 0)
        and _pair(call.argument(4, "dilation", 1)) == (1, 1)
        and height % kernel[0] == 0
        and width % kernel[1] == 0
    )


def _pair(size: int | Sequence[int]) -> tuple[int, ...]:
    """An option given for both dimensions at once, or for each."""
    return (size, size) if isinstance(size, int) else tuple(size) * (2 // len(size))


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
