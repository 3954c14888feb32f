"""Foolbox's attacks against the borders of linear models, and the suite's accuracies by hand."""

import pytest
import torch
from foolbox import distances
from foolbox.attacks import L1FMNAttack

from pag_core.evaluation.foolbox_suite import (
    FromTwoStarts,
    _median,
    accuracy_at,
    headline,
    run_foolbox,
    smallest_distances,
    table_6_attacks,
)
from pag_core.pipeline.checkpoint import RunFolder
from tests.fixtures.linear_models import Linear, linear
from tests.fixtures.samples import labelled_images


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


class Moving:
    """In place of an attack of Foolbox: adds `change` to the images; with starting points `further` instead."""

    def __init__(self, change, further=None):
        self.change, self.further = change, further

    def __call__(self, model, images, labels, *, epsilons):
        assert epsilons is None, "bounded, its distances would not be its own"
        return self.run(model, images, labels), None, None

    def run(self, model, images, labels, starting_points=None):
        return images + (self.change if starting_points is None else self.further)


def two_sided():
    """A model of two classes by the mean pixel, below and above one half; and four images of a pixel."""
    model = Linear(torch.tensor([[-1.0], [1.0]]), torch.tensor([0.5, -0.5])).eval()
    return model, torch.tensor([0.375, 0.25, 0.75, 0.125]).reshape(4, 1, 1, 1)


def test_what_is_wrong_anyway_has_no_distance_and_what_is_not_fooled_has_none():
    model, images = two_sided()
    labels = torch.tensor([0, 0, 0, 0])  # the third is wrong
    found = smallest_distances(model, images, labels, norm="L2", attack=Moving(0.2), seed=1)
    assert found == [pytest.approx(0.2, abs=1e-6), None, 0.0, None]


def test_the_second_start_counts_where_it_fools_the_model_and_is_closer():
    """First moved by 0.3; from the second start, which fools it, by 0.15, which is closer and no longer does."""
    model, images = two_sided()
    images, labels = images[1:2], torch.tensor([0])
    for further, expected in ((0.15, 0.3), (0.275, 0.275), (0.4, 0.3)):
        attack = FromTwoStarts(Moving(0.3, further), Moving(0.5), distances.l2)
        moved, _, _ = attack(model, images, labels, epsilons=None)
        assert moved.item() == pytest.approx(0.25 + expected), further


def test_the_headline_is_the_mean_over_attacks_of_each_ones_mean():
    def found(shift):
        return {
            "clean": 1.0,
            "A": {"L2 1": 0.5 - shift, "L2 2": 0.25 - shift, "None": 0.0, "median_distance": 9.0},
            "B": {"L0 1": 1.0 - shift, "None": 0.5, "median_distance": None},
        }

    assert headline({"model": found(0.0), "baseline": found(0.125)}) == {
        "Foolbox": 0.6875, "Foolbox of baseline": 0.5625
    }  # fmt: skip


def test_each_batch_of_an_attack_has_draws_of_its_own(tmp_path, make_params, monkeypatch):
    model = linear(classes=3)
    images, labels = labelled_images(model, 5)
    given = []

    def recorded(classifier, part, part_labels, *, norm, attack, seed):
        given.append((norm, attack, len(part), seed))
        return [0.5] * len(part)

    monkeypatch.setattr("pag_core.evaluation.foolbox_suite.smallest_distances", recorded)
    monkeypatch.setattr(
        "pag_core.evaluation.foolbox_suite.table_6_attacks", lambda params: {"A": ("L2", "a"), "B": ("L0", "b")}
    )
    chosen = {"foolbox.batch_size": 2, "foolbox.grid": {"L2": [0.25, 1], "L0": [1], "L1": [1]}}
    found = run_foolbox(
        model, images, labels, params=make_params(chosen).foolbox, seed=1, folder=RunFolder(tmp_path), who="test"
    )
    assert [each[:3] for each in given] == [
        (*attack, size) for attack in (("L2", "a"), ("L0", "b")) for size in (2, 2, 1)
    ]
    assert len({seed for *_, seed in given}) == 6
    assert found["A"] == {"L2 0.25": 1.0, "L2 1": 0.0, "None": 0.0, "median_distance": 0.5}


def test_the_attacks_take_their_parameters(make_params):
    chosen = {"foolbox.ead_steps": 3, "foolbox.search_steps": 11, "foolbox.salt_and_pepper_repeats": 2}
    attacks = {name: attack for name, (_, attack) in table_6_attacks(make_params(chosen).foolbox).items()}
    assert attacks["EADAttack"].steps == 3
    blended = (attacks["LinearSearchBlendedUniformNoiseAttack"], attacks["L1FMNAttack"].start)
    assert {attacks["GaussianBlurAttack"].steps, *(each.steps for each in blended)} == {11}
    assert {each.directions for each in blended} == {11}
    assert attacks["SaltAndPepperNoiseAttack"].times == 2 and attacks["SaltAndPepperNoiseAttack"].attack.steps == 11
