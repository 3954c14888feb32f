"""Masked gradients are found, and a model without them passes."""

import torch
from torch import nn

from pag_core.evaluation.masking import masking_checks
from pag_core.evaluation.pgd import pgd_images
from pag_core.pipeline.checkpoint import RunFolder
from tests.linear_models import linear
from tests.samples import labelled_images


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
