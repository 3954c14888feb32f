"""What an attack found about the baseline is joined only with the same attack on the classifier."""

import json

import pytest
import torch

from pag_core.classifiers.building import save_classifier
from pag_core.datasets.labelled_images import LabelledImages
from pag_core.errors import ArtifactError
from pag_core.evaluation.subject import baseline_place, keep_result, open_subject
from pag_core.pipeline.artifacts import write_json
from pag_core.pipeline.paths import METRICS, classifier_path, dataset_path, details_path
from pag_core.pipeline.saved_network import read_card, save_network
from pag_core.pipeline.stage import OpenStage
from tests.fixtures.samples import write_prepared

RECORD = {"params": {"autoattack": {"images": 10, "radii": {"L2": ["1"]}}}, "seed": 1, "inputs": {"dataset": "a" * 64}}


def keep(who, provenance, found):
    keep_result(
        "autoattack",
        who,
        found,
        provenance=provenance,
        head={"images": 10},
        headline=lambda measured: {"L2 1": measured[who]},
    )


def train_baseline(weight):
    save_network(classifier_path("baseline"), {"weight": torch.tensor(weight)}, {"kind": "classifier"})
    return read_card(classifier_path("baseline"), "classifier")["checksum"]


@pytest.fixture(autouse=True)
def baseline(tmp_path, monkeypatch):
    """The current folder after the attack on the baseline, whose fingerprint it is."""
    monkeypatch.chdir(tmp_path)
    fingerprint = train_baseline(1.0)
    keep("baseline", {**RECORD, "inputs": {**RECORD["inputs"], "baseline": fingerprint}}, 0.25)
    return fingerprint


def test_the_same_attack_on_the_same_images_is_joined(baseline):
    of_model = {**RECORD, "inputs": {**RECORD["inputs"], "classifier": "c" * 64}}
    keep("model", of_model, 0.5)
    details = json.loads(details_path("autoattack").read_text())
    assert (details["model"], details["baseline"], details["images"]) == (0.5, 0.25, 10)
    assert details["provenance"]["baseline"]["inputs"]["baseline"] == baseline
    assert details["provenance"]["model"] == of_model
    assert json.loads((METRICS / "autoattack.json").read_text()) == {"L2 1": 0.5}


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"inputs": {"dataset": "d" * 64}}, "dataset a.* has d"),
        ({"seed": 2}, "seed 1, .* has 2"),
        ({"params": {"autoattack": {"images": 200, "radii": {"L2": ["1"]}}}}, "params .*10.* has .*200"),
    ],
)
def test_another_attack_or_other_images_are_refused(other, words):
    with pytest.raises(
        ArtifactError, match=rf"{baseline_place('autoattack')} .*{words}.*autoattack.py --baseline again"
    ):
        keep("model", {**RECORD, **other}, 0.5)
    assert not METRICS.exists()


def test_an_attack_on_another_baseline_than_there_is_now_is_refused(baseline):
    """As after `python stages/train.py --baseline` with another method; and it is refused when the attack begins."""
    now = train_baseline(2.0)
    words = (
        rf"another baseline \(fingerprint {baseline[:12]}\) than .* now \({now[:12]}\).*autoattack.py --baseline again"
    )
    with pytest.raises(ArtifactError, match=words):
        keep("model", RECORD, 0.5)
    assert not METRICS.exists()
    train_baseline(1.0)
    keep("model", RECORD, 0.5)


@pytest.fixture
def opened(dataset, make_classifier, make_params, cpu):
    """A stage after training and an attack on the baseline, whose fingerprint is `opened.beside`."""
    splits = {name: LabelledImages(part.images.numpy(), part.labels.numpy()) for name, part in dataset.splits.items()}
    write_prepared(dataset_path("digits"), dataset.class_names, splits, {})
    for seed, who in enumerate(("classifier", "baseline")):
        options = {"width": 4, "activation": None}
        network = make_classifier(seed=seed)
        save_classifier(
            classifier_path(who), network, arch="small_resnet", options=options, dataset=dataset, provenance={}
        )
    opened = OpenStage("autoattack_classifier", ("dataset", "seed", "autoattack"))
    opened.all_params = make_params({"seed": 1, "dataset": "digits", "autoattack.images": 4, "processes": 3})
    opened.device = cpu
    opened.beside = read_card(classifier_path("baseline"), "classifier")["checksum"]
    attacked(opened, dataset, opened.beside)
    return opened


def attacked(opened, dataset, fingerprint):
    record = {
        "params": opened.all_params.section("dataset", "autoattack"), "seed": 1,
        "inputs": {"dataset": dataset.fingerprint, "baseline": fingerprint},
    }  # fmt: skip
    write_json(baseline_place("autoattack"), {"result": 0.25, "provenance": record})


def test_what_an_attack_is_given(opened, dataset, make_classifier):
    """The record does not tell how many processes shared the work; the folder in which they share it does."""
    network = make_classifier(seed=0).eval()
    with open_subject(opened, "autoattack", ("classifier",)) as subject:
        assert torch.equal(subject.images, dataset.splits["test"].images[:4].float() / 255)
        assert torch.equal(subject.labels, dataset.splits["test"].labels[:4])
        torch.testing.assert_close(subject.networks["classifier"](subject.images), network(subject.images))
        assert subject.provenance["inputs"] == {
            "dataset": dataset.fingerprint, "classifier": read_card(classifier_path("classifier"), "classifier")["checksum"]
        }  # fmt: skip
        assert (subject.classes, subject.processes) == (3, 3) and "processes" not in subject.provenance
        several = subject.folder.path
    opened.all_params = opened.all_params.model_copy(update={"processes": 2})
    with open_subject(opened, "autoattack", ("classifier",)) as subject:
        assert subject.folder.path != several


def test_a_stale_attack_on_the_baseline_is_refused_before_that_on_the_classifier(opened, dataset):
    attacked(opened, dataset, "9" * 64)
    words = rf"another baseline \(fingerprint 9{{12}}\) than .* \({opened.beside[:12]}\)"
    with pytest.raises(ArtifactError, match=words), open_subject(opened, "autoattack", ("classifier",)):
        pytest.fail("the attack has begun")
    # the baseline itself can be attacked again
    with open_subject(opened, "autoattack", ("baseline",)) as subject:
        assert subject.provenance["inputs"]["baseline"] == opened.beside
