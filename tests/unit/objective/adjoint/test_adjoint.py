"""Input-gradients by the adjoint against float64 loops that differentiate one image and one class at a time."""

import copy
import shutil

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from pag_core.classifiers.building import build_classifier
from pag_core.errors import AdjointUnavailable, CompilerMissing
from pag_core.objective.input_gradient import input_gradients
from tests.fixtures.input_gradient_loops import (
    CLASSES,
    EACH_ARCHITECTURE,
    MEANINGS,
    build,
    loop_gradients,
    parameter_gradient,
    relative,
    samples,
)
from tests.fixtures.samples import ARCHITECTURES, objective_terms


def loop_loss(network, images, labels, class_indices, targets, output, meaning):
    logits, gradients = loop_gradients(network, images, class_indices, output, meaning)
    loss = sum(torch.logsumexp(logits[b], 0) - logits[b, labels[b]] for b in range(len(images))) / len(images)
    for b in range(len(images)):
        for k in range(class_indices.shape[1]):
            v, u = gradients[b, k], targets[b, k]
            cosine = (v * u).sum() / (v.square().sum().sqrt() * u.square().sum().sqrt())
            loss = loss + 0.7 * (1 - cosine) / len(images)
    return loss


@pytest.mark.parametrize("output", ["logit", "log_softmax"])
@pytest.mark.parametrize("meaning", MEANINGS)
@pytest.mark.parametrize("arch", EACH_ARCHITECTURE)
def test_parameter_gradients_against_a_loop(arch, meaning, output):
    network, side = build(arch)
    images, labels, class_indices, targets = samples(side)
    expected = parameter_gradient(network, loop_loss(network, images, labels, class_indices, targets, output, meaning))
    for differentiation in ("adjoint", "autograd"):
        terms = objective_terms(
            network, images, labels, class_indices, targets, weight=0.7, classes=CLASSES, output=output, scaling="drawn",
            differentiation=differentiation, batch_norm=meaning,
        )  # fmt: skip
        assert relative(parameter_gradient(network, terms.total), expected) <= 1e-12, differentiation


def test_the_meanings_differ_in_train_mode_and_agree_in_eval_mode():
    network, side = build("wrn_34_10")
    images, _, class_indices, _ = samples(side)
    for training in (True, False):
        network.train(training)
        found = [
            input_gradients(
                network, images, class_indices, output="logit", differentiation="adjoint", batch_norm=meaning
            )[1]
            for meaning in MEANINGS
        ]
        for first, second in ((0, 1), (1, 2), (0, 2)):
            distance = relative(found[first], found[second])
            assert distance > 1e-3 if training else distance <= 1e-12


@pytest.mark.parametrize("differentiation", ["adjoint", "autograd"])
@pytest.mark.parametrize("meaning", MEANINGS)
def test_running_statistics_are_those_of_one_plain_forward_pass(differentiation, meaning):
    network, side = build("vgg11")
    images, _, class_indices, _ = samples(side)
    plain = copy.deepcopy(network)
    logits = plain(images)
    found, _ = input_gradients(
        network, images, class_indices, output="logit", differentiation=differentiation, batch_norm=meaning
    )
    assert torch.allclose(found, logits, rtol=1e-12)
    for (name, buffer), expected in zip(network.named_buffers(), plain.buffers(), strict=True):
        assert torch.allclose(buffer, expected, rtol=1e-12), name


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_no_architecture_needs_the_general_rule(arch, capsys):
    network, side = build(arch)
    images, _, class_indices, _ = samples(side)
    input_gradients(network, images, class_indices, output="logit", differentiation="adjoint", batch_norm="frozen")
    assert "one by one" not in capsys.readouterr().out


class OnValues(nn.Module):
    def forward(self, images):
        return images.flatten(1)[:, :CLASSES] * (2 if images.sum() > 0 else 3)


class OverwritesAPart(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, CLASSES, 3)

    def forward(self, images):
        features = self.stem(images)
        features[:, 0].mul_(2)
        return features.mean((2, 3))


@pytest.mark.parametrize(("network", "reason"), [(OnValues(), "OnValues"), (OverwritesAPart(), "a view of a tensor")])
def test_networks_without_an_adjoint_are_refused_and_autograd_takes_them(network, reason):
    network = network.double()
    images, _, class_indices, _ = samples(8)
    options = {"output": "logit", "batch_norm": "frozen"}
    with pytest.raises(AdjointUnavailable, match=reason) as refused:
        input_gradients(network, images, class_indices, differentiation="adjoint", **options)
    assert "objective.differentiation: autograd" in str(refused.value)
    _, gradients = input_gradients(network, images, class_indices, differentiation="autograd", **options)
    assert gradients.abs().sum() > 0


def test_flops_are_33_forward_passes_for_ten_classes():
    network = build_classifier("resnet18", width=None, activation=None, image_shape=(3, 32, 32), classes=10)
    images, every = torch.rand(2, 3, 32, 32), torch.arange(10).expand(2, 10)
    with FlopCounterMode(display=False) as forward, torch.no_grad():
        network(images)

    def step():
        objective_terms(
            network, images, torch.tensor([1, 2]), every, torch.randn(2, 10, 3, 32, 32), weight=1.0, classes=10,
            output="log_softmax", scaling="all", differentiation="adjoint", batch_norm="frozen",
        ).total.backward()  # fmt: skip

    step()  # the first one lists the network's operations
    with FlopCounterMode(display=False) as counted:
        step()
    ratio = counted.get_total_flops() / forward.get_total_flops()
    assert 32.5 < ratio < 33.1


def test_half_precision_keeps_the_direction():
    """bf16 autocast: float32 parameters, and input-gradients near those of float32."""
    network, side = build("small_resnet")
    network = network.float()
    images, labels, class_indices, targets = (
        value.float() if value.is_floating_point() else value for value in samples(side)
    )
    options = {"output": "log_softmax", "differentiation": "adjoint", "batch_norm": "frozen"}
    _, expected = input_gradients(network, images, class_indices, **options)
    with torch.autocast("cpu", torch.bfloat16):
        terms = objective_terms(
            network, images, labels, class_indices, targets, weight=1.0, classes=CLASSES, scaling="all", **options
        )
        _, found = input_gradients(network, images, class_indices, **options)
    terms.total.backward()
    assert all(parameter.grad.dtype == torch.float32 for parameter in network.parameters())
    cosines = F.cosine_similarity(found.float().flatten(2), expected.flatten(2), dim=2)
    assert 0.99 < cosines.mean().item() < 1 - 1e-7


@pytest.mark.slow
@pytest.mark.parametrize("meaning", MEANINGS)
def test_the_compiled_step_has_the_same_gradients(meaning):
    if not (shutil.which("g++") or shutil.which("clang++")):
        pytest.skip("torch.compile needs a C++ compiler")
    torch.manual_seed(6)
    layers = [
        nn.Conv2d(3, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 3),
        nn.SiLU(),
    ]
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, CLASSES)).double()
    images, labels, class_indices, targets = samples(8)
    found = []
    for compiled in (False, True):
        one = copy.deepcopy(network)
        terms = objective_terms(
            one, images, labels, class_indices, targets, weight=0.7, classes=CLASSES, output="log_softmax",
            scaling="drawn", differentiation="adjoint", batch_norm=meaning, compiled=compiled,
        )  # fmt: skip
        found.append((parameter_gradient(one, terms.total), one[1].running_var))
    assert relative(found[1][0], found[0][0]) <= 1e-12
    assert torch.allclose(found[1][1], found[0][1], rtol=1e-12)


def test_compilation_is_refused_where_it_cannot_work(monkeypatch):
    network, side = build("small_resnet")
    images, _, class_indices, _ = samples(side)
    with pytest.raises(AdjointUnavailable, match="autograd cannot be compiled"):
        input_gradients(
            network,
            images,
            class_indices,
            output="logit",
            differentiation="autograd",
            batch_norm="class",
            compiled=True,
        )
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(CompilerMissing, match=r"no-such-compiler.*train\.compile: false"):
        input_gradients(
            network, images, class_indices, output="logit", differentiation="adjoint", batch_norm="class", compiled=True
        )
