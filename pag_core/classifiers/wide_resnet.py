"""WideResNet (Zagoruyko and Komodakis, 2016), the one for small images; the paper's Section 6 uses depth 34, factor 10."""

import torch
from torch import nn

from pag_core.errors import ParamsError

STEM_CHANNELS = 16
GROUPS = 3
# a block has two convolutions, a group the same number of blocks; the stem, the last group's end and the classifier add 4
DEPTH_PER_BLOCK, DEPTH_BESIDE_BLOCKS = 2 * GROUPS, 4


class PreActivationBlock(nn.Module):
    """`skip(x) + conv(act(bn(conv(act(bn(x))))))`; where the shape changes, the skip is a 1x1 convolution of act(bn(x))."""

    def __init__(self, channels_in: int, channels_out: int, stride: int, activation: type[nn.Module]) -> None:
        super().__init__()
        self.first_norm = nn.BatchNorm2d(channels_in)
        self.first_activation = activation()
        self.first = nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, bias=False)
        self.second_norm = nn.BatchNorm2d(channels_out)
        self.second_activation = activation()
        self.second = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.skip: nn.Module | None = None
        if stride != 1 or channels_in != channels_out:
            self.skip = nn.Conv2d(channels_in, channels_out, 1, stride=stride, bias=False)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        activated = self.first_activation(self.first_norm(features))
        residual = self.second(self.second_activation(self.second_norm(self.first(activated))))
        total: torch.Tensor = (features if self.skip is None else self.skip(activated)) + residual
        return total


def wide_resnet(
    *, channels: int, classes: int, activation: type[nn.Module], depth: int = 34, width: int = 10
) -> nn.Module:
    """WideResNet of `depth` = 6n + 4 and widening factor `width`, without dropout: images [B, C, H, W] to logits.

    Three groups of n pre-activation blocks of 16, 32 and 64 times `width` channels, the second and third at half the
    resolution of the one before. Raises ParamsError for another depth.
    """
    blocks, rest = divmod(depth - DEPTH_BESIDE_BLOCKS, DEPTH_PER_BLOCK)
    if rest or blocks < 1:
        raise ParamsError(
            f"params.yaml: classifier.depth is {depth}; a WideResNet's is 6n + 4: 10, 16, 22, 28, 34 (or null: 34), 40 ..."
        )
    layers: list[nn.Module] = [nn.Conv2d(channels, STEM_CHANNELS, 3, padding=1, bias=False)]
    channels_in = STEM_CHANNELS
    for group in range(GROUPS):
        channels_out = (STEM_CHANNELS << group) * width
        for block in range(blocks):
            stride = 2 if group > 0 and block == 0 else 1
            layers.append(PreActivationBlock(channels_in, channels_out, stride, activation))
            channels_in = channels_out
    layers += [nn.BatchNorm2d(channels_in), activation(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    network = nn.Sequential(*layers, nn.Linear(channels_in, classes))
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)
    return network
