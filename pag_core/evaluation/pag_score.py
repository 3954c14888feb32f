"""A PAG score: the mean cosine between a classifier's input-gradients and held-out target gradients.

The paper has no quantitative measure of perceptual alignment; this one is this project's own. It is the cosine of Eq. 5, over
test images and all classes, between the input-gradients of the log-probabilities and target gradients that training never saw.
"""

import torch
from torch import nn

from pag_core.gradient_store.store import TargetGradients
from pag_core.objective.cosine_alignment import cosine_similarity
from pag_core.objective.input_gradient import input_gradients

# as many input-gradients are in memory together, whatever the number of classes
GRADIENTS_AT_ONCE = 1000


def pag_score(
    classifier: nn.Module,
    images: torch.Tensor,
    targets: TargetGradients,
    *,
    classes: int,
    gradients_at_once: int = GRADIENTS_AT_ONCE,
) -> float:
    """The mean cosine in [-1, 1] over images float [B, C, H, W] in [0, 1] (the first B of the split) and all classes."""
    batch_size = max(1, gradients_at_once // classes)
    total = 0.0
    for start in range(0, len(images), batch_size):
        indices = torch.arange(start, min(start + batch_size, len(images)), device=images.device)
        class_indices = torch.arange(classes, device=images.device).expand(len(indices), classes)
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
        total += cosine_similarity(gradients, targets(indices, class_indices)).mean(1).sum().item()
    return total / len(images)
