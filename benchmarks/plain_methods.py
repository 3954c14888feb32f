"""Eq. 4 by the methods that come to mind first: repeated images, and one forward pass that autograd goes back through."""

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.pag_step import WEIGHT, Batch

# from values [B, K], one for each class of each image, and the images to input-gradients [B, K, 3, H, W]
Differentiation = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def plain_repeat_loss(classifier: nn.Module, batch: Batch) -> torch.Tensor:
    """A pass for the cross-entropy, another over every image repeated for each class: 3 + 6K forward passes."""
    count, drawn = batch.class_indices.shape
    cross_entropy = F.cross_entropy(classifier(batch.images), batch.labels)
    copies = batch.images.repeat_interleave(drawn, dim=0).requires_grad_()
    log_probabilities = classifier(copies).log_softmax(1)
    chosen = log_probabilities[torch.arange(count * drawn, device=copies.device), batch.class_indices.flatten()]
    (gradient,) = torch.autograd.grad(chosen.sum(), copies, create_graph=True)
    return cross_entropy + WEIGHT * _alignment(gradient.unflatten(0, (count, drawn)), batch)


def class_loop_loss(classifier: nn.Module, batch: Batch) -> torch.Tensor:
    """One forward pass, and `autograd.grad` for one class after the other: 3 + 3K."""
    return _shared_pass_loss(classifier, batch, _one_by_one)


def class_batched_loss(classifier: nn.Module, batch: Batch) -> torch.Tensor:
    """One forward pass, and one `autograd.grad` for all classes by `is_grads_batched`: 3 + 3K."""
    return _shared_pass_loss(classifier, batch, _batched)


# each by the name of its row, with the meaning of batch-norm in its input-gradients
PLAIN_METHODS: dict[str, tuple[Callable[[nn.Module, Batch], torch.Tensor], str]] = {
    "plain_repeat": (plain_repeat_loss, "repeat"),
    "class_loop": (class_loop_loss, "class"),
    "class_batched": (class_batched_loss, "class"),
}


def _shared_pass_loss(classifier: nn.Module, batch: Batch, differentiate: Differentiation) -> torch.Tensor:
    images = batch.images.detach().requires_grad_()
    logits = classifier(images)
    gradient = differentiate(logits.log_softmax(1).gather(1, batch.class_indices), images)
    return F.cross_entropy(logits, batch.labels) + WEIGHT * _alignment(gradient, batch)


def _one_by_one(values: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    gradients = [torch.autograd.grad(value.sum(), images, create_graph=True)[0] for value in values.unbind(1)]
    return torch.stack(gradients, 1)


def _batched(values: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    drawn = values.shape[1]
    cotangents = torch.eye(drawn, dtype=values.dtype, device=values.device)[:, None].expand(drawn, *values.shape)
    (gradients,) = torch.autograd.grad(values, images, cotangents, is_grads_batched=True, create_graph=True)
    return gradients.transpose(0, 1)


def _alignment(gradient: torch.Tensor, batch: Batch) -> torch.Tensor:
    """The alignment term for gradients [B, K, 3, H, W] of the drawn classes, which stand for all."""
    count, drawn = batch.class_indices.shape
    cosine = F.cosine_similarity(gradient.flatten(2), batch.targets.flatten(2), dim=2)
    return (1 - cosine).sum() / count * (batch.classes / drawn)
