"""What the benchmarks' numbers rest on: the direction of a ratio, the order of timing, counted operations, equal work."""

import json

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from benchmarks import adjoint_rules
from benchmarks import interleaved as timing
from benchmarks.adversarial_training import RADIUS, adversarial_loss, floor_of
from benchmarks.arithmetic import counted_flops, device_figures
from benchmarks.interleaved import Rounds, interleaved
from benchmarks.measurement import Measurement, report
from benchmarks.pag_step import Batch
from benchmarks.plain_methods import PLAIN_METHODS
from benchmarks.synthetic_store import natural_gradients
from pag_core.objective.adjoint.cotangent import RULES
from pag_core.objective.input_gradient import input_gradients


class Clock:
    """Stands for `time.perf_counter`; calls of a variant move it on."""

    def __init__(self):
        self.now = 0.0
        self.calls = []

    def variant(self, name, seconds):
        def call():
            self.calls.append(name)
            self.now += seconds

        return call


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock.now)
    return clock


def test_above_one_means_faster_than_what_it_is_compared_against():
    rounds = Rounds({"own": [1.0, 2.0, 1.0], "plain": [3.0, 5.0, 4.0]})
    measured = rounds.speedup("own", "plain", "the plain one")
    assert (measured.value, measured.spread, measured.compared_against) == (3.0, (2.5, 4.0), "the plain one")
    assert Rounds({"own": [1.0], "plain": [2.0]}).speedup("own", "plain", "").spread is None


def test_rounds_alternate_and_warm_up_does_not_count(clock, cpu):
    variants = {"a": clock.variant("a", 0.5), "b": clock.variant("b", 0.25)}
    rounds = interleaved(variants, rounds=2, warm_up=1, device=cpu)
    assert "".join(clock.calls) == "abbaab"
    assert rounds.seconds == {"a": [0.5, 0.5], "b": [0.25, 0.25]}


def test_short_calls_are_repeated_and_averaged(clock, cpu):
    rounds = interleaved({"a": clock.variant("a", 0.25)}, rounds=1, warm_up=0, device=cpu, at_least_seconds=1.0)
    assert len(clock.calls) == 4 and rounds.seconds == {"a": [0.25]}


def test_operations_of_a_convolution_and_its_derivatives():
    images, weight = torch.randn(2, 3, 8, 8, requires_grad=True), torch.randn(5, 3, 3, 3, requires_grad=True)
    forward = 2 * 2 * 5 * 3 * 3 * 3 * 6 * 6
    assert counted_flops(lambda: F.conv2d(images, weight)) == forward
    loss = F.conv2d(images, weight).square().sum()
    assert counted_flops(lambda: torch.autograd.grad(loss, images, retain_graph=True)) == forward
    assert counted_flops(loss.backward) == 2 * forward


def test_figures_of_a_device():
    figures = device_figures(
        seconds=0.5, images=10, executed_flops=4e12, floor_flops=2e12, peak_tflops=16.0, epoch_name="seconds_per_epoch"
    )
    assert {name: figure.value for name, figure in figures.items()} == {
        "images_per_second": 20.0,
        "flop_utilisation": 0.5,
        "share_of_floor": 0.25,
        "seconds_per_epoch": 2500.0,
    }


@pytest.mark.parametrize(
    ("name", "passes"), [("pag_10_classes", 33), ("pag_3_classes", 12), ("pgd_7", 17), ("pgd_20", 43)]
)
def test_forward_passes_that_a_step_needs(name, passes):
    assert floor_of(name) == passes


@pytest.fixture
def batch():
    draws = torch.Generator().manual_seed(1)
    return Batch(
        torch.rand(3, 3, 4, 4, generator=draws, dtype=torch.float64),
        torch.tensor([0, 2, 3]),
        torch.tensor([[0, 1], [3, 2], [1, 3]]),
        torch.randn(3, 2, 3, 4, 4, generator=draws, dtype=torch.float64),
        4,
    )


@pytest.fixture
def network():
    torch.manual_seed(2)
    return nn.Sequential(nn.Flatten(), nn.Linear(48, 6), nn.Tanh(), nn.Linear(6, 4)).double()


@pytest.mark.parametrize("name", PLAIN_METHODS)
def test_the_plain_methods_are_equation_4(name, batch, network):
    expected = F.cross_entropy(network(batch.images), batch.labels)
    for row in range(3):
        for place, label in enumerate(batch.class_indices[row].tolist()):
            jacobian = torch.autograd.functional.jacobian(
                lambda x: network(x).log_softmax(1)[0], batch.images[row : row + 1]
            )
            gradient, target = jacobian[label].flatten(), batch.targets[row, place].flatten()
            # lambda is 1; the sum over 4 classes is estimated from 2
            expected = expected + (1 - gradient @ target / (gradient.norm() * target.norm())) / 3 * 2
    torch.testing.assert_close(PLAIN_METHODS[name][0](network, batch), expected, rtol=1e-10, atol=0)


class PartsAndPools(nn.Module):
    """Operations of each group whose rules `by_vjp` stands for: of lists, of several outputs, one of which goes nowhere."""

    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 6, 3, padding=1), nn.Linear(4, 4)

    def forward(self, images):
        first, _, third = F.gelu(self.stem(images)).chunk(3, 1)
        pooled = F.max_pool2d(torch.cat([third, torch.relu(first) + 1], 1), 2)
        return self.head(F.adaptive_avg_pool2d(pooled, 1).flatten(1))


@pytest.mark.parametrize("groups", [[], *([group] for group in adjoint_rules.GROUPS), list(adjoint_rules.GROUPS)])
def test_autograd_of_each_operation_stands_for_the_rules_of_a_group(groups, batch, monkeypatch):
    torch.manual_seed(3)
    network, operations, by_vjp = PartsAndPools().double(), [], adjoint_rules.by_vjp
    monkeypatch.setattr(adjoint_rules, "by_vjp", lambda call: operations.append(call.operation) or by_vjp(call))
    kept, found = dict(RULES), []
    for taken in (groups, []):
        with adjoint_rules.replaced(taken):
            gradients = input_gradients(
                network,
                batch.images,
                batch.class_indices,
                output="logit",
                differentiation="adjoint",
                batch_norm="class",
            )[1]
        found.append(torch.autograd.grad(gradients.sin().sum(), network.stem.weight)[0])
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-15)
    assert kept == RULES and bool(operations) == bool(groups)


def test_the_plain_attack_stays_near_the_images_and_raises_the_loss(batch, network):
    seen = []
    network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach().clone()))
    torch.manual_seed(3)
    trained_on = adversarial_loss(7)(network, batch)
    assert len(seen) == 8
    for images in seen:
        assert (images - batch.images).abs().max() <= RADIUS + 1e-12 and images.min() >= 0 and images.max() <= 1
    losses = [F.cross_entropy(network(images), batch.labels).item() for images in (batch.images, seen[0])]
    assert trained_on.item() > max(losses)


def test_synthetic_gradients_have_the_spectrum_of_images():
    gradients = natural_gradients(20, 2, 32, 0)
    assert gradients.shape == (20, 2, 3, 32, 32) and gradients.dtype == torch.float32
    power = torch.fft.fft2(gradients).abs().square().mean((0, 1, 2))
    # the amplitude falls with 1/frequency, so the power with its square
    assert 3.0 < float(power[0, 4] / power[0, 8]) < 5.3


def test_a_measurement_has_a_value_or_a_reason():
    with pytest.raises(ValueError, match="a value or a reason"):
        Measurement(None, "s", None)
    with pytest.raises(ValueError, match="a value or a reason"):
        Measurement(1.0, "s", None, not_measured="no unit for it")


def test_report_writes_names_values_and_what_they_were_compared_against(tmp_path, capsys):
    measured = {
        "a.speedup": Measurement(2.0, "times as fast", "b", (1.5, 2.5)),
        "c.speedup": Measurement(None, "times as fast", "b", not_measured="no c"),
    }
    file = tmp_path / "measured.json"
    report("subject", measured, file, device="cpu", arguments=["--rounds", "3", "--output", str(file), "--smallest"])
    content = json.loads(file.read_text())
    assert content["measurements"] == {
        "subject.a.speedup": {"value": 2.0, "unit": "times as fast", "compared_against": "b", "spread": [1.5, 2.5]},
        "subject.c.speedup": {"value": None, "unit": "times as fast", "compared_against": "b", "not_measured": "no c"},
    }
    assert content["header"]["command"] == "python -m benchmarks.subject --rounds 3 --smallest"
    assert {"versions", "hardware", "date", "command"} == set(content["header"])
    assert capsys.readouterr().out == (
        "subject.a.speedup: 2 times as fast (1.5 to 2.5); against b\nsubject.c.speedup: not measured: no c; against b\n"
    )
