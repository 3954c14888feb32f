"""The activations that `classifier.activation` chooses from, and their exchange in networks made by a library."""

from torch import nn

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "silu": nn.SiLU, "gelu": nn.GELU}


def replace_relu(network: nn.Module, activation: type[nn.Module]) -> None:
    """Put `activation`, not in place, wherever `network` holds a ReLU.

    torchvision's own work in place, which a transform over classes or a hook on their input does not survive.
    """
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.ReLU):
                setattr(module, name, activation())
