"""Input-gradients of a network that is sure of its classes, against float64: 1 - p_c must not lose its digits."""

import copy

import pytest
import torch
from torch import nn

from pag_core.classifiers.building import build_classifier
from pag_core.objective.input_gradient import input_gradients
from pag_core.precision import computing_in

CLASSES, IMAGES = 10, 64


@pytest.fixture(scope="module")
def images():
    return torch.rand(IMAGES, 1, 8, 8, generator=torch.Generator().manual_seed(3))


def confident(network, images, low, high):
    """A copy whose last layer is scaled until the median probability of the likeliest class lies in (low, high]."""
    doubled = copy.deepcopy(network).double()
    with torch.no_grad():
        logits = doubled(images.double())
        smallest, largest = 1e-2, 1e4
        for _ in range(60):
            scale = (smallest * largest) ** 0.5
            doubt = (scale * (logits - logits.amax(1, keepdim=True))).exp().sum(1) - 1
            smallest, largest = (scale, largest) if doubt.median() > 1 - (low + high) / 2 else (smallest, scale)
        last = [layer for layer in network.modules() if isinstance(layer, nn.Linear)][-1]
        last.weight *= scale
        last.bias *= scale
    return network


@pytest.mark.parametrize("differentiation", ["adjoint", "autograd"])
@pytest.mark.parametrize("batch_norm", ["repeat", "class", "frozen"])
@pytest.mark.parametrize(
    ("low", "high"), [(0.99, 0.998), (0.998, 0.9999), (0.9999, 0.99999), (1 - 1e-6, 1 - 1e-7), (1 - 1e-9, 1 - 1e-10)]
)
def test_gradients_of_the_own_class_keep_their_direction(images, cpu, low, high, batch_norm, differentiation):
    torch.manual_seed(0)
    network = build_classifier("small_resnet", width=16, activation=None, image_shape=(1, 8, 8), classes=CLASSES)
    network = confident(network, images, low, high)
    own = network(images).argmax(1)[:, None]
    options = {"output": "log_softmax", "batch_norm": batch_norm, "create_graph": False}
    exact = own_class_gradient_in_float64(network, images, own)
    for precision, least in (("float32", 0.99999), ("bfloat16", 0.98)):
        with computing_in(precision, cpu):
            found = input_gradients(network, images, own, differentiation=differentiation, **options)[1][:, 0]
        cosines = nn.functional.cosine_similarity(found.double().flatten(1), exact.flatten(1), dim=1, eps=0)
        assert cosines.min() > least, (precision, cosines.min())


def own_class_gradient_in_float64(network, images, own):
    """d log p_c / dx with log p_c = -log(1 + sum of exp(f_j - f_c) over the other classes), which cancels nothing."""
    doubled = copy.deepcopy(network).double()
    inputs = images.double().requires_grad_()
    logits = doubled(inputs)
    gaps = (logits - logits.gather(1, own)).exp().scatter(1, own, 0.0)
    return torch.autograd.grad(-torch.log1p(gaps.sum(1)).sum(), inputs)[0]
