"""VGG-11, 13 and 16 (Simonyan and Zisserman, 2014) as usual for small images: batch norm, one linear layer (Table 5)."""

from torch import nn
from torchvision.models.vgg import cfgs, make_layers

from pag_core.classifiers.activations import replace_relu
from pag_core.errors import ParamsError

CONFIGURATIONS = {"vgg11": "A", "vgg13": "B", "vgg16": "D"}
WIDTH = 64
SMALLEST_SIDE = 32  # five poolings halve it to one pixel


def vgg(
    arch: str, *, image_shape: tuple[int, int, int], classes: int, activation: type[nn.Module], width: int = WIDTH
) -> nn.Module:
    """The convolutions of torchvision's `vgg11_bn`, `vgg13_bn` or `vgg16_bn`, mean over positions, one linear layer.

    `width` is that of the first convolution; all others scale with it. Torchvision's three linear layers (120 million
    parameters) are for images of 224 pixels. Raises ParamsError for images below 32 pixels a side.
    """
    channels, *sides = image_shape
    if min(sides) < SMALLEST_SIDE:
        raise ParamsError(
            f"params.yaml: arch is {arch}, whose five poolings need images of {SMALLEST_SIDE} or more pixels a side; "
            f"the dataset's are {sides[0]}x{sides[1]}: choose another arch, or set prepare.image_size"
        )
    plan = [size if isinstance(size, str) else size * width // WIDTH for size in cfgs[CONFIGURATIONS[arch]]]
    features = make_layers(plan, batch_norm=True)
    features[0] = nn.Conv2d(channels, width, 3, padding=1)
    replace_relu(features, activation)
    network = nn.Sequential(features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width * 8, classes))
    for module in network.modules():
        # as torchvision's VGG class initialises what it holds
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(module.bias)  # type: ignore[arg-type]
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.01)
            nn.init.zeros_(module.bias)
    return network
