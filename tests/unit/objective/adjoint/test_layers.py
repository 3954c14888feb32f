"""The adjoint of single layers against autograd."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from pag_core.objective.input_gradient import input_gradients
from tests.fixtures.input_gradient_loops import CLASSES, DRAWN, Of, relative, samples


def layer(make):
    def build_features():
        return nn.Sequential(make())

    return build_features


def of(function):
    return lambda: Of(function)


def normed(features):
    return F.normalize(features, dim=1)


# what ordinary networks are built of; True where the adjoint differentiates an operation by the general rule
LAYERS = {
    "grouped, strided convolution": (lambda: nn.Conv2d(6, 6, 3, 2, 1, groups=3), False),
    "dilated convolution, uneven stride": (lambda: nn.Conv2d(6, 6, 2, 3, 1, dilation=2), False),
    "transposed convolution": (lambda: nn.ConvTranspose2d(6, 6, 3, 2), True),
    "softplus": (of(F.softplus), False),
    "elu": (of(F.elu), False),
    "leaky relu": (of(lambda x: F.leaky_relu(x, 0.2)), False),
    "gelu, tanh form": (of(lambda x: F.gelu(x, approximate="tanh")), False),
    "hardtanh": (of(F.hardtanh), False),
    "relu6": (of(F.relu6), False),
    "sigmoid": (of(torch.sigmoid), False),
    "exp": (of(torch.exp), False),
    "mish": (of(F.mish), True),
    "hardswish": (of(F.hardswish), False),
    "prelu": (lambda: nn.PReLU(6), True),
    "chunks swapped": (of(lambda x: torch.cat(x.chunk(2, 1)[::-1], 1)), False),
    "a chunk unused": (of(lambda x: torch.cat([x.chunk(2, 1)[0]] * 2, 1)), False),
    "uneven split": (of(lambda x: torch.cat([x.split([1, 5], 1)[1] * 2, x.split([1, 5], 1)[0]], 1)), False),
    "unbind and stack": (of(lambda x: torch.stack(x.unbind(1)[::-1], 1)), False),
    "select": (of(lambda x: x.select(2, -1)[:, :, None].expand(-1, -1, 4, -1)), False),
    "slice with a step": (of(lambda x: x[:, :, 1:, ::2]), False),
    "index": (of(lambda x: x[:, [2, 1, 0, 3, 4, 5]]), True),
    "max pool": (lambda: nn.MaxPool2d((2, 4)), False),
    "max pool that leaves a border": (lambda: nn.MaxPool2d(3), False),
    "max pool with gaps": (lambda: nn.MaxPool2d(2, dilation=2), False),
    "overlapping max pool": (lambda: nn.MaxPool2d(3, 2, 1), False),
    "padded average pool": (lambda: nn.AvgPool2d(3, 2, 1), False),
    "adaptive pool, even": (of(lambda x: F.adaptive_avg_pool2d(x, 4)), False),
    "adaptive pool, uneven": (of(lambda x: F.adaptive_avg_pool2d(x, 3)), False),
    "group norm": (lambda: nn.GroupNorm(2, 6), False),
    "layer norm": (lambda: nn.LayerNorm([6, 8, 8]), False),
    "instance norm": (lambda: nn.InstanceNorm2d(6, affine=True), True),
    "batch norm without parameters": (lambda: nn.BatchNorm2d(6, affine=False), False),
    "batch norm without running statistics": (lambda: nn.BatchNorm2d(6, track_running_stats=False), False),
    "squeeze and excite": (of(lambda x: x * x.mean((2, 3), keepdim=True).sigmoid()), False),
    "product and quotient": (of(lambda x: x * x.tanh() / (2 + x.tanh())), False),
    "reversed difference and quotient": (of(lambda x: (1 - x) / 3 + 2 / (2 + x.tanh())), True),
    "power": (of(lambda x: x**3), True),
    "overwritten": (of(lambda x: F.silu((x + 1).mul_(x).add_(x, alpha=2), inplace=True) * x), False),
    "constants": (of(lambda x: x * torch.arange(6.0).view(1, 6, 1, 1) + torch.tensor(2.0)), False),
    "where": (of(lambda x: torch.where(x > 0, x, 0.1 * x)), True),
    "softmax": (of(lambda x: x.softmax(1)), False),
    "log softmax": (of(lambda x: x.log_softmax(-1)), False),
    "unit vectors": (of(normed), True),
    "second moments": (of(lambda x: torch.einsum("bchw,bdhw->bcd", x, x)[..., None]), True),
    "attention": (of(lambda x: F.scaled_dot_product_attention(x, x.flip(2), x.roll(1, 3))), True),
    "matrix products": (of(lambda x: (x @ x.mT) @ x), False),
    "interpolation": (of(lambda x: F.interpolate(x, scale_factor=2, mode="bilinear")), True),
    "padding": (of(lambda x: F.pad(x, (1, 2, 0, 1), value=2.0)), False),
    "padding that cuts": (of(lambda x: F.pad(x, (1, -2, -1, 0))), False),
    "padding that repeats": (of(lambda x: F.pad(x, (1, 2, 0, 1), "reflect")), False),
    "rolled": (of(lambda x: x.roll((1, -3), (-1, 2)) * x), False),
    "rolled as one row": (of(lambda x: x.roll(5) * x), False),
    "shaped as another": (of(lambda x: x.flatten(1).reshape_as(x) * x[:, :1].expand_as(x)), False),
    "clamped from below": (of(lambda x: x * x.clamp_min(-0.1)), False),
    "maximum over rows": (of(lambda x: x.max(2)[0][:, :, None] * x.max(-1, keepdim=True).values), False),
    "maximum of two": (of(lambda x: torch.max(x, x.flip(2)) + x.max()), True),
    "a part overwritten": (of(lambda x: torch.cat([x, x], 1)[:, 2:8].add_(x).mul_(2)), False),
    "a constant branch": (of(lambda x: x + x.new_ones(6, 1, 1) * x.detach().mean()), False),
    "permuted": (of(lambda x: x.permute(0, 1, 3, 2).transpose(2, 3).flatten(2).unsqueeze(-1)), False),
}


class Around(nn.Module):
    """A stem, the layer in question, and a head; smooth otherwise."""

    def __init__(self, inner):
        super().__init__()
        self.stem, self.inner, self.head = nn.Conv2d(3, 6, 3, padding=1), inner, nn.Linear(6, CLASSES)

    def forward(self, images):
        features = self.inner(self.stem(images))
        return self.head(torch.tanh(features).flatten(2).mean(2))


@pytest.mark.parametrize("name", LAYERS)
def test_layers_against_autograd(name, capsys):
    make, general = LAYERS[name]
    torch.manual_seed(3)
    network = Around(make()).double().train()
    images, _, class_indices, targets = samples(8)
    images = images.clone().requires_grad_()
    with sdpa_kernel(SDPBackend.MATH):
        values = network(images).gather(1, class_indices)
    expected = torch.stack(
        [torch.autograd.grad(values[:, k].sum(), images, create_graph=True)[0] for k in range(DRAWN)], 1
    )
    loss = F.cosine_similarity(expected.flatten(2), targets.flatten(2), dim=2).sum()
    expected_parameters = torch.autograd.grad(loss, list(network.parameters()), allow_unused=True)
    _, found = input_gradients(
        network, images, class_indices, output="logit", differentiation="adjoint", batch_norm="class"
    )
    assert relative(found, expected) <= 1e-12
    loss = F.cosine_similarity(found.flatten(2), targets.flatten(2), dim=2).sum()
    found_parameters = torch.autograd.grad(loss, list(network.parameters()), allow_unused=True)
    whole = [
        torch.cat([torch.zeros(1) if part is None else part.flatten() for part in parts])
        for parts in (found_parameters, expected_parameters)
    ]
    assert relative(*whole) <= 1e-12
    # no operation falls to the general rule without its being said, and none that has a rule
    assert ("differentiated one by one" in capsys.readouterr().out) == general


def test_dropout_drops_the_same_units_for_all_classes():
    torch.manual_seed(4)
    network = Around(nn.Dropout(0.5)).double().train()
    images = torch.rand(1, 3, 8, 8, dtype=torch.float64)
    class_indices = torch.tensor([[1, 1]])
    torch.manual_seed(5)
    logits, found = input_gradients(
        network, images, class_indices, output="logit", differentiation="adjoint", batch_norm="frozen"
    )
    assert torch.equal(found[0, 0], found[0, 1])
    torch.manual_seed(5)
    again, expected = input_gradients(
        network, images, class_indices, output="logit", differentiation="autograd", batch_norm="class"
    )
    assert torch.allclose(logits, again, rtol=1e-12) and relative(found, expected) <= 1e-12
