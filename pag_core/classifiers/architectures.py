"""Architectures by the name that params.yaml gives them; what is needed here travels with an exported classifier."""

from torch import nn

from pag_core.classifiers.activations import ACTIVATIONS
from pag_core.classifiers.normalization import NormalizedClassifier
from pag_core.classifiers.small_resnet import require_stages, small_resnet
from pag_core.classifiers.wide_resnet import wide_resnet
from pag_core.errors import ParamsError

# which of classifier.width, depth and patch_size an architecture has; each takes `activation`
OPTIONS: dict[str, frozenset[str]] = {
    "small_resnet": frozenset({"width", "depth"}),
    "resnet18": frozenset(),
    "wrn_34_10": frozenset({"width", "depth"}),
    "vgg11": frozenset({"width"}),
    "vgg13": frozenset({"width"}),
    "vgg16": frozenset({"width"}),
    "vit": frozenset({"width", "depth", "patch_size"}),
    "mixer": frozenset({"width", "depth", "patch_size"}),
}
OWN_ACTIVATION = {"small_resnet": "silu", "vit": "gelu", "mixer": "gelu"}  # relu for all others
# what an architecture is built from beside torch
PACKAGES = {
    "resnet18": "torchvision",
    "vgg11": "torchvision",
    "vgg13": "torchvision",
    "vgg16": "torchvision",
    "vit": "timm",
    "mixer": "timm",
}


def build_classifier(
    arch: str,
    *,
    width: int | None,
    activation: str | None,
    image_shape: tuple[int, int, int],
    classes: int,
    depth: int | None = None,
    patch_size: int | None = None,
) -> NormalizedClassifier:
    """A new classifier for images [0, 1] of `image_shape` [C, H, W]; None takes the architecture's own option.

    Weights are drawn from torch's global generator. No activation works in place. Raises ParamsError for an option that
    the architecture lacks and for images that do not fit it.
    """
    if arch not in OPTIONS:
        raise ParamsError(f"params.yaml: arch {arch!r} is not one of: {', '.join(OPTIONS)}")
    chosen = {"width": width, "depth": depth, "patch_size": patch_size}
    given = {name: value for name, value in chosen.items() if value is not None}
    if arch == "resnet18" and given.get("width") == 64:
        del given["width"]  # its only width, written out
    for name in given.keys() - OPTIONS[arch]:
        reason = "has 64" if (arch, name) == ("resnet18", "width") else f"has no option {name}"
        raise ParamsError(f"params.yaml: classifier.{name} is {given[name]}; {arch} {reason}: give null")
    kind = ACTIVATIONS[activation or OWN_ACTIVATION.get(arch, "relu")]
    return NormalizedClassifier(_network(arch, image_shape, classes, kind, given), channels=image_shape[0])


def _network(
    arch: str, image_shape: tuple[int, int, int], classes: int, activation: type[nn.Module], given: dict[str, int]
) -> nn.Module:
    """The network behind the normalisation; torchvision and timm take seconds to load, so only those that need them pay."""
    channels = image_shape[0]
    match arch:
        case "small_resnet":
            require_stages(given.get("depth"), image_shape)
            return small_resnet(channels=channels, classes=classes, activation=activation, **given)
        case "resnet18":
            from pag_core.classifiers.resnet18 import resnet18

            return resnet18(channels=channels, classes=classes, activation=activation)
        case "wrn_34_10":
            return wide_resnet(channels=channels, classes=classes, activation=activation, **given)
        case "vit":
            from pag_core.classifiers.vision_transformer import vision_transformer

            return vision_transformer(image_shape=image_shape, classes=classes, activation=activation, **given)
        case "mixer":
            from pag_core.classifiers.mlp_mixer import mlp_mixer

            return mlp_mixer(image_shape=image_shape, classes=classes, activation=activation, **given)
        case _:
            from pag_core.classifiers.vgg import vgg

            return vgg(arch, image_shape=image_shape, classes=classes, activation=activation, **given)
