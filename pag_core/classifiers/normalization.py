"""Normalisation as the first layer of a classifier, so that every attack sees images in [0, 1]."""

import torch
from torch import nn

# the paper's recipe: inputs are mapped to [-1, 1]
MEAN, DEVIATION = 0.5, 0.5


class NormalizedClassifier(nn.Module):
    """`network((image - mean) / deviation)`: images float [B, C, H, W] in [0, 1] to logits [B, classes].

    `output` says where the logits are in what `network` returns, a key or a position; None: it returns them. Input-gradients
    are NCHW in memory, whatever the memory format of the network, because AutoAttack takes views of them.
    """

    mean: torch.Tensor
    deviation: torch.Tensor

    def __init__(self, network: nn.Module, *, channels: int, mean: float = MEAN, deviation: float = DEVIATION) -> None:
        super().__init__()
        self.network = network
        self.output: str | int | None = None
        self.register_buffer("mean", torch.full((1, channels, 1, 1), mean))
        self.register_buffer("deviation", torch.full((1, channels, 1, 1), deviation))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        # flattened and back: no work for contiguous images, and the backward pass makes the gradient contiguous
        images = images.flatten(1).unflatten(1, images.shape[1:])
        returned = self.network((images - self.mean) / self.deviation)
        logits: torch.Tensor = returned if self.output is None else returned[self.output]
        return logits
