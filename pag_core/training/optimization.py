"""Optimizers and learning-rate schedules by the names that params.yaml gives them."""

from collections.abc import Iterable

import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LRScheduler, MultiStepLR

from pag_core.params.sections import TrainParams


def build_optimizer(parameters: Iterable[nn.Parameter], params: TrainParams) -> torch.optim.Optimizer:
    """AdamW, or SGD with momentum (Appendix G.2)."""
    match params.optimizer:
        case "adamw":
            return torch.optim.AdamW(parameters, lr=params.learning_rate, weight_decay=params.weight_decay, fused=True)
        case "sgd":
            return torch.optim.SGD(
                parameters,
                lr=params.learning_rate,
                momentum=params.momentum,
                weight_decay=params.weight_decay,
                fused=True,
            )


def build_schedule(optimizer: torch.optim.Optimizer, params: TrainParams, steps: int) -> LRScheduler:
    """Learning rate over `steps` steps: cosine to zero, steps of x0.1 at 50 % and again at 75 % (the release's), constant."""
    match params.schedule:
        case "cosine":
            return CosineAnnealingLR(optimizer, steps)
        case "step":
            return MultiStepLR(optimizer, [steps // 2, steps * 3 // 4], gamma=0.1)
        case "constant":
            return LambdaLR(optimizer, lambda _: 1.0)
