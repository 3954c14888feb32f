"""The loss in a user's own loop: to the byte the training step's, its parts, and its refusals."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pag_core import PAGLoss, alignment_loss, class_mean_targets, pag_loss
from pag_core.errors import AdjointUnavailable, ShapeMismatch
from pag_core.gradient_store.targets import RepresentativeGradients
from pag_core.objective.pag import AlignedBatch
from pag_core.training.step import AlignmentTerm, Objective


@pytest.fixture
def norm_network():
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.SiLU(), nn.Flatten(), nn.Linear(144, 3))


@pytest.fixture
def batch():
    draws = torch.Generator().manual_seed(2)
    images, labels = torch.rand(6, 1, 8, 8, generator=draws), torch.tensor([0, 2, 1, 1, 0, 2])
    classes = torch.stack([torch.randperm(3, generator=draws)[:2] for _ in range(6)])
    return images, labels, torch.randn(6, 2, 1, 8, 8, generator=draws), classes


def parameter_gradients(network, loss):
    network.zero_grad()
    loss.backward()
    return [parameter.grad.clone() for parameter in network.parameters()]


@pytest.mark.parametrize("weights", [None, torch.tensor([[0.5, 1.5]]).expand(6, 2)])
@pytest.mark.parametrize("differentiation", ["adjoint", "autograd"])
@pytest.mark.parametrize(
    ("output", "batch_norm", "scaling"),
    [("log_softmax", "frozen", "all"), ("logit", "repeat", "all"), ("log_softmax", "class", "drawn")],
)
def test_loss_and_gradients_are_the_training_steps_to_the_byte(
    make_params, norm_network, batch, output, batch_norm, scaling, differentiation, weights
):
    images, labels, targets, classes = batch
    form = {"output": output, "batch_norm": batch_norm, "scaling": scaling, "differentiation": differentiation}
    params = make_params({f"objective.{name}": value for name, value in form.items()})
    unused = RepresentativeGradients(torch.zeros(3, 1, 8, 8), None)
    step = Objective(
        norm_network,
        AlignmentTerm(unused, 1.7, params.objective),
        classes=3,
        params=params.train,
        device=torch.device("cpu"),
    )
    aligned = AlignedBatch(images, labels, classes, targets, weights=weights)
    total, _, alignment, logits = step(images, labels, aligned, None, 0)
    expected = parameter_gradients(norm_network, total)
    found = pag_loss(norm_network, images, labels, targets, classes, weights, weight=1.7, **form)
    assert torch.equal(found.loss, total) and torch.equal(found.logits, logits)
    assert all(map(torch.equal, parameter_gradients(norm_network, found.loss), expected))
    assert torch.equal(alignment_loss(norm_network, images, targets, classes, weights, **form).loss, alignment)
    as_module = PAGLoss(norm_network, weight=1.7, **form)
    assert torch.equal(as_module(images, labels, targets, classes, weights).loss, total)


def test_defaults_are_those_of_score_based_gradients(make_params, norm_network, batch):
    """As params.yaml has them, and so do its sources and its form of the objective."""
    from pag_core.params.reading import load_params

    params = load_params()
    default = params.source_defaults.sbg
    stated = {
        "weight": default.lambda_, "output": default.output, "batch_norm": params.objective.batch_norm,
        "differentiation": params.objective.differentiation, "scaling": params.objective.scaling,
    }  # fmt: skip
    assert {name: getattr(PAGLoss(norm_network), name) for name in stated} == stated
    assert torch.equal(pag_loss(norm_network, *batch).loss, pag_loss(norm_network, *batch, **stated).loss)


def test_the_alignment_term_is_added_to_any_loss(norm_network, batch):
    images, labels, targets, classes = batch
    alignment, logits = alignment_loss(norm_network, images, targets, classes)
    smoothed = F.cross_entropy(logits, labels, label_smoothing=0.1)
    found = parameter_gradients(norm_network, smoothed + 0.5 * alignment)
    of_term = parameter_gradients(norm_network, alignment_loss(norm_network, images, targets, classes).loss)
    of_rest = parameter_gradients(norm_network, F.cross_entropy(norm_network(images), labels, label_smoothing=0.1))
    for whole, rest, term in zip(found, of_rest, of_term, strict=True):
        assert torch.allclose(whole, rest + 0.5 * term, rtol=1e-4, atol=1e-6)
    assert any(term.norm() > 1e-3 for term in of_term)


def test_targets_of_all_classes_need_no_list_of_them(norm_network, batch):
    images, labels, *_ = batch
    targets = class_mean_targets(images, labels)(torch.arange(6))
    every = torch.arange(3).expand(6, 3)
    assert torch.equal(
        pag_loss(norm_network, images, labels, targets).loss,
        pag_loss(norm_network, images, labels, targets, every).loss,
    )


def test_some_steps_in_a_plain_loop_align_the_gradients(batch):
    images, labels, *_ = batch
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.SiLU(), nn.Linear(32, 3))
    targets = class_mean_targets(images, labels)
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    terms = []
    for _ in range(60):
        loss, logits = pag_loss(network, images, labels, targets(torch.arange(6)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        terms.append((loss.item(), F.cross_entropy(logits, labels).item()))
    alignments = [(loss - entropy) / 2 for loss, entropy in terms]
    assert alignments[-1] < 0.5 * alignments[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"targets": torch.zeros(6, 2, 1, 8, 7)},
            "must be \\[N, K, C, H, W\\], K for each of the images \\[6, 1, 8, 8\\]",
        ),
        ({"targets": torch.zeros(6, 1, 8, 8)}, "must be \\[N, K, C, H, W\\]"),
        ({"targets": torch.zeros(6, 2, 1, 8, 8, dtype=torch.int8)}, "int8"),
        ({"classes": torch.zeros(6, 3, dtype=torch.int64)}, "int64 \\[6, 2\\].*not torch.int64 \\[6, 3\\]"),
        ({"classes": torch.zeros(6, 2)}, "not torch.float32"),
        ({"classes": None}, "targets are of 2 classes and the network has 3 logits"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(norm_network, batch, changes, message):
    given = dict(zip(("images", "labels", "targets", "classes"), batch, strict=True)) | changes
    with pytest.raises(ShapeMismatch, match=message):
        pag_loss(norm_network, **given)


class Doubling(torch.autograd.Function):
    """An identity whose backward pass doubles, which no list of operations shows."""

    @staticmethod
    def forward(ctx, value):
        return value.clone()

    @staticmethod
    def backward(ctx, gradient):
        return 2 * gradient


class Doubled(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(64, 3)

    def forward(self, images):
        return self.linear(Doubling.apply(images).flatten(1))


def test_a_network_whose_adjoint_would_be_wrong_is_refused_and_learns_by_autograd(batch):
    network = Doubled()
    with pytest.raises(AdjointUnavailable, match="autograd"):
        pag_loss(network, *batch)
    loss, _ = pag_loss(network, *batch, differentiation="autograd")
    assert all(gradient.isfinite().all() for gradient in parameter_gradients(network, loss))
