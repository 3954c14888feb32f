"""Foolbox's attacks against the borders of linear models, and the suite's accuracies by hand."""

import pytest
import torch
from foolbox.attacks import L1FMNAttack

from pag_core.evaluation.foolbox_suite import (
    _median,
    accuracy_at,
    run_foolbox,
    smallest_distances,
    table_6_attacks,
)
from pag_core.pipeline.checkpoint import RunFolder
from tests.linear_models import linear
from tests.samples import labelled_images


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
