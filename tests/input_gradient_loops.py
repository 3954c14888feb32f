"""Input-gradients by float64 loops that differentiate one image and one class at a time, for each meaning of batch-norm."""

import copy

import torch
from torch import nn

from pag_core.classifiers.building import build_classifier
from tests.samples import ARCHITECTURES

BATCH, CLASSES, DRAWN = 3, 4, 2
MEANINGS = ("repeat", "class", "frozen")


def class_value(logits, label, output):
    """f_c, or log p(c | x), of a row of logits."""
    return logits[label] if output == "logit" else logits[label] - torch.logsumexp(logits, 0)


class Of(nn.Module):
    """A function of features [B, 6, H, W] as a layer."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, features):
        return self.function(features)


class LoopNorm(nn.Module):
    """Batch-norm written out, which can be given its statistics."""

    def __init__(self, layer):
        super().__init__()
        self.weight, self.bias, self.epsilon = layer.weight, layer.bias, layer.eps
        self.given = None

    def forward(self, features):
        if self.given is None:
            self.seen = features
            mean = features.mean((0, 2, 3))
            variance = ((features - mean[:, None, None]) ** 2).mean((0, 2, 3))
        else:
            mean, variance = self.given
        shape = (-1, 1, 1)
        unit = (features - mean.view(shape)) / torch.sqrt(variance.view(shape) + self.epsilon)
        return unit if self.weight is None else unit * self.weight.view(shape) + self.bias.view(shape)


def written_out(network):
    """A view of the network (the same parameters) whose batch-norm layers are LoopNorm."""
    network = copy.copy(network)
    network._modules = {
        name: LoopNorm(child) if isinstance(child, nn.BatchNorm2d) else written_out(child)
        for name, child in network._modules.items()
    }
    return network


def norms(network):
    return [layer for layer in network.modules() if isinstance(layer, LoopNorm)]


def loop_gradients(network, images, class_indices, output, meaning):
    """Logits and input-gradients [B, K, ...] by the definition of each meaning, one number differentiated at a time."""
    plain = written_out(network)
    logits = plain(images)
    rows = []
    if meaning == "frozen":
        for layer in norms(plain):
            layer.given = (layer.seen.mean((0, 2, 3)), layer.seen.var((0, 2, 3), correction=0))
        for image, labels in zip(images, class_indices, strict=True):
            image = image[None].clone().requires_grad_()
            values = [class_value(plain(image)[0], label, output) for label in labels]
            rows.append([torch.autograd.grad(value, image, create_graph=True)[0][0] for value in values])
    elif meaning == "class":
        images = images.clone().requires_grad_()
        found = plain(images)
        for k in range(class_indices.shape[1]):
            total = sum(class_value(found[b], class_indices[b, k], output) for b in range(len(images)))
            rows.append(torch.autograd.grad(total, images, create_graph=True)[0])
        return logits, torch.stack(rows, 1)
    else:
        copies = torch.cat([image[None] for image in images for _ in range(class_indices.shape[1])]).requires_grad_()
        found = plain(copies)
        labels = class_indices.flatten()
        total = sum(class_value(found[row], labels[row], output) for row in range(len(copies)))
        gradients = torch.autograd.grad(total, copies, create_graph=True)[0]
        return logits, gradients.unflatten(0, class_indices.shape)
    return logits, torch.stack([torch.stack(row) for row in rows])


def samples(side, channels=3):
    draws = torch.Generator().manual_seed(1)
    images = torch.rand(BATCH, channels, side, side, generator=draws, dtype=torch.float64)
    targets = torch.randn(BATCH, DRAWN, channels, side, side, generator=draws, dtype=torch.float64)
    return images, torch.tensor([0, 3, 1]), torch.tensor([[2, 0], [1, 3], [3, 1]]), targets


def build(arch):
    options, side = ARCHITECTURES[arch]
    torch.manual_seed(2)
    network = build_classifier(
        arch, **{"width": None, **options}, activation=None, image_shape=(3, side, side), classes=CLASSES
    ).double()
    with torch.no_grad():  # away from zero biases, unit scales and equal heads
        for parameter in network.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return network.train(), side


def parameter_gradient(network, loss):
    network.zero_grad()
    loss.backward()
    return torch.cat([parameter.grad.flatten() for parameter in network.parameters()])


def relative(found, expected):
    return ((found - expected).norm() / expected.norm()).item()
