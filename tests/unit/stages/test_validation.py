"""The stage that measures a trained network on validation images: its numbers, and how many images it has in memory."""

import importlib.util
import json
import re
import sys

import pytest
import torch
from pyautoattack.autopgd_base import APGDAttack

from pag_core.classifiers.building import save_classifier
from pag_core.compute.randomness import derived_seed
from pag_core.params.yaml_text import written_yaml
from pag_core.pipeline.artifacts import write_sealed_json
from pag_core.pipeline.paths import classifier_path, dataset_path, details_path
from tests.fixtures.samples import ROOT, changed

LAST_EPOCH = {"accuracy": 0.75, "cross_entropy": 0.5}


@pytest.fixture
def validation(tmp_path, monkeypatch, make_dataset, make_classifier, plain_params):
    """`validation(changes, baseline=False)`: the details and the headline that the stage writes; with its dataset."""
    monkeypatch.chdir(tmp_path)
    spec = importlib.util.spec_from_file_location("validation", ROOT / "stages/validation.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setattr(sys, "path", list(sys.path))
    spec.loader.exec_module(module)
    dataset = make_dataset(validation=6)
    monkeypatch.setattr(module, "read_dataset", {dataset_path("digits"): dataset}.__getitem__)
    for seed, who in enumerate(("classifier", "baseline")):
        network = make_classifier(seed=seed).eval()
        options = {"width": 4, "activation": None}
        save_classifier(
            classifier_path(who), network, arch="small_resnet", options=options, dataset=dataset, provenance={},
            training=LAST_EPOCH,
        )  # fmt: skip

    def run(changes, *, baseline=False):
        options = {
            "seed": 11,
            "device": "cpu",
            "validation.radii": {"L2": [0.5]},
            "validation.batch_size": 200,
            **changes,
        }
        (tmp_path / "params.yaml").write_text(written_yaml(changed(plain_params, options)), encoding="utf-8")
        module.main(baseline=baseline)
        place = tmp_path / "data/baseline_training.json" if baseline else details_path("training")
        return json.loads(place.read_text())

    run.dataset = dataset
    return run


def card(who):
    return json.loads((classifier_path(who) / "card.json").read_text())


@pytest.mark.parametrize("who", ["classifier", "baseline"])
def test_what_is_measured(validation, make_classifier, tmp_path, who):
    details = validation({"validation.images": 16}, baseline=who == "baseline")
    network = make_classifier(seed=int(who == "baseline")).eval().requires_grad_(False)
    split = validation.dataset.splits["validation"]
    images, labels = split.images.float() / 255, split.labels
    right = network(images).argmax(1) == labels
    # three classes: APGD on cross-entropy alone
    seed = derived_seed(11, "apgd", "L2", "0.5") % 2**31
    attack = APGDAttack(network, norm="L2", eps=0.5, n_iter=20, n_restarts=1, loss="ce", seed=seed, device="cpu")
    attacked = images[:16][right[:16]], labels[:16][right[:16]]
    left = network(attack.perturb(*attacked)).argmax(1) == attacked[1]
    measured = {"clean": right.double().mean().item(), "L2 0.5": int(left.sum()) / 16}
    assert details["validation"] == {
        "clean": measured["clean"],
        "APGD-20 on 16 images (fast proxy)": {"L2 0.5": measured["L2 0.5"]},
    }
    assert details["train"] == LAST_EPOCH
    assert details["provenance"]["inputs"] == {
        "dataset": validation.dataset.fingerprint, who: card(who)["checksum"]
    }  # fmt: skip
    headline = tmp_path / "metrics/training.json"
    assert headline.exists() == (who == "classifier")
    if headline.exists():
        expected = {"validation": {"clean": measured["clean"]}, "proxy": {"L2 0.5": measured["L2 0.5"]}}
        assert json.loads(headline.read_text()) == expected


def test_no_more_images_at_once_than_the_parameter_says(validation, monkeypatch):
    sizes, forward = [], torch.nn.Linear.forward

    def seen(layer, features):
        sizes.append(len(features))
        return forward(layer, features)

    monkeypatch.setattr(torch.nn.Linear, "forward", seen)
    validation({"validation.images": 16, "validation.batch_size": 5})
    assert max(sizes) == 5


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"validation.images": 19}, "validation.images is 19, but the split has 18 images"),
        (
            {"validation.images": 1, "earlier": True},
            "data/classifier does not say how its training ended.*train.py again",
        ),
    ],
)
def test_refusals_leave_the_network_as_it_is(validation, capsys, tmp_path, changes, words):
    if changes.pop("earlier", False):
        content = {key: value for key, value in card("classifier").items() if key not in ("training", "checksum")}
        write_sealed_json(classifier_path("classifier") / "card.json", content)
    before = (classifier_path("classifier") / "weights.safetensors").read_bytes()
    with pytest.raises(SystemExit):
        validation(changes)
    assert re.search(words, capsys.readouterr().err)
    assert (classifier_path("classifier") / "weights.safetensors").read_bytes() == before
    assert not (tmp_path / "metrics").exists()
