"""Input-gradients by the adjoint against float64 loops that differentiate one image and one class at a time."""

import copy
import shutil

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from pag_core.classifiers.building import build_classifier
from pag_core.errors import AdjointUnavailable, CompilerMissing
from pag_core.objective.input_gradient import input_gradients
from tests.samples import ARCHITECTURES, objective_terms

BATCH, CLASSES, DRAWN = 3, 4, 2
MEANINGS = ("repeat", "class", "frozen")


def class_value(logits, label, output):
    """f_c, or log p(c | x), of a row of logits."""
    return logits[label] if output == "logit" else logits[label] - torch.logsumexp(logits, 0)


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


def loop_loss(network, images, labels, class_indices, targets, output, meaning):
    logits, gradients = loop_gradients(network, images, class_indices, output, meaning)
    loss = sum(torch.logsumexp(logits[b], 0) - logits[b, labels[b]] for b in range(len(images))) / len(images)
    for b in range(len(images)):
        for k in range(class_indices.shape[1]):
            v, u = gradients[b, k], targets[b, k]
            cosine = (v * u).sum() / (v.square().sum().sqrt() * u.square().sum().sqrt())
            loss = loss + 0.7 * (1 - cosine) / len(images)
    return loss


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


@pytest.mark.parametrize("output", ["logit", "log_softmax"])
@pytest.mark.parametrize("meaning", MEANINGS)
@pytest.mark.parametrize("arch", ARCHITECTURES)
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
    network, side = build("resnet18")
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


def layer(make):
    def build_features():
        return nn.Sequential(make())

    return build_features


class Of(nn.Module):
    """A function of features [B, 6, H, W] as a layer."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, features):
        return self.function(features)


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
    "hardswish": (of(F.hardswish), True),
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
    "padding": (of(lambda x: F.pad(x, (1, 2, 0, 1))), True),
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


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_no_architecture_needs_the_general_rule(arch, capsys):
    network, side = build(arch)
    images, _, class_indices, _ = samples(side)
    input_gradients(network, images, class_indices, output="logit", differentiation="adjoint", batch_norm="frozen")
    assert "one by one" not in capsys.readouterr().out


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
