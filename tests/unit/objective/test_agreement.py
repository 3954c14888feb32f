"""Networks on which a traced program is not what autograd differentiates: as autograd has them, or refused with the reason."""

import random

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import spectral_norm, weight_norm
from torch.utils.checkpoint import checkpoint
from torchvision.ops import deform_conv2d

from pag_core.errors import AdjointUnavailable, NotTwiceDifferentiable
from pag_core.objective.input_gradient import input_gradients
from tests.fixtures.input_gradient_loops import MEANINGS, Of, relative

CLASSES = 4


class Sign(torch.autograd.Function):
    """Binary activation whose gradient passes straight through."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sign()

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return gradient * (x.abs() <= 1)


class Swish(torch.autograd.Function):
    """An activation with its true derivative, written by hand to save memory."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * torch.sigmoid(x)

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        share = torch.sigmoid(x)
        return gradient * (share + x * share * (1 - share))


class BinaryWeights(nn.Module):
    """A convolution whose weights' signs are used and whose gradients pass straight through: input-gradients are right."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 6, 3, 3) / 4)

    def forward(self, features):
        return F.conv2d(features, Sign.apply(self.weight), padding=1)


class Fourier(nn.Module):
    """h + irfft2(rfft2(h) w), as in global filter networks; alone without the residual."""

    def __init__(self, residual):
        super().__init__()
        self.residual, self.w = residual, nn.Parameter(torch.randn(6, 8, 5, 2))

    def forward(self, h):
        filtered = torch.fft.irfft2(torch.fft.rfft2(h) * torch.view_as_complex(self.w), s=h.shape[-2:])
        return h + filtered if self.residual else filtered


class ComplexPower(nn.Module):
    """|z|^2 of a spectrum: products of complex values, of which one is conjugated."""

    def forward(self, h):
        spectrum = torch.fft.fft2(h)
        return torch.fft.ifft2(spectrum * spectrum.conj()).real / 64


class ConstantStatistics(nn.Module):
    """Normalises by statistics that no gradient goes through, of a scale that learns."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.rand(6, 1, 1))

    def forward(self, h):
        with torch.no_grad():
            scaled = h * self.scale
            mean, std = scaled.mean((2, 3), keepdim=True), scaled.std((2, 3), keepdim=True)
        with torch.no_grad(), torch.enable_grad():
            shifted = h - mean
        return shifted / (std + 1e-3) * self.scale


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.n = 0

    def forward(self, h):
        self.n += 1
        return h * min(1.0, self.n / 10)


class Remembering(nn.Module):
    """Adds what it keeps of the last batch in a list."""

    def __init__(self):
        super().__init__()
        self.last = []

    def forward(self, h):
        out = h + self.last[-1] if self.last else h
        self.last.append(float(h.mean()) if not isinstance(h, torch._subclasses.FakeTensor) else 0.0)
        return out


class Reassigned(nn.Module):
    """A buffer that is assigned anew in each forward pass."""

    def __init__(self):
        super().__init__()
        self.register_buffer("scale", torch.ones(()))

    def forward(self, h):
        self.scale = 0.9 * self.scale + 0.1 * h.detach().abs().mean()
        return h / self.scale


class Overwritten(nn.Module):
    """The same buffer, overwritten: operations of a forward pass like any other."""

    def __init__(self):
        super().__init__()
        self.register_buffer("scale", torch.ones(()))

    def forward(self, h):
        self.scale.mul_(0.9).add_(0.1 * h.detach().abs().mean())
        return h / self.scale.clone()


class KeepsItsMap(nn.Module):
    """Keeps what it computed for a figure and never reads it."""

    def __init__(self):
        super().__init__()
        self.map, self.scale, self.drop = None, nn.Parameter(torch.ones(1)), nn.Dropout(0.5)

    def forward(self, h):
        self.map = self.drop(torch.tanh(h) * self.scale)
        return self.map


class Fixed(nn.Module):
    """Insists on float32, with a kink or two."""

    def forward(self, h):
        assert h.dtype == torch.float32
        return torch.relu(h) + torch.zeros(8, dtype=torch.float32)


class Depth(nn.Module):
    """Stochastic depth by Python's random numbers, which a list of operations would freeze."""

    def forward(self, h):
        return torch.tanh(h) if random.random() < 0.5 else h


def hooked(features):
    half = features * 2
    if half.requires_grad:
        half.register_hook(lambda gradient: gradient * 0.5)
    return half


def with_hook():
    layer = nn.Conv2d(6, 6, 3, padding=1)
    layer.register_full_backward_hook(lambda layer, inputs, outputs: (inputs[0] * 0.5,))
    return layer


class Around(nn.Module):
    def __init__(self, middle):
        super().__init__()
        self.first, self.middle, self.second = nn.Conv2d(3, 6, 3, padding=1), middle, nn.Conv2d(6, 6, 3, padding=1)
        self.head = nn.Linear(6, CLASSES)

    def forward(self, images):
        features = self.middle(torch.tanh(self.first(images)))
        return self.head(torch.tanh(self.second(features)).mean((2, 3)))


def build(middle, dtype=torch.float64):
    torch.manual_seed(0)
    network = Around(middle()).to(dtype)
    images, classes = torch.rand(5, 3, 8, 8, dtype=dtype), torch.randint(0, CLASSES, (5, 2))
    return network, images, classes


def differentiate(network, images, classes, differentiation="adjoint", batch_norm="frozen"):
    return input_gradients(
        network, images, classes, output="logit", differentiation=differentiation, batch_norm=batch_norm
    )


def by_autograd(network, images, classes):
    images = images.clone().requires_grad_()
    logits = network(images)
    rows = torch.arange(len(images))
    return torch.stack(
        [torch.autograd.grad(logits[rows, of].sum(), images, create_graph=True)[0] for of in classes.T], dim=1
    )


def parameter_gradients(network, gradients):
    found = torch.autograd.grad(gradients.square().sum(), list(network.parameters()), allow_unused=True)
    return torch.cat([torch.zeros(1) if part is None else part.flatten() for part in found])


ALIKE = {
    "residual of a spectrum": lambda: Fourier(True),
    "a spectrum alone": lambda: Fourier(False),
    "power of a spectrum": ComplexPower,
    "statistics under no_grad": ConstantStatistics,
    "a hand-written derivative": lambda: Of(Swish.apply),
    "hardsigmoid": lambda: nn.Hardsigmoid(),
    "hardswish": lambda: nn.Hardswish(),
    "a checkpointed block": lambda: Of(lambda h: checkpoint(torch.tanh, h, use_reentrant=False)),
    "weight norm": lambda: weight_norm(nn.Conv2d(6, 6, 3, padding=1)),
    "weight norm as a parametrization": lambda: nn.utils.parametrizations.weight_norm(nn.Conv2d(6, 6, 3, padding=1)),
    "a buffer that is overwritten": Overwritten,
}


@pytest.mark.parametrize("name", ALIKE)
def test_as_autograd_has_it(name):
    network, images, classes = build(ALIKE[name])
    images = images * 8 - 4  # on both sides of kinks
    twin = build(ALIKE[name])[0]
    expected = by_autograd(twin, images, classes)
    _, found = differentiate(network, images, classes)
    # torch's derivative of hardsigmoid has a sixth in float32, and none of its own
    assert relative(found, expected) <= (1e-7 if name == "hardsigmoid" else 1e-12)
    if name != "hardsigmoid":
        assert relative(parameter_gradients(network, found), parameter_gradients(twin, expected)) <= 1e-12


def test_the_second_derivative_of_hardsigmoid():
    networks = [build(make)[0] for make in (nn.Hardsigmoid, lambda: Of(lambda h: F.relu6(h + 3) / 6))]
    _, images, classes = build(nn.Identity)
    found, expected = (
        parameter_gradients(network, differentiate(network, images * 8 - 4, classes)[1]) for network in networks
    )
    assert relative(found, expected) <= 1e-8  # torch's hardsigmoid itself has a sixth in float32


REFUSED = {
    "a straight-through activation": (lambda: Of(Sign.apply), r"other input-gradients.*autograd\.Function Sign"),
    "straight-through weights": (BinaryWeights, r"other parameter gradients.*at middle\.weight.*Function Sign"),
    "a hook on a tensor": (lambda: Of(hooked), "other input-gradients"),
    "a hook on a layer": (with_hook, "a backward hook of middle"),
    "a count in Python": (Counting, r"leaves middle\.n as it is"),
    "a list in Python": (Remembering, r"leaves middle\.last as it is"),
    "a buffer that is assigned": (Reassigned, r"the buffer middle\.scale"),
    "depth drawn in Python": (Depth, "random numbers of Python's random"),
}


@pytest.mark.parametrize("batch_norm", MEANINGS)
@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_what_was_found(name, batch_norm):
    make, reason = REFUSED[name]
    network, images, classes = build(make)
    with pytest.raises(AdjointUnavailable, match=reason) as refused:
        differentiate(network, images, classes, batch_norm=batch_norm)
    assert "objective.differentiation: autograd takes any network" in str(refused.value)


@pytest.mark.parametrize("name", ["a count in Python", "a list in Python", "a buffer that is assigned"])
def test_a_look_changes_nothing(name):
    network, images, classes = build(REFUSED[name][0])
    before, streams = dict(vars(network.middle)), (torch.get_rng_state(), random.getstate())
    kept = {key: (value, value.clone()) for key, value in network.named_buffers()}
    parameters = list(network.parameters())
    with pytest.raises(AdjointUnavailable):
        differentiate(network, images, classes)
    assert vars(network.middle) == before
    assert all(one is other for one, other in zip(network.parameters(), parameters, strict=True))
    for key, value in network.named_buffers():
        assert value is kept[key][0] and torch.equal(value, kept[key][1])
    assert torch.equal(torch.get_rng_state(), streams[0]) and random.getstate() == streams[1]


class Tempered(nn.Module):
    """A temperature that the training sets, and a constant that is neither parameter nor buffer."""

    def __init__(self):
        super().__init__()
        self.temperature, self.offset = 1.0, torch.rand(6, 1, 1, dtype=torch.float64)

    def forward(self, h):
        return h / self.temperature + self.offset


def test_a_number_that_is_set_between_steps():
    network, images, classes = build(Tempered)
    for temperature in (1.0, 2.0):
        network.middle.temperature = temperature
        _, found = differentiate(network, images, classes)
        assert relative(found, by_autograd(network, images, classes)) <= 1e-12


def test_an_unread_map_is_no_state():
    network, images, classes = build(KeepsItsMap)
    differentiate(network, images, classes)


@pytest.mark.parametrize("batch_norm", MEANINGS)
def test_dropout_and_batch_norm_together(batch_norm):
    network, images, classes = build(lambda: nn.Sequential(nn.BatchNorm2d(6), nn.Dropout(0.5), nn.AlphaDropout(0.2)))
    differentiate(network, images, classes, batch_norm=batch_norm)


def test_spectral_norm_learns_as_with_autograd():
    network, images, classes = build(lambda: spectral_norm(nn.Conv2d(6, 6, 3, padding=1)))
    twin, _, _ = build(lambda: spectral_norm(nn.Conv2d(6, 6, 3, padding=1)))
    for one, way in ((network, "adjoint"), (twin, "autograd")):
        _, gradients = differentiate(one, images, classes, way)
        one.gradients = parameter_gradients(one, gradients)
    assert relative(network.gradients, twin.gradients) <= 1e-12
    for key, value in network.named_buffers():
        assert torch.allclose(value, dict(twin.named_buffers())[key], rtol=1e-12), key


def test_a_network_that_takes_float32_alone():
    network, images, classes = build(Fixed, torch.float32)
    differentiate(network, images, classes)
    network.middle = nn.Sequential(Fixed(), Of(Sign.apply))
    with pytest.raises(AdjointUnavailable, match="other input-gradients"):
        differentiate(network, images, classes)


def test_rounding_is_no_mismatch():
    """Batch-norm over three values multiplies rounding; float64 tells it from a wrong derivative."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 8)]
    for _ in range(40):
        layers += [nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 1)]
    network = nn.Sequential(*layers, nn.Flatten(), nn.Linear(8, CLASSES)).train()
    images, classes = torch.rand(3, 3, 8, 8), torch.randint(0, CLASSES, (3, 2))
    _, found = differentiate(network, images, classes)
    _, expected = differentiate(network, images, classes, "autograd")
    assert relative(found, expected) > 1e-2  # else this network is no test
    with pytest.raises(AdjointUnavailable):
        differentiate(nn.Sequential(*layers, Of(Sign.apply), nn.Flatten(), nn.Linear(8, CLASSES)), images, classes)


@pytest.mark.parametrize("differentiation", ["adjoint", "autograd"])
def test_an_operation_without_a_second_derivative(differentiation):
    filters, offsets = torch.rand(6, 6, 3, 3, dtype=torch.float64), torch.rand(1, 18, 8, 8, dtype=torch.float64)
    network, images, classes = build(
        lambda: Of(lambda h: deform_conv2d(h, offsets.repeat(len(h), 1, 1, 1), filters, padding=1))
    )
    with pytest.raises(NotTwiceDifferentiable, match=r"Around cannot learn.*deform_conv2d"):
        differentiate(network, images, classes, differentiation)
    network.requires_grad_(False)
    _, found = differentiate(network, images, classes, differentiation)
    assert relative(found, by_autograd(network, images, classes)) <= 1e-12


def test_a_buffer_moves_once_in_a_step_by_autograd():
    for batch_norm in MEANINGS:
        network, images, classes = build(Overwritten)
        twin, _, _ = build(Overwritten)
        twin(images)
        _, found = differentiate(network, images, classes, "autograd", batch_norm)
        assert torch.equal(network.middle.scale, twin.middle.scale), batch_norm
        _, again = differentiate(build(Overwritten)[0], images, classes, "adjoint", batch_norm)
        assert relative(found, again) <= 1e-12


class NormThenSilu(nn.BatchNorm2d):
    """A batch-norm layer with its activation in it, as timm's."""

    def forward(self, features):
        return F.silu(super().forward(features))


def test_frozen_statistics_leave_what_a_layer_does_besides():
    network, images, classes = build(lambda: NormThenSilu(6))
    plain, _, _ = build(lambda: nn.Sequential(nn.BatchNorm2d(6), nn.SiLU()))
    for differentiation in ("autograd", "adjoint"):
        _, found = differentiate(network, images, classes, differentiation)
        _, expected = differentiate(plain, images, classes, differentiation)
        assert relative(found, expected) <= 1e-12


def test_a_network_is_looked_at_once(monkeypatch):
    network, images, classes = build(nn.Tanh)
    looked = []
    from pag_core.objective import input_gradient

    real = input_gradient.require_agreement

    def counted(*arguments):
        looked.append(1)
        real(*arguments)

    monkeypatch.setattr(input_gradient, "require_agreement", counted)
    for count in (5, 3, 5):
        differentiate(network, images[:count], classes[:count])
    assert len(looked) == 1
    network.eval()
    differentiate(network, images, classes)
    assert len(looked) == 2


@pytest.mark.parametrize("broken", [False, True])
def test_under_autocast(broken):
    network, images, classes = build(lambda: Of(Sign.apply) if broken else nn.Tanh(), torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        if broken:
            with pytest.raises(AdjointUnavailable):
                differentiate(network, images, classes)
        else:
            differentiate(network, images, classes)
