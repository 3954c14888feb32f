"""Exponential moving averages (EMA) of a network's weights."""

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


class ExponentialAverage(AveragedModel):
    """The EMA of a network's weights; floating buffers (batch-norm's statistics) are averaged like them, counters copied.

    `warm_up` lets the n-th update (counted from 0) keep at most (1 + n) / (10 + n) of what was averaged before, so that a
    short training is not an average of its first weights. torch's own update sends its counter to the device at every step,
    and waits for it.
    """

    def __init__(self, network: nn.Module, decay: float, *, warm_up: bool = False) -> None:
        super().__init__(network)
        self.decay = decay
        self.warm_up = warm_up

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Move the averages towards what `model`, which is the network or has its layers, holds now."""
        averaged: list[torch.Tensor] = list(self.module.parameters())
        current: list[torch.Tensor] = list(model.parameters())
        for kept, buffer in zip(self.module.buffers(), model.buffers(), strict=True):
            if buffer.is_floating_point():
                averaged.append(kept)
                current.append(buffer)
            else:
                kept.copy_(buffer)
        updates = int(self.n_averaged)  # on the CPU
        if updates == 0:
            torch._foreach_copy_(averaged, current)
        else:
            decay = min(self.decay, (1 + updates) / (10 + updates)) if self.warm_up else self.decay
            get_ema_multi_avg_fn(decay)(averaged, current, updates)
        self.n_averaged += 1
