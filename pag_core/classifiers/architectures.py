"""Architectures by the name that params.yaml gives them; what is needed here travels with an exported classifier."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from pag_core.classifiers.activations import ACTIVATIONS
from pag_core.classifiers.normalization import NormalizedClassifier
from pag_core.classifiers.small_resnet import require_stages, small_resnet
from pag_core.classifiers.wide_resnet import wide_resnet
from pag_core.errors import ParamsError

Shape = tuple[int, int, int]


# torchvision and timm take seconds to load, so only those that need them pay
def _small_resnet(image_shape: Shape, **options: Any) -> nn.Module:
    require_stages(options.get("depth"), image_shape)
    return small_resnet(channels=image_shape[0], **options)


def _wide_resnet(image_shape: Shape, **options: Any) -> nn.Module:
    return wide_resnet(channels=image_shape[0], **options)


def _resnet18(image_shape: Shape, **options: Any) -> nn.Module:
    from pag_core.classifiers.resnet18 import resnet18

    return resnet18(channels=image_shape[0], **options)


def _vgg(layers: str) -> Callable[..., nn.Module]:
    def build(image_shape: Shape, **options: Any) -> nn.Module:
        from pag_core.classifiers.vgg import vgg

        return vgg(layers, image_shape=image_shape, **options)

    return build


def _vit(image_shape: Shape, **options: Any) -> nn.Module:
    from pag_core.classifiers.vision_transformer import vision_transformer

    return vision_transformer(image_shape=image_shape, **options)


def _mixer(image_shape: Shape, **options: Any) -> nn.Module:
    from pag_core.classifiers.mlp_mixer import mlp_mixer

    return mlp_mixer(image_shape=image_shape, **options)


@dataclass(frozen=True)
class Architecture:
    """A network behind the normalisation: `build(image_shape, classes=..., activation=..., **options)`.

    `options` are those of classifier.width, depth and patch_size that it has, `activation` the one that it has of its own,
    `package` what it is built from beside torch.
    """

    build: Callable[..., nn.Module]
    options: frozenset[str] = frozenset()
    activation: str = "relu"
    package: str | None = None


_WIDTH, _DEPTH, _PATCHES = (
    frozenset({"width"}),
    frozenset({"width", "depth"}),
    frozenset({"width", "depth", "patch_size"}),
)
ARCHITECTURES = {
    "small_resnet": Architecture(_small_resnet, _DEPTH, activation="silu"),
    "resnet18": Architecture(_resnet18, package="torchvision"),
    "wrn_34_10": Architecture(_wide_resnet, _DEPTH),
    "vgg11": Architecture(_vgg("vgg11"), _WIDTH, package="torchvision"),
    "vgg13": Architecture(_vgg("vgg13"), _WIDTH, package="torchvision"),
    "vgg16": Architecture(_vgg("vgg16"), _WIDTH, package="torchvision"),
    "vit": Architecture(_vit, _PATCHES, activation="gelu", package="timm"),
    "mixer": Architecture(_mixer, _PATCHES, activation="gelu", package="timm"),
}


def build_classifier(
    arch: str,
    *,
    width: int | None,
    activation: str | None,
    image_shape: Shape,
    classes: int,
    depth: int | None = None,
    patch_size: int | None = None,
) -> NormalizedClassifier:
    """A new classifier for images [0, 1] of `image_shape` [C, H, W]; None takes the architecture's own option.

    Weights are drawn from torch's global generator. No activation works in place. Raises ParamsError for an option that
    the architecture lacks and for images that do not fit it.
    """
    if arch not in ARCHITECTURES:
        raise ParamsError(f"params.yaml: arch {arch!r} is not one of: {', '.join(ARCHITECTURES)}")
    architecture = ARCHITECTURES[arch]
    chosen = {"width": width, "depth": depth, "patch_size": patch_size}
    given = {name: value for name, value in chosen.items() if value is not None}
    if arch == "resnet18" and given.get("width") == 64:
        del given["width"]  # its only width, written out
    for name in given.keys() - architecture.options:
        reason = "has 64" if (arch, name) == ("resnet18", "width") else f"has no option {name}"
        raise ParamsError(f"params.yaml: classifier.{name} is {given[name]}; {arch} {reason}: give null")
    kind = ACTIVATIONS[activation or architecture.activation]
    network = architecture.build(image_shape, classes=classes, activation=kind, **given)
    return NormalizedClassifier(network, channels=image_shape[0])
