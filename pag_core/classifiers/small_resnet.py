"""The network of the embedded default: a small residual network without normalisation layers.

Without batch statistics the input-gradient of one image depends on no other, and a smooth activation can fit the
alignment term, which a piecewise linear network cannot do everywhere.
"""

import torch
from torch import nn

from pag_core.errors import ParamsError

BLOCKS_PER_STAGE = 1


class ResidualBlock(nn.Module):
    """`skip(x) + gain * conv(act(conv(act(x))))`; the gain starts small, which keeps a norm-free stack stable."""

    def __init__(self, channels_in: int, channels_out: int, stride: int, activation: type[nn.Module]) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1)
        self.second = nn.Conv2d(channels_out, channels_out, 3, padding=1)
        self.activation = activation()
        self.gain = nn.Parameter(torch.full((1,), 0.3))
        self.skip: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels_out:
            self.skip = nn.Conv2d(channels_in, channels_out, 1, stride=stride)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        residual = self.second(self.activation(self.first(self.activation(features))))
        total: torch.Tensor = self.skip(features) + self.gain * residual
        return total


def require_stages(depth: int | None, image_shape: tuple[int, int, int]) -> None:
    """Raise ParamsError for more stages than images of `image_shape` [C, H, W] can be halved to a single pixel."""
    most = 1 + (max(image_shape[1:]) - 1).bit_length()
    if depth is not None and depth > most:
        raise ParamsError(
            f"params.yaml: classifier.depth is {depth}; each stage of small_resnet after the first halves the image, and "
            f"{image_shape[1]}x{image_shape[2]} pixels are a single one after {most - 1} of them: set it to at most {most}"
        )


def small_resnet(
    *, channels: int, classes: int, activation: type[nn.Module], width: int = 16, depth: int = 2
) -> nn.Module:
    """`depth` stages of a residual block, then mean over positions, linear: images [B, C, H, W] to logits.

    The first stage has `width` channels, each further one twice those of the one before at half its side.
    """
    layers: list[nn.Module] = [nn.Conv2d(channels, width, 3, padding=1)]
    channels_in = width
    for stage in range(depth):
        for block in range(BLOCKS_PER_STAGE):
            stride = 2 if stage > 0 and block == 0 else 1
            layers.append(ResidualBlock(channels_in, width << stage, stride, activation))
            channels_in = width << stage
    layers += [activation(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels_in, classes)]
    return nn.Sequential(*layers)
