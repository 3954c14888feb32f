"""The two forms of max-pooling's way back: by addition, and by windows that do not overlap."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pag_core.objective.adjoint import pooling
from pag_core.objective.input_gradient import input_gradients

# kernel, stride, padding, dilation, ceil_mode, size of the features; whether each position lies in just one window
POOLS = [
    ((2, 2, 0, 1, False), (8, 8), True),
    (((2, 4), None, 0, 1, False), (8, 8), True),
    ((2, 2, 0, 1, True), (8, 6), True),
    ((1, 1, 0, 1, False), (3, 3), True),
    ((2, 2, 0, 1, False), (7, 8), False),
    ((2, 2, 0, 1, True), (7, 7), False),
    ((3, 2, 1, 1, False), (8, 8), False),
    ((2, 1, 0, 1, False), (8, 8), False),
    ((2, 2, 1, 1, False), (8, 8), False),
    ((2, 2, 0, 2, False), (8, 8), False),
    ((2, 3, 0, 1, False), (8, 8), False),
]


def gradients(monkeypatch, by_windows, network, images, classes):
    """Input-gradients, and what a loss of them gives for the parameters, where `by_windows` is preferred or not."""
    asked = []
    monkeypatch.setattr(pooling, "addition_sorts", lambda features: asked.append(features.shape) or by_windows)
    network = copy.deepcopy(network)
    _, found = input_gradients(
        network, images, classes, output="log_softmax", differentiation="adjoint", batch_norm="frozen"
    )
    assert asked
    found.square().sin().sum().backward()
    return found.detach(), network[0].weight.grad


@pytest.mark.parametrize(("options", "size", "alone"), POOLS)
@pytest.mark.parametrize("ties", [False, True])
def test_both_forms_give_the_same(monkeypatch, options, size, alone, ties):
    torch.manual_seed(0)
    features = [nn.Conv2d(2, 6, 3, padding=1), nn.ReLU() if ties else nn.SiLU(), nn.MaxPool2d(*options[:4])]
    features[-1].ceil_mode = options[4]
    network = nn.Sequential(*features, nn.Tanh(), nn.Flatten(), nn.LazyLinear(3)).double()
    images, classes = torch.rand(2, 2, *size, dtype=torch.float64), torch.tensor([[0, 1], [2, 0]])
    if ties:
        images[:, :, :4] = 0.5  # equal patches, and features that ReLU makes zero
    network(images)
    forms = []
    by_windows = pooling.by_windows
    monkeypatch.setattr(pooling, "by_windows", lambda *given: forms.append("windows") or by_windows(*given))
    found = []
    for preferred in (True, False):
        found.append(gradients(monkeypatch, preferred, network, images, classes))
        assert bool(forms) == (alone and preferred)
        forms.clear()
    for first, second in zip(*found, strict=True):
        assert torch.allclose(first, second, rtol=1e-12, atol=1e-15)


def test_of_equal_values_in_a_window_one_gets_the_gradient():
    features = torch.zeros(1, 1, 4, 4)
    positions = F.max_pool2d(features, 2, return_indices=True)[1]
    cotangent = torch.arange(1.0, 5).view(1, 1, 1, 2, 2)
    for form in (pooling.by_addition(positions, (4, 4)), pooling.by_windows(positions, (4, 4))):
        spread = form(cotangent)
        assert (spread != 0).sum() == 4 and spread.sum() == 10
        assert torch.equal(spread.flatten()[positions.flatten()], cotangent.flatten())


def test_the_windows_form_is_for_a_gpu_in_deterministic_mode(monkeypatch):
    class OnGPU:
        is_cuda = True

    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    assert pooling.addition_sorts(OnGPU()) and not pooling.addition_sorts(torch.zeros(1))
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: False)
    assert not pooling.addition_sorts(OnGPU())
