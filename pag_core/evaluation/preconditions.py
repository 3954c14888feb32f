"""What must hold before an attack's result means anything; what breaks it would give a wrong number and is refused."""

import torch
from torch import nn
from torch.nn import functional as F

from pag_core.compute.precision import rounded_products
from pag_core.errors import EvaluationRefused


def batches_of(count: int, batch_size: int) -> list[slice]:
    """The rows of `count` images in batches of at most `batch_size`: what an evaluation holds in memory together."""
    return [slice(start, start + batch_size) for start in range(0, count, batch_size)]


def require_fit_for_attack(
    classifier: nn.Module, images: torch.Tensor, labels: torch.Tensor, *, batch_size: int
) -> None:
    """Raise EvaluationRefused unless the attack libraries will report this model's true robustness.

    The model must be in eval mode, in float32, deterministic, return finite logits and not probabilities, and have
    input-gradients; images contiguous float32 [B, C, H, W] in [0, 1]; labels int64 [B]; autocast and inference mode off, and
    no product rounded to TF32 or bfloat16. It sees at most `batch_size` images at once.
    """
    require_eval_mode(classifier)
    tensors = [*classifier.parameters(), *classifier.buffers()]
    if odd := {str(tensor.dtype) for tensor in tensors if tensor.is_floating_point() and tensor.dtype != torch.float32}:
        raise EvaluationRefused(
            f"the model holds {', '.join(sorted(odd))} weights; standard evaluation runs in float32"
        )
    if torch.is_autocast_enabled(images.device.type):
        raise EvaluationRefused("autocast is on and changes the result; standard evaluation runs in float32")
    if rounded := rounded_products(images.device):
        raise EvaluationRefused(
            f"{' and '.join(rounded)} would be rounded, so an attack would meet another model; standard evaluation runs in "
            "float32: set torch.backends.cuda.matmul.allow_tf32 and torch.backends.cudnn.allow_tf32 to False, and "
            "torch.set_float32_matmul_precision('highest')"
        )
    if torch.is_inference_mode_enabled():
        raise EvaluationRefused("inference mode is on; attacks need gradients")
    _require_images(images, labels)
    batches = batches_of(len(images), batch_size)
    for rows in batches:
        _require_forward(classifier, images[rows])
    # images of which the model is sure have none, so one batch of zeros says nothing yet
    if not any(_has_gradients(classifier, images[rows], labels[rows]) for rows in batches):
        raise EvaluationRefused("the input-gradient is zero for every image, so gradient attacks are blind (masking)")


def require_eval_mode(classifier: nn.Module) -> None:
    """Raise EvaluationRefused where a layer is in train mode."""
    if any(module.training for module in classifier.modules()):
        raise EvaluationRefused("the model is in train mode, where it appears too robust; call .eval()")


def _require_images(images: torch.Tensor, labels: torch.Tensor) -> None:
    if images.ndim != 4 or images.dtype != torch.float32 or not images.is_contiguous():
        raise EvaluationRefused(
            f"images must be contiguous float32 [B, C, H, W], not {images.dtype} {list(images.shape)} "
            f"of strides {images.stride()}; call .float().contiguous()"
        )
    low, high = float(images.min()), float(images.max())
    if low < 0 or high > 1:
        raise EvaluationRefused(
            f"images must lie in [0, 1], not [{low:g}, {high:g}]; normalisation belongs inside the model"
        )
    if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
        raise EvaluationRefused(f"labels must be int64 [{len(images)}], not {labels.dtype} {list(labels.shape)}")


@torch.no_grad()
def _require_forward(classifier: nn.Module, images: torch.Tensor) -> None:
    logits, again = classifier(images), classifier(images)
    if not torch.isfinite(logits).all():
        raise EvaluationRefused("the model returns logits that are not finite")
    if not torch.equal(logits, again):
        raise EvaluationRefused(
            "two forward passes differ; a randomised model needs another evaluation than the standard one"
        )
    if (logits >= 0).all() and torch.allclose(logits.sum(1), torch.ones(len(logits), device=logits.device), atol=1e-5):
        raise EvaluationRefused("the model returns probabilities; attacks need its logits (leave the softmax out)")


def _has_gradients(classifier: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> bool:
    """Whether any image has an input-gradient; raises EvaluationRefused for one that attacks cannot take."""
    with torch.enable_grad():
        inputs = images.clone().requires_grad_()
        loss = F.cross_entropy(classifier(inputs), labels, reduction="sum")
        if not loss.requires_grad:
            raise EvaluationRefused("the loss does not depend on the image through differentiable operations")
        gradient = torch.autograd.grad(loss, inputs)[0]
    if not gradient.any():
        return False
    if not gradient.is_contiguous():
        raise EvaluationRefused(
            f"the input-gradient has the strides {gradient.stride()}, and AutoAttack takes contiguous ones only; let the "
            "model's forward pass begin with images.flatten(1).unflatten(1, images.shape[1:]), or leave channels_last out"
        )
    return True


@torch.no_grad()
def correct(classifier: nn.Module, images: torch.Tensor, labels: torch.Tensor, *, batch_size: int) -> torch.Tensor:
    """Which images [B, C, H, W] are classified as their labels, in batches of `batch_size`: bool [B]."""
    batches = batches_of(len(images), batch_size)
    return torch.cat([classifier(images[rows]).argmax(1) == labels[rows] for rows in batches])


def accuracy(classifier: nn.Module, images: torch.Tensor, labels: torch.Tensor, *, batch_size: int) -> float:
    """The fraction of images [B, C, H, W] classified as their labels, in batches of `batch_size`."""
    return int(correct(classifier, images, labels, batch_size=batch_size).sum()) / len(images)
