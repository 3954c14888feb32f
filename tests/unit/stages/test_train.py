"""The training stage: which target gradients its alignment term has, and which method trains the model and the baseline."""

import importlib.util
import io
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from pag_core.compute.randomness import generator
from pag_core.datasets.labelled_images import LabelledImages
from pag_core.errors import ParamsError
from pag_core.gradient_store.store import GradientStore, SmallStore, write_small_store
from pag_core.gradient_store.targets import DenseGradients, RepresentativeGradients
from pag_core.gradients.controls import OfAnotherClass, OfAnotherImage, OfShuffledPixels, other_images
from pag_core.objective.methods import build_method
from pag_core.params.yaml_text import written_yaml
from pag_core.pipeline.checkpoint import RunFolder
from pag_core.pipeline.paths import dataset_path, gradients_path
from pag_core.pipeline.stage import OpenStage
from tests.fixtures.samples import ROOT, changed, gaussian, write_dense, write_prepared

SEED, CLASSES, IMAGES = 11, 3, 36
CONTROLS = {"other_image": OfAnotherImage, "other_class": OfAnotherClass, "shuffled_pixels": OfShuffledPixels}
STORES = {"sbg": DenseGradients, "cm": RepresentativeGradients}
FEEDS = ({"feed.mode": "resident"}, {"feed.mode": "memory_map"}, {"feed.window_shards": 2})


@pytest.fixture
def train(monkeypatch):
    """The stage as a module."""
    spec = importlib.util.spec_from_file_location("train", ROOT / "stages/train.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setattr(sys, "path", list(sys.path))
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def place(tmp_path, dataset, monkeypatch):
    """The folder that the stage runs in, with stores of score-based gradients and of class means."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    gradients = {"train": gaussian(IMAGES, CLASSES), "test": gaussian(1, CLASSES)}
    write_dense(gradients_path("sbg"), tmp_path / "work", dataset, gradients)
    means = torch.rand(CLASSES, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    content = SmallStore("representatives", {"representatives": means})
    write_small_store(gradients_path("cm"), dataset, "cm", content, {"inputs": {}})
    return tmp_path


@pytest.fixture
def term_of(train, place, dataset, make_params, cpu):
    stores = {source: GradientStore(gradients_path(source)) for source in STORES}

    def make(**changes):
        opened = OpenStage("classifier", train.READS["classifier"])
        opened.all_params, opened.device = make_params({"seed": SEED, "lambda": 0.7, **changes}), cpu
        store = stores.get(opened.params.source)
        return train._alignment_term(opened, dataset, store, RunFolder(place / ".cache" / "run"))

    return make


def looked_up(store, labels, control, image, label):
    """g(x, c) that training on `control` has for an image and a class, out of a store: [C, H, W]."""
    if control == "other_image":
        image = int(other_images(labels, seed=SEED)[image])
    if control == "other_class":
        label = (label + 1) % CLASSES
    gradient = store(torch.tensor([image]), torch.tensor([[label]]))[0, 0]
    if control == "shuffled_pixels":
        order = torch.randperm(64, generator=generator("cpu", SEED, "control"))
        gradient = gradient.flatten(1)[:, order].view(gradient.shape)
    return gradient


@pytest.mark.parametrize("source", STORES)
@pytest.mark.parametrize("control", [None, *CONTROLS])
def test_the_alignment_term_has_the_gradients_of_the_control(term_of, dataset, cpu, control, source):
    term = term_of(source=source, control=control)
    assert (term.lambda_, term.config.output) == (0.7, {"sbg": "log_softmax", "cm": "logit"}[source])
    assert type(term.targets) is CONTROLS.get(control, STORES[source])
    store = GradientStore(gradients_path(source)).gradients(dataset, "train", cpu)
    slots = torch.arange(CLASSES).expand(IMAGES, CLASSES)
    found = term.targets(torch.arange(IMAGES), slots)
    labels = dataset.splits["train"].labels
    for image in range(IMAGES):
        for label in range(CLASSES):
            assert torch.equal(found[image, label], looked_up(store, labels, control, image, label))
    assert torch.equal(found, store(torch.arange(IMAGES), slots)) == (control is None)


@pytest.mark.parametrize("changes", [{"source": "sbg_online"}, {"source": "sbg", "feed.window_shards": 2}])
@pytest.mark.parametrize("control", CONTROLS)
def test_a_control_without_a_store_in_any_order_is_refused(train, term_of, monkeypatch, control, changes):
    monkeypatch.setattr(train, "open_online", lambda *arguments: None)
    words = rf"control is {control}, .* neither with source sbg_online nor with feed\.window_shards"
    with pytest.raises(ParamsError, match=words):
        term_of(control=control, **changes)
    assert term_of(control=None, **changes).lambda_ == 0.7


class Received(Exception):
    pass


@pytest.fixture
def received(train, place, dataset, plain_params, monkeypatch):
    """`received(changes, baseline=...)`: what the stage, run in a folder of its own, gives the Trainer."""

    def trainer(**given):
        raise Received(given)

    parts = {name: LabelledImages(part.images.numpy(), part.labels.numpy()) for name, part in dataset.splits.items()}
    write_prepared(dataset_path("digits"), dataset.class_names, parts, {})
    monkeypatch.setattr(train, "Trainer", trainer)

    def run(changes, *, baseline):
        options = {"seed": SEED, "device": "cpu", "checkpoint_seconds": 7, **changes}
        (place / "params.yaml").write_text(written_yaml(changed(plain_params, options)), encoding="utf-8")
        with pytest.raises(Received) as caught:
            train.main(baseline=baseline)
        return SimpleNamespace(**caught.value.args[0])

    return run


@pytest.mark.parametrize("changes", [{"source": "cm"}, *({"source": "sbg", **feed} for feed in FEEDS)])
def test_training_opens_the_manifest_once(received, monkeypatch, changes):
    read, opener = [], io.open
    monkeypatch.setattr(io, "open", lambda path, *rest, **how: read.append(path) or opener(path, *rest, **how))
    received(changes, baseline=False)
    assert read.count(gradients_path(changes["source"]) / "manifest.json") == 1
    read.clear()
    received(changes, baseline=True)
    assert not [path for path in read if gradients_path(changes["source"]) in Path(path).parents]


def test_model_and_baseline_have_methods_of_their_own_and_the_model_alone_has_the_term(received, make_params):
    changes = {
        "source": "sbg", "control": "other_class", "lambda": 1.25, "method": "trades", "baseline_method": "at",
        "trades.beta": 2.5, "at.steps": 3, "objective.classes_per_step": 2,
    }  # fmt: skip
    params = make_params(changes)
    model, baseline = (received(changes, baseline=flag) for flag in (False, True))
    assert (model.method, baseline.method) == (build_method("trades", params), build_method("at", params))
    assert (model.method.params.beta, baseline.method.params.steps) == (2.5, 3)
    assert type(model.term.targets) is OfAnotherClass and model.term.lambda_ == 1.25
    assert baseline.term is None
    # all else is one recipe
    assert model.config == params.objective and model.params == baseline.params
    of_gradients = ("differentiation", "batch_norm")
    assert all(getattr(model.config, key) == getattr(baseline.config, key) for key in of_gradients)
    assert model.seed == baseline.seed == SEED
    assert model.checkpoint_seconds == baseline.checkpoint_seconds == 7


def test_an_option_that_the_network_refuses_is_told_before_images_are_copied(train, received, monkeypatch, capsys):
    opened = []
    monkeypatch.setattr(train, "open_images", lambda dataset, *rest, **how: opened.append(dataset) or dataset)
    received({"source": "cm"}, baseline=False)
    assert len(opened) == 1
    with pytest.raises(SystemExit):
        received({"source": "cm", "arch": "vit", "classifier.patch_size": 3}, baseline=False)
    assert "patch_size is 3" in capsys.readouterr().err
    assert len(opened) == 1
