"""Linear classifiers, whose margins, borders and gradients are known exactly."""

import torch
from torch import nn


class Linear(nn.Module):
    """Linear logits on small images, with weights of our choice."""

    def __init__(self, weight, bias=None):
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = nn.Parameter(torch.zeros(len(weight)) if bias is None else bias, requires_grad=False)

    def forward(self, images):
        return images.flatten(1) @ self.weight.T + self.bias


def linear(classes=3, side=4, seed=0, scale=1.0):
    """A linear model that classifies what it labels: bias so that the middle grey is undecided."""
    weight = scale * torch.randn(classes, side * side, generator=torch.Generator().manual_seed(seed))
    weight -= weight.mean(0)
    return Linear(weight, -0.5 * weight.sum(1)).eval()
