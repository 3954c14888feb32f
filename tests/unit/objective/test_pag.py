"""Eq. 4 and 5 against loops in float64, finite differences and closed forms."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

from pag_core.errors import ShapeMismatch
from pag_core.objective.cosine_alignment import cosine_alignment_loss, cosine_similarity
from pag_core.objective.input_gradient import input_gradients
from pag_core.objective.pag import drawn_classes, plain_objective
from tests.fixtures.samples import objective_terms

BOTH = {
    "adjoint": {"differentiation": "adjoint", "batch_norm": "frozen"},
    "repeat": {"differentiation": "autograd", "batch_norm": "repeat"},
}
BATCH, CLASSES, SHAPE = 3, 4, (2, 5, 5)


def loop_cosine(v, u):
    """Eq. 5's cosine by hand, plain Python over the flattened pixels; 0 where either is zero."""
    v, u = [x.detach().double().flatten().tolist() for x in (v, u)]
    dot = math.fsum(a * b for a, b in zip(v, u, strict=True))
    norms = math.sqrt(math.fsum(a * a for a in v)) * math.sqrt(math.fsum(b * b for b in u))
    return dot / norms if norms else 0.0


@pytest.fixture
def network():
    """Norm-free, smooth, double."""
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(SHAPE[0], 6, 3, padding=1),
        nn.SiLU(),
        nn.Conv2d(6, 5, 3),
        nn.GELU(),
        nn.Flatten(),
        nn.Linear(45, CLASSES),
    ).double()


@pytest.fixture
def norm_network():
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(SHAPE[0], 6, 3, padding=1), nn.BatchNorm2d(6), nn.SiLU(), nn.Flatten(), nn.Linear(150, CLASSES)
    ).double()


@pytest.fixture
def batch():
    draws = torch.Generator().manual_seed(2)
    images = torch.rand(BATCH, *SHAPE, generator=draws, dtype=torch.float64)
    labels = torch.tensor([0, 3, 1])
    class_indices = torch.tensor([[2, 0], [1, 3], [3, 1]])
    targets = torch.randn(BATCH, 2, *SHAPE, generator=draws, dtype=torch.float64)
    return images, labels, class_indices, targets


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 2e-6)])
@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e3])
def test_cosine_and_loss_against_a_loop(dtype, tolerance, scale):
    draws = torch.Generator().manual_seed(0)
    v = (scale * torch.randn(5, 3, 2, 4, 4, generator=draws, dtype=torch.float64)).to(dtype)
    u = torch.randn(5, 3, 2, 4, 4, generator=draws, dtype=torch.float64).to(dtype)
    expected = np.array([[loop_cosine(v[b, k], u[b, k]) for k in range(3)] for b in range(5)])
    assert np.abs(cosine_similarity(v, u).double().numpy() - expected).max() < tolerance
    # summed over classes, averaged over the batch
    loss = sum(1 - expected[b, k] for b in range(5) for k in range(3)) / 5
    assert cosine_alignment_loss(v, u).item() == pytest.approx(loss, rel=10 * tolerance)


def test_half_precision_gradients_are_summed_in_the_targets_precision():
    draws = torch.Generator().manual_seed(0)
    v = torch.randn(2, 3, 3, 32, 32, generator=draws).bfloat16()
    u = torch.randn(2, 3, 3, 32, 32, generator=draws)
    assert torch.equal(cosine_similarity(v, u), cosine_similarity(v.float(), u))


def test_loss_at_known_angles():
    v = torch.tensor([1.0, 0.0]).reshape(1, 1, 1, 1, 2)
    for target, expected in (((3, 0), 0), ((-2, 0), 2), ((0, 7), 1), ((1, 1), 1 - math.sqrt(0.5)), ((0, 0), 1)):
        u = torch.tensor(target, dtype=torch.float32).reshape(1, 1, 1, 1, 2)
        assert cosine_alignment_loss(v, u).item() == pytest.approx(expected, abs=1e-7)


def test_a_zero_target_contributes_exactly_one():
    v, u = torch.randn(2, 3, 1, 4, 4), torch.randn(2, 3, 1, 4, 4)
    u[0, 1] = 0
    assert cosine_similarity(v, u)[0, 1].item() == 0
    u.zero_()
    assert cosine_alignment_loss(v, u).item() == 3


@pytest.mark.parametrize("v_shape", [(2, 3, 1, 4, 4), (2, 1, 2, 4, 4), (1, 3, 2, 4, 4), (2, 3, 32)])
def test_shapes_that_would_broadcast_are_refused(v_shape):
    with pytest.raises(ShapeMismatch, match="B, K, C, H, W"):
        cosine_alignment_loss(torch.ones(v_shape), torch.ones(2, 3, 2, 4, 4))


@pytest.mark.parametrize("mode", BOTH)
@pytest.mark.parametrize("dead", ["network", "image"])
def test_zero_input_gradients_leave_finite_parameter_gradients(network, batch, mode, dead):
    images, labels, class_indices, targets = batch
    with torch.no_grad():
        if dead == "network":
            network[-1].weight.zero_()
        else:
            targets[0] = 0
    terms = objective_terms(
        network, images, labels, class_indices, targets, weight=2.0, classes=CLASSES, output="logit", scaling="all",
        **BOTH[mode],
    )  # fmt: skip
    terms.total.backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in network.parameters())
    if dead == "network":
        assert terms.alignment.item() == pytest.approx(CLASSES, rel=1e-12)


def class_value(network, image, label, output):
    """f_c of one image, written out."""
    logits = network(image[None])[0]
    if output == "logit":
        return logits[label]
    return logits[label] - torch.log(torch.exp(logits).sum())


@pytest.mark.parametrize("mode", BOTH)
@pytest.mark.parametrize("output", ["logit", "log_softmax"])
def test_input_gradients_against_finite_differences_and_a_loop(network, batch, mode, output):
    images, _, class_indices, _ = batch
    logits, gradients = input_gradients(network, images, class_indices, output=output, **BOTH[mode])
    assert torch.allclose(logits, network(images), rtol=1e-12)
    assert gradients.shape == (BATCH, 2, *SHAPE)
    step = 1e-5
    for b, k in itertools.product(range(BATCH), range(2)):
        label = int(class_indices[b, k])
        differences = torch.zeros(SHAPE, dtype=torch.float64)
        for pixel in np.ndindex(*SHAPE):
            moved = images[b].clone()
            values = []
            for sign in (1, -1):
                moved[pixel] = images[b][pixel] + sign * step
                values.append(class_value(network, moved, label, output).item())
            differences[pixel] = (values[0] - values[1]) / (2 * step)
        assert torch.allclose(gradients[b, k], differences, rtol=1e-6, atol=1e-9)
        image = images[b].clone().requires_grad_()
        (alone,) = torch.autograd.grad(class_value(network, image, label, output), image)
        assert torch.allclose(gradients[b, k], alone, rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("mode", BOTH)
def test_without_a_graph_the_gradients_are_the_same(network, batch, mode):
    images, _, class_indices, _ = batch
    _, with_graph = input_gradients(network, images, class_indices, output="logit", **BOTH[mode])
    _, without = input_gradients(network, images, class_indices, output="logit", create_graph=False, **BOTH[mode])
    assert with_graph.requires_grad and not without.requires_grad
    assert torch.allclose(with_graph.detach(), without, rtol=1e-11, atol=1e-15)


@pytest.mark.parametrize("mode", BOTH)
def test_an_unknown_output_or_meaning_is_refused(network, batch, mode):
    images, _, class_indices, _ = batch
    with pytest.raises(ValueError, match="logit, log_softmax"):
        input_gradients(network, images, class_indices, output="softmax", **BOTH[mode])
    with pytest.raises(ValueError, match="'once' is not one of: repeat, class, frozen"):
        input_gradients(network, images, class_indices, output="logit", **{**BOTH[mode], "batch_norm": "once"})


def parameter_gradients(network, batch, mode, **options):
    images, labels, class_indices, targets = batch
    chosen = {"weight": 1.5, "classes": CLASSES, "output": "log_softmax", "scaling": "all", **options}
    network.zero_grad()
    terms = objective_terms(network, images, labels, class_indices, targets, **BOTH[mode], **chosen)
    terms.total.backward()
    return terms, torch.cat([parameter.grad.flatten() for parameter in network.parameters()])


@pytest.mark.parametrize("output", ["logit", "log_softmax"])
def test_all_modes_are_equal_without_batch_norm(network, batch, output):
    (first, adjoint), (second, repeat) = (parameter_gradients(network, batch, mode, output=output) for mode in BOTH)
    assert ((adjoint - repeat).norm() / repeat.norm()).item() <= 1e-12
    assert first.total.item() == pytest.approx(second.total.item(), rel=1e-13)


def test_they_differ_under_batch_norm_in_train_mode_only(norm_network, batch):
    state = {name: tensor.clone() for name, tensor in norm_network.state_dict().items()}
    distances = {}
    for training in (True, False):
        norm_network.train(training)
        gradients = []
        for mode in BOTH:
            norm_network.load_state_dict(state)
            gradients.append(parameter_gradients(norm_network, batch, mode)[1])
        distances[training] = ((gradients[0] - gradients[1]).norm() / gradients[1].norm()).item()
    assert distances[True] > 1e-3
    assert distances[False] <= 1e-12


@pytest.mark.parametrize("mode", BOTH)
@pytest.mark.parametrize("output", ["logit", "log_softmax"])
def test_parameter_gradients_against_finite_differences(network, batch, mode, output):
    """The gradient of a gradient: central differences of the total loss in random directions of parameter space."""
    _, gradient = parameter_gradients(network, batch, mode, output=output)
    parameters = list(network.parameters())
    draws = torch.Generator().manual_seed(3)
    for _ in range(4):
        directions = [torch.randn(p.shape, generator=draws, dtype=torch.float64) for p in parameters]
        losses = []
        for step in (1e-5, -1e-5):
            with torch.no_grad():
                for parameter, direction in zip(parameters, directions, strict=True):
                    parameter += step * direction
            losses.append(parameter_gradients(network, batch, mode, output=output)[0].total.item())
            with torch.no_grad():
                for parameter, direction in zip(parameters, directions, strict=True):
                    parameter -= step * direction
        slope = (losses[0] - losses[1]) / 2e-5
        analytic = (gradient @ torch.cat([direction.flatten() for direction in directions])).item()
        assert analytic == pytest.approx(slope, rel=1e-5, abs=1e-8)


@pytest.mark.parametrize("mode", BOTH)
@pytest.mark.parametrize("output", ["logit", "log_softmax"])
@pytest.mark.parametrize(("scaling", "factor"), [("all", CLASSES / 2), ("drawn", 1)])
def test_total_by_hand(network, batch, mode, output, scaling, factor):
    images, labels, class_indices, targets = batch
    terms, _ = parameter_gradients(network, batch, mode, weight=0.7, output=output, scaling=scaling)
    cross_entropy, alignment = 0.0, 0.0
    for b in range(BATCH):
        logits = network(images[b][None])[0]
        cross_entropy -= (logits[labels[b]] - torch.logsumexp(logits, 0)).item() / BATCH
        for k in range(2):
            image = images[b].clone().requires_grad_()
            (v,) = torch.autograd.grad(class_value(network, image, int(class_indices[b, k]), output), image)
            alignment += (1 - loop_cosine(v, targets[b, k])) / BATCH
    assert terms.classification.item() == pytest.approx(cross_entropy, rel=1e-12)
    assert terms.alignment.item() == pytest.approx(factor * alignment, rel=1e-12)
    assert terms.total.item() == pytest.approx(cross_entropy + 0.7 * factor * alignment, rel=1e-12)
    assert torch.allclose(terms.logits, network(images), rtol=1e-12)


def preset_total(classes, drawn, scaling, weight):
    """Total minus cross-entropy, and the mean over the drawn classes of 1 - cosine, for random targets."""
    torch.manual_seed(4)
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.SiLU(), nn.Linear(8, classes)).double()
    images, labels = torch.rand(5, 1, 4, 4, dtype=torch.float64), torch.arange(5) % classes
    class_indices = drawn_classes(5, classes, drawn, torch.Generator().manual_seed(1))
    targets = torch.randn(5, drawn, 1, 4, 4, dtype=torch.float64)
    terms = objective_terms(
        network, images, labels, class_indices, targets, weight=weight, classes=classes, output="log_softmax",
        scaling=scaling, **BOTH["adjoint"],
    )  # fmt: skip
    _, gradients = input_gradients(network, images, class_indices, output="log_softmax", **BOTH["adjoint"])
    mean = np.mean([1 - loop_cosine(gradients[b, k], targets[b, k]) for b in range(5) for k in range(drawn)])
    return (terms.total - terms.classification).item(), mean


@pytest.mark.parametrize(
    ("classes", "drawn", "scaling", "weight", "factor"),
    [
        # the release: 10 * mean cosine loss, i.e. the sum over CIFAR-10's classes; lambda 1.5 weighs the mean by 15
        (10, 10, "all", 1.5, 15.0),
        (10, 10, "drawn", 1.5, 15.0),
        (10, 3, "all", 1.5, 15.0),
        # CIFAR-100: lambda multiplies the sum over the 10 drawn of 100
        (100, 10, "drawn", 2.0, 20.0),
        (100, 10, "all", 2.0, 200.0),
    ],
)
def test_the_papers_lambda_conventions(classes, drawn, scaling, weight, factor):
    term, mean = preset_total(classes, drawn, scaling, weight)
    assert term == pytest.approx(factor * mean, rel=1e-10)


def test_drawing_k_of_c_is_unbiased(network, batch):
    """The average over all K-subsets of the scaled sum equals the sum over all classes."""
    images, labels, _, _ = batch
    every = torch.arange(CLASSES).expand(BATCH, CLASSES)
    all_targets = torch.randn(BATCH, CLASSES, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    options = {"weight": 2.0}
    _, full = parameter_gradients(network, (images, labels, every, all_targets), "adjoint", **options)
    for drawn in (1, 2, 3):
        found = [
            parameter_gradients(
                network, (images, labels, every[:, list(subset)], all_targets[:, list(subset)]), "adjoint", **options
            )[1]
            for subset in itertools.combinations(range(CLASSES), drawn)
        ]
        assert torch.allclose(torch.stack(found).mean(0), full, rtol=1e-10, atol=1e-13)


def test_vanilla_is_plain_cross_entropy(network, batch):
    images, labels, _, _ = batch
    terms = plain_objective(network, images, labels)
    by_hand = -torch.stack([torch.log_softmax(network(images[b][None]), 1)[0, labels[b]] for b in range(BATCH)]).mean()
    assert terms.total.item() == terms.classification.item() == pytest.approx(by_hand.item(), rel=1e-12)
    assert math.isnan(terms.alignment.item())


@pytest.mark.parametrize("mode", BOTH)
def test_attention_has_a_second_derivative(mode):
    """Fused attention kernels have none; the objective must ask for the plain one."""

    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.project, self.head = nn.Linear(4, 12), nn.Linear(4, 3)

        def forward(self, images):
            q, k, v = self.project(images.flatten(1, 2)).chunk(3, dim=2)
            return self.head(
                nn.functional.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0].mean(1)
            )

    torch.manual_seed(0)
    network = Attention()
    images, targets = torch.rand(2, 1, 6, 4), torch.randn(2, 2, 1, 6, 4)
    terms = objective_terms(
        network, images, torch.tensor([0, 1]), torch.tensor([[0, 1], [2, 0]]), targets, weight=1.0, classes=3,
        output="logit", scaling="all", **BOTH[mode],
    )  # fmt: skip
    terms.total.backward()
    assert network.project.weight.grad.abs().sum() > 0
