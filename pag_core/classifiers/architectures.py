"""Architectures by the name that params.yaml gives them; what is needed here travels with an exported classifier."""

import difflib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from pag_core.classifiers.activations import ACTIVATIONS
from pag_core.classifiers.logits import place_of_logits
from pag_core.classifiers.normalization import NormalizedClassifier
from pag_core.classifiers.small_resnet import require_stages, small_resnet
from pag_core.classifiers.wide_resnet import wide_resnet
from pag_core.errors import ParamsError
from pag_core.pipeline.own_code import is_own, own_function

TIMM = "timm:"
Shape = tuple[int, int, int]
# what a network raises, when it is built or run, for images of a size that it does not take
REFUSALS = (ArithmeticError, AssertionError, LookupError, RuntimeError, ValueError)


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
    options: Mapping[str, Any] | None = None,
) -> NormalizedClassifier:
    """A new classifier for images [0, 1] of `image_shape` [C, H, W]; None takes the architecture's own option.

    `arch` is one of ARCHITECTURES, `own.FILE:FUNCTION` or `timm:NAME`; the last two alone take `options`. Weights are drawn
    from torch's global generator. No activation of an architecture here works in place. Raises ParamsError for an option that
    the architecture lacks, for images that do not fit it, and for a network of the user's or of timm that does not return
    logits [B, classes].
    """
    chosen = {"width": width, "activation": activation, "depth": depth, "patch_size": patch_size}
    given = {name: value for name, value in chosen.items() if value is not None}
    if arch in ARCHITECTURES:
        network = _of_the_project(arch, image_shape, classes, given, options or {})
    elif is_own(arch) or arch.startswith(TIMM):
        for name in given:
            raise ParamsError(
                f"params.yaml: classifier.{name} is {given[name]}; what {arch} takes is in classifier.options: give null"
            )
        build = _of_timm if arch.startswith(TIMM) else _of_the_user
        network = build(arch, image_shape, classes, dict(options or {}))
    else:
        raise ParamsError(f"params.yaml: arch {arch!r} is not one of: {', '.join(ARCHITECTURES)}")
    classifier = NormalizedClassifier(network, channels=image_shape[0])
    if arch not in ARCHITECTURES:
        classifier.output = _place_of_logits(network, arch, image_shape, classes)
    return classifier


def _of_the_project(
    arch: str, image_shape: Shape, classes: int, given: dict[str, Any], options: Mapping[str, Any]
) -> nn.Module:
    architecture = ARCHITECTURES[arch]
    for name in options:
        raise ParamsError(
            f"params.yaml: classifier.options.{name} is {options[name]}; {arch} takes none: those of own.FILE:FUNCTION and "
            "timm:NAME are given there"
        )
    if arch == "resnet18" and given.get("width") == 64:
        del given["width"]  # its only width, written out
    kind = ACTIVATIONS[given.pop("activation", architecture.activation)]
    for name in given.keys() - architecture.options:
        reason = "has 64" if (arch, name) == ("resnet18", "width") else f"has no option {name}"
        raise ParamsError(f"params.yaml: classifier.{name} is {given[name]}; {arch} {reason}: give null")
    return architecture.build(image_shape, classes=classes, activation=kind, **given)


def _of_the_user(arch: str, image_shape: Shape, classes: int, options: dict[str, Any]) -> nn.Module:
    function = own_function(arch, "arch")
    signature = inspect.signature(function)
    known = {"classes": classes, "channels": image_shape[0], "image_shape": image_shape}
    given = {key: value for key, value in known.items() if key in signature.parameters} | options
    try:
        signature.bind(**given)
    except TypeError as error:
        raise ParamsError(
            f"params.yaml: arch is {arch}, which takes {signature}: {error}; its arguments are the keys of "
            f"classifier.options, and {', '.join(known)} if it has arguments of these names"
        ) from None
    network = function(**given)
    if not isinstance(network, nn.Module):
        raise ParamsError(
            f"params.yaml: arch is {arch}, which returns {type(network).__name__}: it must return a torch.nn.Module"
        )
    return network


def _of_timm(arch: str, image_shape: Shape, classes: int, options: dict[str, Any]) -> nn.Module:
    import timm

    name = arch.removeprefix(TIMM)
    if not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models(), n=3)
        raise ParamsError(
            f"params.yaml: arch is {arch}, and timm {timm.__version__} has no model {name}"
            + (f" (did you mean {', '.join(close)}?)" if close else "")
        )
    if refused := options.keys() & {"pretrained", "checkpoint_path", "num_classes", "in_chans"}:
        raise ParamsError(
            f"params.yaml: classifier.options.{min(refused)} is no option of {arch}: networks are built with new weights, for "
            "the classes and channels of the dataset"
        )
    known = timm.get_pretrained_cfg(name)
    # transformers are built for one size of image
    if known is not None and known.fixed_input_size:
        options = {"img_size": image_shape[1:], **options}
    try:
        network: nn.Module = timm.create_model(name, num_classes=classes, in_chans=image_shape[0], **options)
    except (TypeError, *REFUSALS) as error:
        raise ParamsError(
            f"params.yaml: timm cannot build arch {arch} for images of {'x'.join(map(str, image_shape))} with "
            f"classifier.options {options}: {_said(error)}"
        ) from error
    return network


def _place_of_logits(network: nn.Module, arch: str, image_shape: Shape, classes: int) -> str | int | None:
    """Try the network on two images, in eval mode and leaving the generator as it is."""
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            returned = network.eval()(torch.zeros(2, *image_shape))
    except REFUSALS as error:
        raise ParamsError(
            f"params.yaml: arch {arch} does not take images of {'x'.join(map(str, image_shape))}: {_said(error)}; "
            "prepare.image_size resizes them"
        ) from error
    network.train()
    try:
        return place_of_logits(returned, 2, classes)
    except ParamsError as error:
        raise ParamsError(f"params.yaml: arch is {arch}: {error}") from None


def _said(error: Exception) -> str:
    """What an error says; a bare assertion has its name alone."""
    return str(error) or type(error).__name__
