"""Masked gradients are found, and a model without them passes."""

import pytest
import torch
from torch import nn

from pag_core.evaluation.masking import _Attacks, masking_checks, masking_verdict
from pag_core.evaluation.pgd import pgd_accuracy, pgd_images
from pag_core.pipeline.checkpoint import RunFolder
from tests.fixtures.linear_models import linear
from tests.fixtures.samples import Killed, labelled_images


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
            "masking.radii": {"Linf": ["8/255", 0.5]},
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
    # and the largest radius, at which no model can be right, leaves some images standing
    assert result["curve"]["model"]["Linf 0.5"] > 0
    assert result["verdict"] == {"reaches_zero": False, "transfer_weaker": False, "square_weaker": False}


def test_an_open_model_passes(tmp_path, make_params):
    model, baseline = linear(classes=3, side=6), linear(classes=3, side=6, seed=9)
    images, labels = labelled_images(model, 40, side=6)
    params = masking_params(make_params)
    result = masking_checks(
        model, baseline, images, labels, classes=3, params=params, seed=1, folder=RunFolder(tmp_path)
    )
    assert result["verdict"] == {"reaches_zero": True, "transfer_weaker": True, "square_weaker": True}
    # by its value 8/255 is the smaller radius, as a word the larger
    assert list(result["curve"]["model"]) == ["Linf 8/255", "Linf 0.5"]
    assert result["curve"]["model"]["Linf 8/255"] > result["curve"]["model"]["Linf 0.5"] == 0
    right = (baseline(images).argmax(1) == labels).double().mean().item()
    assert result["clean"] == {"model": 1.0, "baseline": right} and right < 1
    options = {"radii": {"Linf": ["8/255", "0.5"]}, "steps": 10, "seed": 1, "batch_size": 200}
    assert result["curve"]["baseline"] == pgd_accuracy(baseline, images, labels, **options)
    assert result["curve"]["baseline"]["Linf 8/255"] < result["curve"]["model"]["Linf 8/255"]
    # on a linear model no attack is stronger than a step along the sign of the gradient of each margin
    weight = model.weight if hasattr(model, "weight") else next(model.parameters())
    logits, rows = model(images), torch.arange(40)
    margins = logits[rows, labels][:, None] - logits
    reach = 0.1 * (weight[labels][:, None] - weight[None]).abs().sum(2)
    margins[rows, labels] = torch.inf
    assert (margins > reach).all(1).double().mean().item() <= result["white_box"]["Linf 0.1"] <= 0.975
    adversarial = pgd_images(baseline, images, labels, norm="Linf", radius="0.1", steps=10, seed=1, batch_size=200)
    assert result["transfer"] == {"Linf 0.1": (model(adversarial).argmax(1) == labels).double().mean().item()}


class KeptUnits(RunFolder):
    """Keeps `survive` units, then dies in place of the next."""

    def __init__(self, path, survive=100):
        super().__init__(path)
        self.survive, self.kept = survive, []

    def save_unit(self, name, result):
        if len(self.kept) == self.survive:
            raise Killed
        self.kept.append(name)
        super().save_unit(name, result)


def test_a_killed_run_goes_on_to_the_same_result(tmp_path, make_params):
    model, baseline = linear(classes=3, side=6), linear(classes=3, side=6, seed=9)
    images, labels = labelled_images(model, 40, side=6)
    params = masking_params(make_params)

    def checks(folder):
        return masking_checks(model, baseline, images, labels, classes=3, params=params, seed=1, folder=folder)

    unbroken = KeptUnits(tmp_path / "whole")
    whole = checks(unbroken)
    with pytest.raises(Killed):
        checks(KeptUnits(tmp_path / "run", survive=1))
    torch.manual_seed(12345)
    rest = KeptUnits(tmp_path / "run")
    assert checks(rest) == whole
    assert len(unbroken.kept) == 7 and rest.kept == unbroken.kept[1:]


@pytest.mark.parametrize(
    ("group", "setting", "accuracy", "sign"),
    [
        ("model", "L2 1", 0.9, None),
        ("model", "L2 4", 0.01, "reaches_zero"),
        ("model", "Linf 0.3", 0.01, "reaches_zero"),
        ("transfer", "Linf 0.1", 0.2, "transfer_weaker"),
        ("square", "L2 0.5", 0.3, "square_weaker"),
    ],
)
def test_one_setting_is_enough_for_a_sign_of_masking(group, setting, accuracy, sign):
    """Where nothing is masked, the curves end at 0 and no attack is stronger than the white-box one."""
    accuracies = {
        "model": {"L2 1": 0.5, "L2 4": 0.0, "Linf 0.3": 0.0},
        "white_box": {"L2 0.5": 0.4, "Linf 0.1": 0.3},
        "transfer": {"L2 0.5": 0.4, "Linf 0.1": 0.8},
        "square": {"L2 0.5": 0.5, "Linf 0.1": 0.3},
    }
    accuracies[group][setting] = accuracy
    expected = {check: check != sign for check in ("reaches_zero", "transfer_weaker", "square_weaker")}
    assert masking_verdict(accuracies, ["L2 4", "Linf 0.3"]) == expected


def test_square_is_given_the_radius_and_its_budget(make_params, monkeypatch):
    given = []

    class Square:
        def __init__(self, network, **options):
            given.append(options)

        def perturb(self, images, labels):
            return images

    monkeypatch.setattr("pag_core.evaluation.masking.SquareAttack", Square)
    model = linear(classes=3, side=6)
    images, labels = labelled_images(model, 4, side=6)
    attacks = _Attacks(model, model, images, labels, 3, masking_params(make_params), 1)
    settings = [("Linf", "8/255"), ("Linf", "0.5"), ("L2", "0.5")]
    assert [attacks.square(*setting) for setting in settings] == [
        {f"{norm} {radius}": 1.0} for norm, radius in settings
    ]
    assert [(each["norm"], each["eps"], each["n_queries"]) for each in given] == [
        ("Linf", 8 / 255, 100), ("Linf", 0.5, 100), ("L2", 0.5, 100)
    ]  # fmt: skip
    assert len({each["seed"] for each in given}) == 3
