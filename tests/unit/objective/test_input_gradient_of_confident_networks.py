"""Input-gradients of log-probabilities near 1, where e_c - p is a small difference, against float64."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pag_core.objective.adjoint import compilation
from pag_core.objective.input_gradient import input_gradients, logit_cotangents

CLASSES = 10
PATHS = [("adjoint", "frozen"), ("adjoint", "repeat"), *(("autograd", name) for name in ("class", "repeat", "frozen"))]
# 1 - p of the most probable class
DOUBTS = [6e-3, 1e-3, 1e-4, 1e-5, 3e-8, 1e-12]


def make_network():
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.SiLU(), nn.Conv2d(8, 8, 3), nn.SiLU(), nn.Flatten(),
        nn.Linear(288, CLASSES),
    ).double().eval()  # fmt: skip


def doubt_of(logits):
    """1 - p of the most probable class, for one row of logits."""
    others = torch.exp(logits.sort(descending=True).values[1:] - logits.max()).sum().item()
    return others / (1 + others)


def cosine(a, b):
    """Without the least norm of torch's function, which these gradients are below."""
    return (a @ b / (a.norm() * b.norm())).item()


def confident(network, image, doubt):
    """`network` in float64 with the last layer scaled so that it doubts its class of `image` by `doubt`."""
    with torch.no_grad():
        logits = network(image)[0]
        low, high = 1.0, 1e6
        for _ in range(100):
            scale = (low * high) ** 0.5
            low, high = (scale, high) if doubt_of(scale * logits) > doubt else (low, scale)
        network = copy.deepcopy(network)
        network[-1].weight *= scale
        network[-1].bias *= scale
    return network


def of_a_later_loss(network, gradient):
    """The gradient and what a loss of its direction sends back to the parameters, both float64."""
    unit = F.normalize(gradient.flatten(), dim=0)
    (unit * torch.linspace(-1, 1, unit.numel(), dtype=unit.dtype)).sum().backward()
    parameters = torch.cat([parameter.grad.double().flatten() for parameter in network.parameters()])
    return gradient.detach().double().flatten(), parameters


def by_hand(network, image):
    """The input-gradient of the log-probability of the most probable class in float64, free of cancellation."""
    network, image = copy.deepcopy(network), image.clone().requires_grad_()
    own, others = network(image)[0].sort(descending=True).values.tensor_split([1])
    value = -torch.log1p(torch.exp(others - own).sum())
    return of_a_later_loss(network, torch.autograd.grad(value, image, create_graph=True)[0])


def own_gradient(network, image, path, dtype, compiled=False):
    """The same by `input_gradients`, of a network in `dtype` (bfloat16: by autocast)."""
    differentiation, batch_norm = path
    own = network(image).argmax(1, keepdim=True)
    network, image = copy.deepcopy(network).float(), image.float()
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16):
        _, gradient = input_gradients(
            network, image, own, output="log_softmax", differentiation=differentiation, batch_norm=batch_norm,
            compiled=compiled,
        )  # fmt: skip
    return of_a_later_loss(network, gradient.float())


# below 1e-5 the logits' own rounding to bfloat16 turns the gradient: it mixes the other classes anew
@pytest.mark.parametrize(
    ("dtype", "doubts", "tolerance"), [(torch.float32, DOUBTS, 1e-6), (torch.bfloat16, DOUBTS[:4], 0.005)]
)
@pytest.mark.parametrize("path", PATHS, ids="-".join)
def test_a_confident_network_has_the_direction_of_float64(path, dtype, doubts, tolerance):
    images = torch.rand(4, 1, 1, 8, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    first = make_network()
    for doubt in doubts:
        for image in images:
            network = confident(first, image, doubt)
            assert doubt_of(network(image)[0]) == pytest.approx(doubt, rel=0.01)
            expected, _ = by_hand(network, image)
            found, parameters = own_gradient(network, image, path, dtype)
            assert cosine(found, expected) > 1 - tolerance, doubt
            assert torch.isfinite(parameters).all()


@pytest.mark.parametrize("path", PATHS, ids="-".join)
def test_their_derivatives_have_the_direction_of_float64_too(path):
    image = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    for doubt in DOUBTS:
        network = confident(make_network(), image, doubt)
        _, expected = by_hand(network, image)
        _, found = own_gradient(network, image, path, torch.float32)
        assert cosine(found, expected) > 1 - 1e-5, doubt


def test_a_step_traced_in_float32_has_it_under_autocast(monkeypatch):
    """What torch.compile is given, run as it stands: a compiler that fuses may round less, which is no promise."""
    monkeypatch.setattr(compilation, "require_compiler", lambda device: None)
    monkeypatch.setattr(torch, "compile", lambda graph, **options: graph)
    image = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    network = confident(make_network(), image, 1e-4)
    expected, _ = by_hand(network, image)
    found, _ = own_gradient(network, image, ("adjoint", "frozen"), torch.bfloat16, compiled=True)
    assert cosine(found, expected) > 0.995


def test_the_cotangents_are_e_minus_p_with_all_digits():
    logits = torch.tensor([[40.0, 20.0, 1.0, -3.0], [0.1, 0.2, 0.3, 0.4]])
    classes = torch.tensor([[0, 1], [3, 2]])
    found = logit_cotangents(logits, classes, "log_softmax")
    exact = logits.double().softmax(1)
    for k in range(2):
        for row in range(2):
            own = classes[row, k]
            expected = -exact[row]
            expected[own] = sum(p for j, p in enumerate(exact[row]) if j != own)
            assert torch.allclose(found[k, row].double(), expected, rtol=1e-6, atol=0)
