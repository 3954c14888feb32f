"""Controls: training on target gradients of the wrong image or class, or without shapes: does it matter what they show?"""

import math

import torch

from pag_core.compute.randomness import generator
from pag_core.datasets.prepared import Split
from pag_core.errors import ParamsError
from pag_core.gradient_store.targets import GradientBatch, TargetGradients
from pag_core.params.sections import Params
from pag_core.params.values import Control


class _Exchanged(TargetGradients):
    """Other gradients of `targets` in place of those that are asked for."""

    def __init__(self, targets: TargetGradients) -> None:
        self.targets = targets
        self.ahead = targets.ahead
        self.window = targets.window
        self.kept_classes = targets.kept_classes

    def epoch_order(self, images: int, *, seed: int, epoch: int) -> torch.Tensor:
        return self.targets.epoch_order(images, seed=seed, epoch=epoch)

    def close(self) -> None:
        self.targets.close()


class OfAnotherClass(_Exchanged):
    """g(x, c') in place of g(x, c): c' is the next class of which the image has a gradient, after the last the first."""

    def __init__(self, targets: TargetGradients, classes: int) -> None:
        super().__init__(targets)
        self.count = targets.slots(classes)

    def rows(self, image_indices: torch.Tensor, slots: torch.Tensor, *, epoch: int = 0) -> GradientBatch:
        return self.targets.rows(image_indices, (slots + 1) % self.count, epoch=epoch)


class OfAnotherImage(_Exchanged):
    """g(x', c) in place of g(x, c): x' is another training image of x's class (`other_images`)."""

    def __init__(self, targets: TargetGradients, split: Split, seed: int) -> None:
        super().__init__(targets)
        others = other_images(split.labels.cpu(), seed=seed)
        self.others = {place: others.to(place) for place in {torch.device("cpu"), split.labels.device}}
        if targets.kept_classes is not None:
            self.kept_classes = targets.kept_classes[others]

    def rows(self, image_indices: torch.Tensor, slots: torch.Tensor, *, epoch: int = 0) -> GradientBatch:
        return self.targets.rows(self.others[image_indices.device][image_indices], slots, epoch=epoch)


class OfShuffledPixels(_Exchanged):
    """g(x, c) with its pixels in another order, the same for all images and classes: its values and no shapes."""

    def __init__(self, targets: TargetGradients, split: Split, seed: int) -> None:
        super().__init__(targets)
        order = torch.randperm(math.prod(split.image_shape[1:]), generator=generator("cpu", seed, "control"))
        self.order = {place: order.to(place) for place in {torch.device("cpu"), split.device}}

    def rows(self, image_indices: torch.Tensor, slots: torch.Tensor, *, epoch: int = 0) -> GradientBatch:
        batch = self.targets.rows(image_indices, slots, epoch=epoch)
        codes = batch.codes.flatten(-2)[..., self.order[batch.codes.device]]
        return batch.with_codes(codes.unflatten(-1, batch.codes.shape[-2:]))


def other_images(labels: torch.Tensor, *, seed: int) -> torch.Tensor:
    """For each image another of its class, and each image once: int64 [N]. The only image of a class stays itself."""
    others = torch.arange(len(labels))
    draws = generator("cpu", seed, "control")
    for label in labels.unique():
        members = torch.nonzero(labels == label).flatten()
        ring = members[torch.randperm(len(members), generator=draws)]
        others[ring] = ring.roll(1)
    return others


def require_exchangeable(params: Params) -> None:
    """Raise ParamsError for a `control` of target gradients that there are not, or that come in an order of their own."""
    control = params.control
    if control is None:
        return
    if params.source == "none" or params.lambda_ == 0:
        raise ParamsError(
            f"params.yaml: control is {control}, but source {params.source} and lambda {params.lambda_:g} have no target "
            "gradients to exchange; set control: null, or a source and a lambda"
        )
    if params.source == "sbg_online" or params.feed.window_shards is not None:
        raise ParamsError(
            f"params.yaml: control is {control}, which takes target gradients out of a store in any order; it works "
            "neither with source sbg_online nor with feed.window_shards"
        )


def exchanged(targets: TargetGradients, control: Control, split: Split, *, classes: int, seed: int) -> TargetGradients:
    """`targets` of the training split `split` as the parameter `control` has them."""
    match control:
        case "other_image":
            return OfAnotherImage(targets, split, seed)
        case "other_class":
            return OfAnotherClass(targets, classes)
        case "shuffled_pixels":
            return OfShuffledPixels(targets, split, seed)
