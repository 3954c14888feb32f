"""ResNet-18 (He et al., 2016) with the stem for small images: a 3x3 convolution of stride 1 and no pooling."""

from torch import nn
from torchvision.models import resnet18 as torchvision_resnet18

from pag_core.classifiers.activations import replace_relu

WIDTH = 64


def resnet18(*, channels: int, classes: int, activation: type[nn.Module]) -> nn.Module:
    """torchvision's ResNet-18 with `classes` outputs, its stem replaced and its activations of the given kind."""
    network: nn.Module = torchvision_resnet18(num_classes=classes)
    network.conv1 = nn.Conv2d(channels, WIDTH, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
    network.maxpool = nn.Identity()
    replace_relu(network, activation)
    return network
