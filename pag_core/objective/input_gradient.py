"""Input-gradients of chosen classes, differentiable in the network's parameters (the gradient term of Eq. 4)."""

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel


def _class_values(logits: torch.Tensor, output: str) -> torch.Tensor:
    """The function whose input-gradient is aligned: the logit f_c, or the log-probability of c."""
    match output:
        case "logit":
            return logits
        case "log_softmax":
            return F.log_softmax(logits, dim=1)
        case _:
            raise ValueError(f"output {output!r} is not one of: logit, log_softmax")


def shared_input_gradients(
    classifier: nn.Module, images: torch.Tensor, class_indices: torch.Tensor, *, output: str, create_graph: bool = True
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits [B, classes] and input-gradients [B, K, C, H, W] of the classes int64 [B, K], from one forward pass.

    Under batch-norm in train mode the gradient of each class runs through the statistics of the batch (the mode `class`
    of the performance notes). `images` are float [B, C, H, W] in [0, 1].
    """
    images = images.detach().requires_grad_()
    # fused attention kernels have no second derivative
    with sdpa_kernel(SDPBackend.MATH):
        logits = classifier(images)
    values = _class_values(logits, output)
    drawn = class_indices.shape[1]
    gradients = [
        torch.autograd.grad(
            values.gather(1, class_indices[:, k : k + 1]).sum(),
            images,
            create_graph=create_graph,
            retain_graph=create_graph or k + 1 < drawn,
        )[0]
        for k in range(drawn)
    ]
    return logits, torch.stack(gradients, dim=1)


def repeated_input_gradients(
    classifier: nn.Module, images: torch.Tensor, class_indices: torch.Tensor, *, output: str, create_graph: bool = True
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `shared_input_gradients`, but every class differentiates its own copy of the image in a second forward pass.

    This is the straightforward form: under batch-norm in train mode the statistics couple all B*K copies.
    """
    with sdpa_kernel(SDPBackend.MATH):
        logits = classifier(images)
        drawn = class_indices.shape[1]
        copies = images.detach().repeat_interleave(drawn, dim=0).requires_grad_()
        values = _class_values(classifier(copies), output)
    total = values.gather(1, class_indices.reshape(-1, 1)).sum()
    gradients = torch.autograd.grad(total, copies, create_graph=create_graph)[0]
    return logits, gradients.unflatten(0, (len(images), drawn))
