"""Normalisation. Batch-norm in train mode couples the samples, and what that means for an input-gradient is a choice:

`repeat`: each class has its own copy of each image, and all copies share the statistics: cross-sample terms are averaged
over samples and classes. This is what a second forward pass over repeated images computes.
`class`: each class's gradient runs through the statistics of the batch: cross-sample terms are averaged over samples.
`frozen`: the input-gradient takes the batch's statistics as constants: no cross-sample terms, as in eval mode.

The statistics depend on the parameters in all three, and the parameter gradient goes through them.
"""

import torch

from pag_core.objective.adjoint.cotangent import Call, ChannelScaled, Cotangent, Pullback, applied, rule
from pag_core.objective.batch_statistics import (
    batch_dimensions,
    batch_statistics,
    over_processes,
    update_running_statistics,
)


def _scale_pullback(scale: torch.Tensor) -> Pullback:
    def pullback(cotangent: Cotangent) -> tuple[Cotangent]:
        return (ChannelScaled(applied(cotangent), scale),)

    return pullback


def _coupled_pullback(
    mode: str, scale: torch.Tensor, standardized: torch.Tensor, count: float | torch.Tensor
) -> Pullback:
    """scale * (u - mean(u) - x mean(u x)) for standardized x, with means as the mode has them."""
    dims = batch_dimensions(standardized)
    channels = [1, -1] + [1] * (standardized.dim() - 2)

    def repeat(cotangent: Cotangent) -> tuple[Cotangent]:
        value = applied(cotangent)
        copies = count * value.shape[0]
        total = value.sum(0)  # the rest is linear in the sum over classes: features of one batch, not of K
        mean = over_processes(total.sum(dims)) / copies
        correlation = over_processes((total * standardized).sum(dims)) / copies
        shared = torch.addcmul(mean.view(channels), standardized, correlation.view(channels))
        return (ChannelScaled(value - shared.to(value.dtype), scale),)

    def per_class(cotangent: Cotangent) -> tuple[Cotangent]:
        value = applied(cotangent)
        along = [dim + 1 for dim in dims]
        mean = over_processes(value.sum(along)) / count
        correlation = over_processes((value * standardized).sum(along)) / count
        shape = [value.shape[0], *channels]
        centred = value - torch.addcmul(mean.view(shape), standardized[None], correlation.view(shape)).to(value.dtype)
        return (ChannelScaled(centred, scale),)

    return repeat if mode == "repeat" else per_class


@rule("batch_norm")
def batch_norm(call: Call) -> tuple[torch.Tensor, Pullback]:
    """Batch-norm of [B, C, ...]; in eval mode its pullback is a scale of each channel, in train mode see above."""
    features, weight, bias, running_mean, running_variance, training, momentum, epsilon = call.arguments[:8]
    count: float | torch.Tensor
    if training:
        mean, variance, count = batch_statistics(features)
        if running_mean is not None:
            update_running_statistics(running_mean, running_variance, mean, variance, count, momentum)
    else:
        mean, variance, count = running_mean, running_variance, 0.0
    deviation = torch.rsqrt(variance + epsilon)
    scale = deviation if weight is None else weight * deviation
    shift = -mean * scale if bias is None else bias - mean * scale
    channels = [-1] + [1] * (features.dim() - 2)
    output = torch.addcmul(shift.view(channels), features, scale.view(channels)).to(features.dtype)
    scale = scale.to(features.dtype)
    if not training or call.context.batch_norm == "frozen":
        return output, _scale_pullback(scale)
    standardized = ((features - mean.view(channels)) * deviation.view(channels)).to(features.dtype)
    return output, _coupled_pullback(call.context.batch_norm, scale, standardized, count)


def _per_sample_pullback(
    standardized: torch.Tensor, deviation: torch.Tensor, weight: torch.Tensor | None, dims: list[int]
) -> Pullback:
    """u' = u w; then deviation * (u' - mean(u') - x mean(u' x)) over the normalised dimensions of each sample."""

    def pullback(cotangent: Cotangent) -> tuple[torch.Tensor]:
        value = applied(cotangent)
        value = value if weight is None else value * weight
        mean = value.mean(dims, keepdim=True)
        correlation = (value * standardized).mean(dims, keepdim=True)
        return ((value - mean - standardized * correlation) * deviation,)

    return pullback


@rule("layer_norm")
def layer_norm(call: Call) -> tuple[torch.Tensor, Pullback]:
    """Layer-norm over the trailing dimensions of each sample."""
    features, shape = call.arguments[:2]
    weight, epsilon = call.argument(2, "weight"), call.argument(4, "eps", 1e-5)
    dims = list(range(-len(shape), 0))
    variance, mean = torch.var_mean(features, dims, correction=0, keepdim=True)
    deviation = torch.rsqrt(variance + epsilon)
    standardized = (features - mean) * deviation
    output = call.operation(*call.arguments, **call.keywords)
    return output, _per_sample_pullback(standardized.to(output.dtype), deviation.to(output.dtype), weight, dims)


@rule("group_norm")
def group_norm(call: Call) -> tuple[torch.Tensor, Pullback]:
    """Group-norm over each group of channels of each sample [B, C, ...]."""
    features, groups = call.arguments[:2]
    weight, epsilon = call.argument(2, "weight"), call.argument(4, "eps", 1e-5)
    grouped = features.reshape(features.shape[0], groups, -1)
    variance, mean = torch.var_mean(grouped, 2, correction=0, keepdim=True)
    deviation = torch.rsqrt(variance + epsilon)
    inner = _per_sample_pullback((grouped - mean) * deviation, deviation, None, [-1])

    def pullback(cotangent: Cotangent) -> tuple[torch.Tensor]:
        value = applied(cotangent)
        if weight is not None:
            value = value * weight.view([-1] + [1] * (features.dim() - 2))
        (back,) = inner(value.reshape(value.shape[0], *grouped.shape))
        return (back.reshape(value.shape[0], *features.shape),)

    return call.operation(*call.arguments, **call.keywords), pullback
