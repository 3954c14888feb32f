"""A PAG score: the mean cosine between a classifier's input-gradients and held-out target gradients.

The paper has no quantitative measure of perceptual alignment; this one is this project's own. It is the cosine of Eq. 5, over
test images and all classes, between the input-gradients of the log-probabilities and target gradients that training never saw.
"""

from collections.abc import Callable, Sequence

import torch
from torch import nn

from pag_core.datasets.prepared import Split
from pag_core.errors import ParamsError
from pag_core.evaluation.preconditions import batches_of
from pag_core.objective.cosine_alignment import cosine_similarity
from pag_core.objective.input_gradient import input_gradients
from pag_core.params.sections import Params

# from images int64 [B] and classes int64 [B, K] to targets float [B, K, C, H, W], as `TargetGradients`
AskTargets = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def require_held_gradients(params: Params) -> None:
    """Raise ParamsError if a score against score-based gradients takes more images than there are gradients held of."""
    held = params.gradient_store.held_out_images
    if {"sbg", "sbg_online", "own"} & {params.source, params.pag_score.reference} and params.pag_score.images > held:
        raise ParamsError(
            f"params.yaml: pag_score.images is {params.pag_score.images}, but score-based gradients are held of "
            f"gradient_store.held_out_images test images, {held}; set the one lower or the other higher"
        )


def require_known_classes(train: Split, *, class_names: Sequence[str], images: int) -> None:
    """Raise ParamsError unless each class is among the first `images` of the training split: what a judge learns."""
    if unknown := set(range(len(class_names))) - set(train.labels[:images].tolist()):
        raise ParamsError(
            f"params.yaml: pag_score.judge_images is {images}, and none of that many training images is of the class "
            f"{class_names[min(unknown)]!r}; set it higher"
        )


def pag_score(
    classifier: nn.Module,
    images: torch.Tensor,
    targets: AskTargets,
    *,
    classes: int,
    batch_size: int,
) -> float:
    """The mean cosine in [-1, 1] over images float [B, C, H, W] in [0, 1] (the first B of the split) and all classes.

    At most `batch_size` input-gradients, each of an image and a class, are taken at once, whatever the number of classes.
    """
    total = 0.0
    for rows in batches_of(len(images), max(1, batch_size // classes)):
        indices = torch.arange(len(images), device=images.device)[rows]
        every = torch.arange(classes, device=images.device).expand(len(indices), classes)
        parts = [_cosines(classifier, images, targets, indices, part) for part in every.split(batch_size, dim=1)]
        total += torch.cat(parts, dim=1).mean(1).sum().item()
    return total / len(images)


def _cosines(
    classifier: nn.Module,
    images: torch.Tensor,
    targets: AskTargets,
    indices: torch.Tensor,
    class_indices: torch.Tensor,
) -> torch.Tensor:
    """The cosines [B, K] of the images `indices` int64 [B] for the classes `class_indices` int64 [B, K]."""
    # in eval mode no image depends on another, so all meanings of batch-norm agree
    _, gradients = input_gradients(
        classifier,
        images[indices],
        class_indices,
        output="log_softmax",
        differentiation="autograd",
        batch_norm="class",
        create_graph=False,
    )
    return cosine_similarity(gradients, targets(indices, class_indices))
