"""Evaluation: what is refused, and attacks against their libraries called directly and against closed forms."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from foolbox.attacks import L1FMNAttack
from torch import nn

from pag_core.errors import EvaluationRefused
from pag_core.evaluation.fitness import accuracy, correct, require_fit_for_attack
from pag_core.evaluation.foolbox_suite import (
    _median,
    accuracy_at,
    run_foolbox,
    smallest_distances,
    table_6_attacks,
)
from pag_core.evaluation.masking import masking_checks
from pag_core.evaluation.pag_score import pag_score
from pag_core.evaluation.pgd import pgd_accuracy, pgd_images, targeted_images
from pag_core.gradient_store.store import RepresentativeGradients
from pag_core.pipeline.checkpoint import RunFolder
from tests.samples import Changed, labelled_images


class Linear(nn.Module):
    """Linear logits on small images, with weights of our choice."""

    def __init__(self, weight, bias=None):
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = nn.Parameter(torch.zeros(len(weight)) if bias is None else bias, requires_grad=False)

    def forward(self, images):
        return images.flatten(1) @ self.weight.T + self.bias


def linear(classes=3, side=4, seed=0, scale=1.0):
    """A linear model that classifies what it labels: bias so that the middle grey is undecided."""
    weight = scale * torch.randn(classes, side * side, generator=torch.Generator().manual_seed(seed))
    weight -= weight.mean(0)
    return Linear(weight, -0.5 * weight.sum(1)).eval()


# --- fitness


class RoundedInput(nn.Module):
    """Nothing of the gradient is left: the image passes through integers."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        return self.model((images * 255).to(torch.int64).to(torch.float32) / 255)


class Transposed(nn.Module):
    """Its input-gradients are laid out column by column."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        return self.model(images.transpose(2, 3))


def wrapped(change):
    return lambda model, images, labels: (Changed(model, change).eval(), images, labels)


BREACHES = {
    "gradients in another order": (
        lambda m, x, y: (Transposed(m).eval(), x, y),
        "strides.*contiguous ones only",
    ),
    "train mode": (lambda m, x, y: (nn.Sequential(m, nn.Dropout(0.1)).train(), x, y), "train mode"),
    "a part in train mode": (
        lambda m, x, y: (nn.Sequential(m.eval(), nn.Identity().train()).requires_grad_(False), x, y),
        "train mode",
    ),
    "bf16 weights": (lambda m, x, y: (m.to(torch.bfloat16), x, y), "bfloat16"),
    "double weights": (lambda m, x, y: (m.double(), x, y), "float64"),
    "channels_last": (
        lambda m, x, y: (m, x.expand(-1, 2, -1, -1).contiguous(memory_format=torch.channels_last), y),
        "contiguous",
    ),
    "above one": (lambda m, x, y: (m, x * 255, y), "normalisation belongs inside"),
    "below zero": (lambda m, x, y: (m, x * 2 - 1, y), "normalisation belongs inside"),
    "uint8": (lambda m, x, y: (m, (x * 255).to(torch.uint8), y), "torch.uint8"),
    "double images": (lambda m, x, y: (m, x.double(), y), "torch.float64"),
    "flat images": (lambda m, x, y: (m, x.flatten(1), y), "B, C, H, W"),
    "int32 labels": (lambda m, x, y: (m, x, y.int()), "int64"),
    "one-hot labels": (lambda m, x, y: (m, x, nn.functional.one_hot(y)), "int64"),
    "too few labels": (lambda m, x, y: (m, x, y[1:]), "int64"),
    "randomised": (wrapped(lambda z, x: z + 1e-3 * torch.randn_like(z)), "randomised"),
    "softmax": (wrapped(lambda z, x: z.softmax(1)), "probabilities"),
    "NaN logits": (wrapped(lambda z, x: z * math.nan), "not finite"),
    "one infinite logit": (wrapped(lambda z, x: z.index_fill(0, torch.tensor([1]), math.inf)), "not finite"),
    "zero gradients": (wrapped(lambda z, x: z.detach() + 0 * x.sum()), "zero for every image"),
    "no gradient at all": (lambda m, x, y: (RoundedInput(m).eval(), x, y), "differentiable"),
    "NaN images": (lambda m, x, y: (m, x.clone().fill_(math.nan), y), "finite|lie in"),
}


@pytest.mark.parametrize("breach", BREACHES)
def test_every_breach_is_refused(breach):
    model = linear()
    images, labels = labelled_images(model, 5)
    require_fit_for_attack(model, images, labels)
    change, words = BREACHES[breach]
    with pytest.raises(EvaluationRefused, match=words):
        require_fit_for_attack(*change(model, images, labels))


def test_autocast_and_inference_mode_are_refused():
    model = linear()
    images, labels = labelled_images(model, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16), pytest.raises(EvaluationRefused, match="autocast"):
        require_fit_for_attack(model, images, labels)
    with torch.inference_mode(), pytest.raises(EvaluationRefused, match="inference mode"):
        require_fit_for_attack(model, images, labels)
    with torch.no_grad():
        require_fit_for_attack(model, images, labels)


def test_correct_counts_over_batches(monkeypatch):
    monkeypatch.setattr("pag_core.evaluation.fitness.IMAGES_AT_ONCE", 5)
    model = linear()
    images, labels = labelled_images(model, 23)
    labels[[2, 22]] = (labels[[2, 22]] + 1) % 3
    expected = torch.ones(23, dtype=torch.bool)
    expected[[2, 22]] = False
    assert torch.equal(correct(model, images, labels), expected)
    assert accuracy(model, images, labels) == 21 / 23


# --- PGD


def binary(seed=3):
    weight = torch.randn(16, generator=torch.Generator().manual_seed(seed))
    return Linear(torch.stack([weight, -weight]), torch.stack([-weight.sum() / 2, weight.sum() / 2])).eval(), 2 * weight


@pytest.mark.parametrize("radius", ["0.01", "8/255", "0.1", "0.3"])
def test_linf_pgd_on_a_linear_model_against_the_closed_form(radius):
    """Away from the bounds of pixels, an image withstands exactly when its margin exceeds eps * |w|_1."""
    model, weight = binary()
    # pixels stay off the bounds by the largest radius
    images = 0.3 + 0.4 * torch.rand(200, 1, 4, 4, generator=torch.Generator().manual_seed(2))
    logits = model(images)
    labels = logits.argmax(1)
    margin = (logits[:, 0] - logits[:, 1]).abs()
    eps = float(Fraction(radius))
    reach = eps * weight.abs().sum()
    assert ((margin - reach).abs() > 1e-4).all(), "an image at the very border would make the test a matter of rounding"
    robust = (margin > reach).double().mean().item()
    found = pgd_accuracy(model, images, labels, radii={"Linf": [radius]}, steps=20, seed=1)
    assert found == {f"Linf {radius}": pytest.approx(robust, abs=1e-9)}
    if radius in ("0.01", "8/255"):
        assert 0 < robust < 1


@pytest.mark.parametrize("norm", ["L2", "Linf"])
def test_pgd_stays_inside_and_depends_on_the_seed_alone(norm):
    model = linear()
    images, labels = labelled_images(model, 12)

    def attack(seed):
        torch.manual_seed(seed + 100)
        return pgd_images(model, images, labels, norm=norm, radius="1/4", steps=3, seed=seed)

    first = attack(1)
    assert torch.equal(first, attack(1)) and not torch.equal(first, attack(2))
    size = (first - images).flatten(1).norm(dim=1) if norm == "L2" else (first - images).flatten(1).abs().amax(1)
    assert (size <= 0.25 + 1e-6).all() and (size > 0.05).all()
    assert first.min() >= 0 and first.max() <= 1


@pytest.mark.parametrize("norm", ["L2", "Linf"])
def test_targeted_images_reach_their_class_within_the_radius(norm):
    model = linear(classes=4, side=4, scale=2.0)
    images, _ = labelled_images(model, 5)
    radius = {"L2": 2.0, "Linf": 0.6}[norm]
    pushed = targeted_images(model, images, 4, norm=norm, radius=radius, steps=30)
    assert pushed.shape == (5, 4, 1, 4, 4)
    order = 2 if norm == "L2" else math.inf
    before = model(images).log_softmax(1)
    for label in range(4):
        moved = pushed[:, label]
        size = torch.linalg.vector_norm((moved - images).flatten(1), ord=order, dim=1)
        assert (size <= radius + 1e-5).all()
        assert moved.min() >= 0 and moved.max() <= 1
        assert (model(moved).argmax(1) == label).all()
        assert (model(moved).log_softmax(1)[:, label] >= before[:, label]).all()
    # no random start: the same images again
    assert torch.equal(pushed, targeted_images(model, images, 4, norm=norm, radius=radius, steps=30))


# --- Foolbox


@pytest.mark.parametrize(
    ("values", "median", "at_one"),
    [
        ([0.0, 0.5, 2.0], 0.5, 1 / 3),
        ([0.5, 2.0, 1.0, 3.0], 1.5, 0.5),
        ([None, 0.5, 2.0], 2.0, 2 / 3),
        ([None, 0.5], None, 0.5),
        ([None, None, 0.5], None, 2 / 3),
        ([1.0], 1.0, 0.0),
        ([0.0, 0.0], 0.0, 0.0),
    ],
)
def test_medians_and_accuracies_by_hand(values, median, at_one):
    assert _median(values) == median
    assert _median(values[::-1]) == median
    assert accuracy_at(values, 1.0) == pytest.approx(at_one)
    assert accuracy_at(values, None) == values.count(None) / len(values)
    assert accuracy_at(values, 1e9) == accuracy_at(values, None)


@pytest.mark.slow
def test_l2_distances_are_no_less_than_the_distance_to_the_border(make_params):
    """The distance of a linear model's nearest border: min over classes of margin / |w_y - w_c|."""
    model = linear(classes=3)
    images, labels = labelled_images(model, 5)
    labels[4] = (labels[4] + 1) % 3
    border = []
    for image, label in zip(images, labels.tolist(), strict=True):
        z = model(image[None])[0]
        others = [c for c in range(3) if c != label]
        border.append(min(((z[label] - z[c]) / (model.weight[label] - model.weight[c]).norm()).item() for c in others))
    attacks = table_6_attacks(make_params({"foolbox.ead_steps": 20}).foolbox)
    for name in ("SaltAndPepperNoiseAttack", "GaussianBlurAttack", "LinearSearchBlendedUniformNoiseAttack"):
        norm, attack = attacks[name]
        assert norm == "L2"
        found = smallest_distances(model, images, labels, norm=norm, attack=attack, seed=3)
        if "Blended" in name:
            torch.manual_seed(8)
            assert found == smallest_distances(model, images, labels, norm=norm, attack=attack, seed=3)
        assert found[4] == 0.0
        assert any(value for value in found)
        for value, closest in zip(found, border, strict=True):
            assert value is None or value >= max(closest, 0) - 1e-5


def l1_border(model, image, label):
    """The L1 distance of the nearest other class of a linear model: the pixels of most effect first, each to its bound."""
    scores, pixels = model(image[None])[0].double(), image.flatten().double()
    found = []
    for other in set(range(len(scores))) - {label}:
        effect = (model.weight[other] - model.weight[label]).flatten().double()
        room = torch.where(effect > 0, 1 - pixels, pixels)
        left, distance = float(scores[label] - scores[other]), 0.0
        for pixel in effect.abs().argsort(descending=True):
            moved = min(float(room[pixel]), left / float(effect[pixel].abs()))
            left, distance = left - moved * float(effect[pixel].abs()), distance + moved
        found.append(distance if left < 1e-9 else float("inf"))
    return min(found)


def test_fmn_finds_the_l1_border_of_every_image(make_params):
    """From the images alone, as Foolbox has it, the attack finds none of several, and would count them as robust."""
    model = linear(classes=3)
    images, labels = labelled_images(model, 24)
    norm, attack = table_6_attacks(make_params({"foolbox.search_steps": 100}).foolbox)["L1FMNAttack"]
    found = smallest_distances(model, images, labels, norm=norm, attack=attack, seed=3)
    alone = smallest_distances(model, images, labels, norm=norm, attack=L1FMNAttack(), seed=3)
    assert alone.count(None) >= 3 and None not in found
    assert all(first is None or value <= first for value, first in zip(found, alone, strict=True))
    borders = [l1_border(model, image, label) for image, label in zip(images, labels.tolist(), strict=True)]
    assert all(value >= border - 1e-5 for value, border in zip(found, borders, strict=True))
    assert sum(value <= 1.02 * border for value, border in zip(found, borders, strict=True)) >= 22, (found, borders)


@pytest.mark.slow
def test_foolbox_suite_keeps_finished_attacks(tmp_path, make_params, monkeypatch):
    model = linear(classes=3)
    images, labels = labelled_images(model, 5)
    labels[0] = (labels[0] + 1) % 3
    params = make_params(
        {"foolbox.ead_steps": 2, "foolbox.salt_and_pepper_repeats": 3, "foolbox.batch_size": 3}
    ).foolbox
    options = {"params": params, "seed": 1, "who": "test"}
    whole = run_foolbox(model, images, labels, folder=RunFolder(tmp_path / "run"), **options)
    assert list(whole) == ["clean", *table_6_attacks(params)] and whole["clean"] == 0.8
    for name, (norm, _) in table_6_attacks(params).items():
        grid = {f"{norm} {label}" for label in params.grid[norm]}
        assert whole[name].keys() == {*grid, "None", "median_distance"}
        curve = [whole[name][f"{norm} {label}"] for label in params.grid[norm]]
        assert curve == sorted(curve, reverse=True) and max(curve) <= 0.8
    monkeypatch.setattr("pag_core.evaluation.foolbox_suite.smallest_distances", None)
    assert run_foolbox(model, images, labels, folder=RunFolder(tmp_path / "run"), **options) == whole


# --- masking


class Masked(nn.Module):
    """Coarsely rounded input, whose true gradient is zero; what is left is the tiny gradient of an unrelated model."""

    def __init__(self, model, other):
        super().__init__()
        self.model, self.other = model, other

    def forward(self, images):
        return self.model((images * 8).round().detach() / 8) + 1e-6 * self.other(images)


def masking_params(make_params):
    return make_params(
        {
            "masking.radii": {"Linf": [0.05, 0.5]},
            "masking.transfer_radii": {"Linf": ["0.1"]},
            "masking.steps": 10,
            "masking.square_queries": 100,
        }
    ).masking


def test_masked_gradients_are_found(tmp_path, make_params):
    model, other = linear(classes=3, side=6), linear(classes=3, side=6, seed=9)
    images, labels = labelled_images(model, 40, side=6)
    result = masking_checks(
        Masked(model, other).eval(), model, images, labels, classes=3, params=masking_params(make_params), seed=1,
        folder=RunFolder(tmp_path),
    )  # fmt: skip
    # images made on the open model, and black-box queries, beat what only looks like a white-box attack
    assert result["transfer"]["Linf 0.1"] < result["white_box"]["Linf 0.1"]
    assert result["verdict"]["transfer_weaker"] is False
    assert result["verdict"]["square_weaker"] is False


def test_an_open_model_passes(tmp_path, make_params):
    model, baseline = linear(classes=3, side=6), linear(classes=3, side=6, seed=9)
    images, labels = labelled_images(model, 40, side=6)
    params = masking_params(make_params)
    result = masking_checks(
        model, baseline, images, labels, classes=3, params=params, seed=1, folder=RunFolder(tmp_path)
    )
    assert result["verdict"] == {"reaches_zero": True, "transfer_weaker": True, "square_weaker": True}
    assert list(result["curve"]["model"]) == ["Linf 0.05", "Linf 0.5"]
    assert result["curve"]["model"]["Linf 0.05"] > result["curve"]["model"]["Linf 0.5"] == 0
    # on a linear model no attack is stronger than a step along the sign of the gradient of each margin
    weight = model.weight if hasattr(model, "weight") else next(model.parameters())
    logits, rows = model(images), torch.arange(40)
    margins = logits[rows, labels][:, None] - logits
    reach = 0.1 * (weight[labels][:, None] - weight[None]).abs().sum(2)
    margins[rows, labels] = torch.inf
    assert (margins > reach).all(1).double().mean().item() <= result["white_box"]["Linf 0.1"] <= 0.975
    moved = pgd_images(baseline, images, labels, norm="Linf", radius="0.1", steps=10, seed=1)
    assert result["transfer"] == {"Linf 0.1": (model(moved).argmax(1) == labels).double().mean().item()}


# --- PAG score


def softmax_gradients(model, images):
    """The input-gradient of log p_c of a linear model: w_c - sum_k p_k w_k."""
    p = model(images).softmax(1)
    return (model.weight[None] - (p @ model.weight)[:, None]).reshape(len(images), -1, 1, 4, 4)


class Stored:
    def __init__(self, gradients):
        self.gradients = gradients

    def __call__(self, image_indices, class_indices):
        return self.gradients[image_indices[:, None], class_indices]


@pytest.mark.parametrize("at_once", [400, 14, 1])
def test_the_score_of_a_model_against_its_own_gradients_is_one(at_once):
    model = linear(classes=4)
    images, _ = labelled_images(model, 7)
    own = softmax_gradients(model, images)
    assert pag_score(model, images, Stored(5 * own), classes=4, gradients_at_once=at_once) == pytest.approx(1, abs=1e-5)
    assert pag_score(model, images, Stored(-own), classes=4, gradients_at_once=at_once) == pytest.approx(-1, abs=1e-5)


@pytest.mark.parametrize("at_once", [300, 12])
def test_the_score_matches_loops(dataset, at_once):
    model = linear(classes=3, side=8, seed=2)
    representatives, test = torch.rand(3, 1, 8, 8), dataset.splits["test"]
    images = test.pixels(slice(0, 6))
    found = pag_score(
        model, images, RepresentativeGradients(representatives, test), classes=3, gradients_at_once=at_once
    )
    cosines = []
    for image in images.double():
        weight = model.weight.double()
        p = (weight @ image.flatten() + model.bias.double()).softmax(0)
        for label in range(3):
            v, u = (weight[label] - p @ weight).numpy(), (representatives[label].double() - image).flatten().numpy()
            cosines.append(np.dot(v, u) / np.linalg.norm(v) / np.linalg.norm(u))
    assert found == pytest.approx(np.mean(cosines), abs=1e-6)
