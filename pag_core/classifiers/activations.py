"""The activations that `classifier.activation` chooses from, and how they replace those of a library's network."""

from torch import nn

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "silu": nn.SiLU, "gelu": nn.GELU}


def replace_relu(network: nn.Module, activation: type[nn.Module]) -> None:
    """Put `activation`, not in place, wherever `network` holds a ReLU.

    torchvision's ReLUs work in place, which breaks a transform over classes or a hook on their input.
    """
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.ReLU):
                setattr(module, name, activation())
