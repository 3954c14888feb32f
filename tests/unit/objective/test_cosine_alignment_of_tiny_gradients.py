"""The cosine loss has no scale: that of tiny gradients, whose squares float32 barely holds, against loops in float64."""

import pytest
import torch

from pag_core.objective.cosine_alignment import cosine_alignment_loss, cosine_similarity

BATCH, CLASSES, SHAPE = 3, 2, (2, 4, 4)
WHOLE = {"mask": None, "target_norm": None, "weights": None}


def gradients(scale, target_scale):
    """Float32 input-gradients, some aligned with their targets and some opposed to them, and the targets."""
    draws = torch.Generator().manual_seed(0)
    target = torch.randn(BATCH, CLASSES, *SHAPE, generator=draws)
    signs = torch.tensor([1.0, -1.0]).view(1, CLASSES, 1, 1, 1)
    gradient = signs * target + torch.randn(target.shape, generator=draws)
    return (scale * gradient).requires_grad_(), target_scale * target


def augmented(target):
    """What comes with images that a crop moved: pixels from outside, norms of whole targets; and weights of the classes."""
    mask = torch.ones(BATCH, 1, *SHAPE[1:], dtype=torch.bool)
    mask[0, :, 0], mask[1, :, :, 2:] = False, False
    norms = target.flatten(2).norm(dim=2) * torch.tensor([[1.0, 1.2], [1.5, 1.1], [1.0, 2.0]])
    return {"mask": mask, "target_norm": norms, "weights": torch.tensor([[0.5, 1.5], [0.7, 1.0], [2.0, 0.3]])}


def by_hand(gradient, target, mask, target_norm, weights):
    """The loss and its derivative times the length of each gradient, in float64 and class by class."""
    loss, derivative = 0.0, torch.zeros(gradient.shape, dtype=torch.float64)
    for b in range(BATCH):
        seen = 1.0 if mask is None else mask[b].double()
        for k in range(CLASSES):
            v, u = gradient[b, k].detach().double() * seen, target[b, k].double()
            length = v.norm()
            other = u.norm() if target_norm is None else target_norm[b, k].double()
            counts = (1.0 if weights is None else weights[b, k].item()) / BATCH
            cosine = (v * u).sum() / length / other
            loss += counts * (1 - cosine.item())
            derivative[b, k] = -counts * seen * (u / other - cosine * v / length)
    return loss, derivative


@pytest.mark.parametrize("moved", [False, True], ids=["whole", "augmented"])
@pytest.mark.parametrize("target_scale", [1.0, 0.1])
@pytest.mark.parametrize("scale", [1.0, 1e-9, 1e-15])
def test_loss_and_derivative_are_those_of_gradients_of_any_length(scale, target_scale, moved):
    gradient, target = gradients(scale, target_scale)
    options = augmented(target) if moved else WHOLE
    loss, expected = by_hand(gradient, target, **options)
    found = cosine_alignment_loss(gradient, target, **options)
    assert found.item() == pytest.approx(loss, rel=1e-5)
    found.backward()
    counted = gradient.detach() if options["mask"] is None else gradient.detach() * options["mask"][:, None]
    lengths = counted.double().flatten(2).norm(dim=2)[..., None, None, None]
    # one over the length of the gradient, times what depends on directions only
    assert torch.allclose(gradient.grad.double() * lengths, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("zero", ["gradient", "target", "both", "all that the crop left"])
@pytest.mark.parametrize("scale", [1.0, 1e-15])
def test_a_zero_gradient_contributes_exactly_one_and_no_derivative(scale, zero):
    """And leaves those of the other images and classes as they are."""
    gradient, target = gradients(scale, 1.0)
    others = torch.ones(BATCH, CLASSES, dtype=torch.bool)
    others[1, 0] = False
    mask = None
    with torch.no_grad():
        if zero in ("gradient", "both"):
            gradient[1, 0] = 0
        if zero in ("target", "both"):
            target[1, 0] = 0
        if zero == "all that the crop left":
            mask = torch.ones(BATCH, 1, *SHAPE[1:], dtype=torch.bool)
            mask[1], others[1] = False, False
    assert torch.equal(1 - cosine_similarity(gradient, target, mask=mask) == 1, ~others)
    cosine_alignment_loss(gradient, target, mask=mask).backward()
    assert (gradient.grad[~others] == 0).all()
    kept = gradients(scale, 1.0)
    cosine_alignment_loss(*kept).backward()
    assert torch.allclose(gradient.grad[others] * scale, kept[0].grad[others] * scale, rtol=1e-6, atol=0)
    assert (kept[0].grad[others] != 0).all()


@pytest.mark.parametrize("length", [1.0, 100.0, 1000.0])
@pytest.mark.parametrize("product", [0.5e-16, 0.99e-16, 1.01e-16, 1e-15, 1e-13])
def test_the_derivative_is_finite_by_targets_of_any_length(length, product):
    """Of one image, whose derivative no batch divides; at the length below which a gradient counts as zero, and above it."""
    gradient, target = (one[:1, :1] for one in gradients(1.0, 1.0))
    target = length * target / target.norm()
    gradient = (product / length * gradient / gradient.norm()).detach().requires_grad_()
    cosine_alignment_loss(gradient, target).backward()
    assert gradient.grad.isfinite().all() and (gradient.grad != 0).any() == (product > 1e-16)
