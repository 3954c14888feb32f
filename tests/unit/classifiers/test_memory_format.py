"""Input-gradients lie in memory as NCHW whatever the classifier's memory format: attacks take views of them."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pag_core.classifiers.building import build_classifier
from tests.fixtures.samples import ARCHITECTURES


def build(arch):
    torch.manual_seed(0)
    options = {"width": None, **ARCHITECTURES[arch][0]}
    return build_classifier(arch, **options, activation=None, image_shape=(3, 32, 32), classes=4).eval()


@pytest.mark.parametrize("images_as", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_input_gradients_can_be_viewed(arch, images_as):
    classifier = build(arch)
    images = torch.rand(2, 3, 32, 32)
    gradients = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        classifier = classifier.to(memory_format=memory_format)
        inputs = images.contiguous(memory_format=images_as).requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(classifier(inputs), torch.tensor([0, 1])), inputs)
        assert gradient.is_contiguous(), memory_format
        # as AutoAttack does for the L2 norm of a step
        assert gradient.view(2, -1).square().sum(1).gt(0).all()
        gradients.append(gradient)
    assert torch.allclose(*gradients, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_features_take_the_memory_format_of_the_weights(arch):
    classifier = build(arch).to(memory_format=torch.channels_last)
    seen = []
    for module in classifier.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda _, inputs, output: seen.append(output))
    classifier(torch.rand(2, 3, 32, 32))
    assert seen and all(features.is_contiguous(memory_format=torch.channels_last) for features in seen)
