"""Statistics of the global batch in batch-norm, differentiable, also where several processes share the batch."""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import torch
from torch import distributed


class _SumOverProcesses(torch.autograd.Function):
    """The sum over processes; its derivative is the sum of the derivatives, itself differentiable."""

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor) -> torch.Tensor:
        total = value.clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        total: torch.Tensor = _SumOverProcesses.apply(gradient)
        return total


_by_itself = ContextVar("_by_itself", default=False)


@contextlib.contextmanager
def each_for_itself() -> Iterator[None]:
    """Inside, this process takes the statistics of its own images, also where several share the batch."""
    token = _by_itself.set(True)
    try:
        yield
    finally:
        _by_itself.reset(token)


def shares_batch() -> bool:
    """Whether several processes share each batch."""
    if _by_itself.get():
        return False
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def over_processes(partial: torch.Tensor) -> torch.Tensor:
    """The sum of `partial` over all processes; `partial` itself if there is only one."""
    if not shares_batch():
        return partial
    total: torch.Tensor = _SumOverProcesses.apply(partial)
    return total


def batch_dimensions(features: torch.Tensor) -> tuple[int, ...]:
    """The dimensions of [B, C, ...] that batch-norm takes its statistics over."""
    return (0, *range(2, features.dim()))


def batch_statistics(features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, float | torch.Tensor]:
    """Mean and (biased) variance [C] of features [B, C, ...] over the global batch, and the number of values of each.

    At least float32, so that statistics of half-precision features do not lose their digits.
    """
    dims = batch_dimensions(features)
    features = features.float() if features.dtype in (torch.float16, torch.bfloat16) else features
    count = features.numel() / features.shape[1]
    if not shares_batch():
        variance, mean = torch.var_mean(features, dims, correction=0)
        return mean, variance, count
    # the number of values travels with their sums and stays on the device: no wait for a GPU at every layer
    summed = over_processes(torch.cat([features.sum(dims), features.new_full((1,), count)]))
    total = summed[-1].detach()
    mean = summed[:-1] / total
    channels = [1, -1] + [1] * (features.dim() - 2)
    variance = over_processes((features - mean.view(channels)).square().sum(dims)) / total
    return mean, variance, total


def update_running_statistics(
    running_mean: torch.Tensor, running_variance: torch.Tensor,
    mean: torch.Tensor, variance: torch.Tensor, count: float | torch.Tensor, momentum: float,
) -> None:  # fmt: skip
    """What a batch-norm layer in train mode adds to its running mean and (unbiased) variance, in place."""
    others = (count - 1).clamp_min(1) if isinstance(count, torch.Tensor) else max(count - 1, 1)
    unbiased = count / others
    running_mean.lerp_(mean.detach(), momentum)
    running_variance.lerp_(variance.detach() * unbiased, momentum)
