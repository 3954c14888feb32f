"""The logic of the table of timm's families: what counts as an error, which way is taken, and that no row is lost."""

import json

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.ops import deform_conv2d

from benchmarks import timm_families
from benchmarks.pag_step import StepSize, build_batch
from benchmarks.timm_families import Row, build, gradient_error, main, measure, measured_or_failed, step_speedup, table
from pag_core.errors import ParamsError
from tests.fixtures.input_gradient_loops import Of

SIZE = StepSize(3, 8, 10, 2, "cpu")


def of(function):
    """A builder of small networks, the same weights each time, with `function` of features in the middle."""

    def build_network(*_):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1), Of(function), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 10)
        )

    return build_network


def on_values(features):
    return torch.tanh(features) if features.sum() > 0 else torch.sigmoid(features)


def without_second_derivative(features):
    offsets = features.new_zeros(len(features), 18, *features.shape[2:])
    return deform_conv2d(features, offsets, torch.ones(4, 4, 3, 3) * features.mean(), padding=1)


def test_the_error_is_that_of_the_gradients(monkeypatch):
    network, batch = of(F.gelu), build_batch(SIZE)
    assert 0 < gradient_error(network, batch) < 1e-12
    plain = timm_families.class_loop_loss
    monkeypatch.setattr(timm_families, "class_loop_loss", lambda *given: 4 * plain(*given))
    assert gradient_error(network, batch) == pytest.approx(0.75)


@pytest.mark.parametrize(
    ("function", "way", "reason"),
    [
        (F.gelu, "adjoint", ""),
        (on_values, "autograd", "data-dependent"),
        (without_second_derivative, None, "deform_conv2d"),
    ],
)
def test_what_computes_the_gradients_of_a_network(function, way, reason, monkeypatch):
    monkeypatch.setattr(timm_families, "IMAGES", 3)
    row = measure("stand-in", 8, 1, of(function))
    assert (row.way, row.network, row.side) == (way, "stand-in", 8)
    assert (reason in row.reason if reason else row.reason == "") and "objective." not in row.reason
    assert (row.error is not None) == (way == "adjoint")
    assert (row.speedup is not None) == (way is not None)
    assert row.millions == pytest.approx((3 * 4 * 9 + 4 + 16 * 10 + 10) / 1e6)


def test_an_operation_whose_second_derivative_torch_lacks_is_written_out_for_the_loop(monkeypatch):
    monkeypatch.setattr(timm_families, "IMAGES", 3)
    row = measure("stand-in", 8, 1, of(lambda x: x * F.hardsigmoid(4 * x)))
    assert (
        row.way == "adjoint" and row.reason == "autograd: derivative for aten::hardsigmoid_backward is not implemented"
    )
    assert row.error < 1e-7 and row.speedup is not None  # torch's backward kernel has 1/6 in float32 alone


def test_sizes_that_a_network_does_not_take_and_errors_of_its_own(monkeypatch):
    row = measured_or_failed("vgg11_cut_short", 32, 1)
    assert row.way is None and "has no model vgg11_cut_short" in row.reason

    def refuse(*_):
        raise ParamsError("params.yaml: arch x does not take images: too small") from RuntimeError("too small\nby far")

    assert measure("x", 32, 1, refuse).reason == "too small"
    monkeypatch.setattr(timm_families, "measure", lambda *_: 1 / 0)
    assert measured_or_failed("x", 32, 1) == Row("x", 32, reason="ZeroDivisionError: division by zero")


def test_no_branch_of_a_network_begins_at_zero():
    network = build("resnet10t", StepSize(2, 32, 10, 3, "cpu"))
    assert network.training and all(bool(parameter.abs().sum() > 0) for parameter in network.parameters())
    again = build("resnet10t", StepSize(2, 32, 10, 3, "cpu"))
    assert all(torch.equal(*pair) for pair in zip(network.parameters(), again.parameters(), strict=True))


def test_steps_that_take_long_are_not_timed(monkeypatch):
    clock = iter(range(0, 1000, 9))
    monkeypatch.setattr(timm_families.time, "process_time", lambda: next(clock))
    assert step_speedup(lambda: None, lambda: None, 1) == (None, "a step of the loop takes 9 s")


def found(network, side, *_):
    return Row(network, side, 1.25, "adjoint", error=2e-13, speedup=(2.0, 1.5, 2.5))


def test_a_row_is_kept_as_soon_as_it_is_measured(tmp_path, monkeypatch, capsys):
    output, measured = tmp_path / "rows.json", []

    def stopped_at_the_third(network, side, rounds):
        if len(measured) == 2:
            raise KeyboardInterrupt
        measured.append((network, side))
        return found(network, side)

    monkeypatch.setattr(timm_families, "measure", stopped_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        main(["a", "b"], 1, output)
    assert [(row["network"], row["side"]) for row in json.loads(output.read_text())["rows"]] == [("a", 32), ("a", 64)]
    monkeypatch.setattr(timm_families, "measure", lambda *given: measured.append(given[:2]) or found(*given))
    main(["a", "b"], 1, output)
    assert measured == [("a", 32), ("a", 64), ("b", 32), ("b", 64)]
    assert "| `b` | 1.2 M | adjoint | 2e-13 | 2.0 |  |" in capsys.readouterr().out
    # of other versions nothing is kept
    content = json.loads(output.read_text())
    content["header"]["versions"]["torch"] = "2"
    output.write_text(json.dumps(content))
    main(["b"], 1, output)
    assert [row["network"] for row in json.loads(output.read_text())["rows"]] == ["b", "b"]


def test_the_sizes_share_a_line_and_a_cell_where_they_agree():
    rows = [
        Row("a", 64, 2.0, "adjoint", error=2e-13, speedup=(2.0, 1.5, 2.5)),
        Row("a", 32, 2.0, "autograd", "too small", speedup=(0.5, 0.5, 0.5)),
        Row("b", 32, reason="no such size"),
    ]
    assert table(rows).splitlines()[2:] == [
        "| `a` | 2.0 M | autograd / adjoint | - / 2e-13 | 0.5 / 2.0 | too small |",
        "| `b` | - | - | - | - | no such size |",
    ]
