"""A classifier of a plain training loop, read from the files that people save: what it computes, and what is refused."""

import copy
import json
import os
import re
from pathlib import Path

import pytest
import torch
import typer.testing
from safetensors.torch import save_file
from torch import nn
from torch.optim.swa_utils import AveragedModel

from pag_core.classifiers.architectures import build_classifier
from pag_core.classifiers.building import load_classifier
from pag_core.classifiers.logits import place_of_logits
from pag_core.datasets.labelled_images import LabelledImages
from pag_core.datasets.prepared import read_dataset
from pag_core.errors import ParamsError, WeightsError
from pag_core.exchange import import_classifier as module
from pag_core.exchange.classifier_checkpoint import read_weights
from pag_core.exchange.import_classifier import parsed_values
from pag_core.params.yaml_text import written_yaml
from pag_core.pipeline.artifacts import file_digest
from pag_core.pipeline.paths import dataset_path
from tests.fixtures.samples import changed, write_prepared

SHAPE, CLASSES = (3, 16, 16), 4
# what the network was trained with: no usual choice, and one for each channel
MEAN, DEVIATION = (0.2, 0.5, 0.8), (0.1, 0.2, 0.3)
GIVEN = ("--mean", "0.2,0.5,0.8", "--std", "0.1,0.2,0.3")


def built():
    """ResNet-18, which has batch-norm and names of several parts."""
    torch.manual_seed(2)
    return build_classifier("resnet18", width=None, activation=None, image_shape=SHAPE, classes=CLASSES).network


def named(prefix, network):
    return {prefix + name: tensor for name, tensor in network.state_dict().items()}


def optimizer_of(network):
    optimizer = torch.optim.AdamW(network.parameters())
    sum(parameter.sum() for parameter in network.parameters()).backward()
    optimizer.step()
    return optimizer.state_dict()


WRAPPED = {
    "plain": (lambda network: network.state_dict(), ""),
    "DataParallel": (lambda network: nn.DataParallel(network).state_dict(), "module."),
    "torch.compile": (lambda network: torch.compile(network).state_dict(), "_orig_mod."),
    "behind a layer that normalizes": (lambda network: nn.Sequential(nn.Identity(), network).state_dict(), "1."),
    "a script": (
        lambda network: {"net": network.state_dict(), "optimizer": optimizer_of(copy.deepcopy(network)), "acc": 93.1},
        "net.",
    ),
    "Lightning": (lambda network: {"state_dict": named("model.", network), "epoch": 3}, "state_dict.model."),
    "an average": (lambda network: {"ema": AveragedModel(network).state_dict()}, "ema.module."),
}


@pytest.mark.parametrize(("save", "prefix"), WRAPPED.values(), ids=WRAPPED)
def test_weights_are_found_whatever_stands_before_their_names(tmp_path, save, prefix):
    network = built()
    torch.save(save(network), tmp_path / "some.pt")
    read = read_weights(tmp_path / "some.pt", built())
    assert read.prefix == prefix and list(read.tensors) == list(network.state_dict())
    assert all(torch.equal(read.tensors[name], tensor) for name, tensor in network.state_dict().items())


def test_safetensors_and_half_precision_are_read(tmp_path):
    network = built().half()
    save_file(
        {name: tensor.contiguous() for name, tensor in network.state_dict().items()}, tmp_path / "some.safetensors"
    )
    read = read_weights(tmp_path / "some.safetensors", built())
    for name, tensor in network.state_dict().items():
        assert torch.equal(read.tensors[name], tensor.float() if tensor.is_floating_point() else tensor)
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "some.safetensors").read_bytes()[:100])
    with pytest.raises(WeightsError, match=r"cut\.safetensors is not a file of safetensors"):
        read_weights(tmp_path / "cut.safetensors", built())


def test_of_several_networks_one_is_asked_for(tmp_path):
    network, average = built(), built()
    average.fc.weight.data += 1
    torch.save({"model": network.state_dict(), "ema": average.state_dict()}, tmp_path / "some.pt")
    with pytest.raises(WeightsError, match='several networks; name one: --weights "model" or --weights "ema"'):
        read_weights(tmp_path / "some.pt", built())
    assert torch.equal(read_weights(tmp_path / "some.pt", built(), "ema").tensors["fc.weight"], average.fc.weight)


def test_counts_of_batches_may_be_missing(tmp_path):
    """Nothing is computed from them in eval mode, and files of old versions of torch lack them."""
    state = {name: tensor for name, tensor in built().state_dict().items() if "num_batches" not in name}
    torch.save(state, tmp_path / "some.pt")
    assert read_weights(tmp_path / "some.pt", built()).tensors.keys() == built().state_dict().keys()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda s: s.pop("fc.bias"), "missing: fc.bias$"),
        (lambda s: s.update({"head.weight": torch.zeros(2)}), "no part of the network: head.weight$"),
        (
            lambda s: s.update({"fc.weight": torch.zeros(100, 512), "fc.bias": torch.zeros(100)}),
            r"of another shape: fc.weight is \[100, 512\], and \[4, 512\] in the network, fc.bias is \[100\], and \[4\] in",
        ),
        (lambda s: [s.pop(name) for name in list(s) if name.startswith("layer4")], r"missing: layer4.*and \d+ more"),
        (lambda s: s["fc.bias"].fill_(torch.inf), "fc.bias holds values that are not finite"),
        (lambda s: (s.clear(), s.update({"a": torch.zeros(2)})), "has no tensor of the network: it has a; .*--arch"),
    ],
)
def test_weights_that_do_not_fit_are_named(tmp_path, spoil, words):
    state = built().state_dict()
    spoil(state)
    torch.save(state, tmp_path / "some.pt")
    with pytest.raises(WeightsError, match=words):
        read_weights(tmp_path / "some.pt", built())


class Evil:
    """An object whose unpickling runs a command."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return (os.system, (self.command,))


@pytest.mark.parametrize("suffix", ["pt", "pth", "ckpt"])
def test_code_in_a_file_is_refused_and_not_run(tmp_path, suffix):
    sentinel = tmp_path / "was run"
    path = tmp_path / f"some.{suffix}"
    torch.save({**built().state_dict(), "more": Evil(f'touch "{sentinel}"')}, path)
    with pytest.raises(WeightsError, match=r"nothing of it was run \(.*system"):
        read_weights(path, built())
    assert not sentinel.exists()
    torch.load(path, weights_only=False)
    assert sentinel.exists(), "the file would have done harm"


LOGITS = torch.zeros(2, CLASSES)


@pytest.mark.parametrize(
    ("returned", "place"),
    [
        (LOGITS, None),
        ((LOGITS, torch.zeros(2, 512)), 0),
        ([None, LOGITS], 1),
        ({"logits": LOGITS, "auxiliary": LOGITS}, "logits"),
        ({"features": torch.zeros(2, 8), "out": LOGITS}, "out"),
    ],
)
def test_logits_are_taken_where_it_is_plain_which(returned, place):
    assert place_of_logits(returned, 2, CLASSES) == place


@pytest.mark.parametrize(
    ("returned", "words"),
    [
        (torch.zeros(2, 7), r"returns \[2, 7\] for 2 images of 4 classes"),
        ((LOGITS, LOGITS), r"tuple of 0: \[2, 4\], 1: \[2, 4\], of which 2 may be .*`return returned\[0\]`"),
        ({"a": LOGITS, "b": LOGITS}, r"dict of a: \[2, 4\], b: \[2, 4\], of which 2 .*`return returned\['a'\]`"),
        ((torch.zeros(2, 9), "x"), r"tuple of 0: \[2, 9\], 1: str, of which 0 may be the logits \[2, 4\]; wrap it"),
        (object(), "returns a object; wrap it in a module"),
    ],
)
def test_else_it_is_said_what_to_wrap(returned, words):
    with pytest.raises(ParamsError, match=words):
        place_of_logits(returned, 2, CLASSES)


def test_means_are_one_or_one_for_each_channel():
    assert parsed_values("0.5", 3, "--mean") == (0.5,) * 3 and parsed_values("0.1,0.2,0.3", 3, "--std") == (
        0.1,
        0.2,
        0.3,
    )
    for text, option, words in (
        ("0.1,0.2", "--mean", "has 2 numbers; the images have 3 channels"),
        ("x", "--mean", "is not a number"),
        ("0", "--std", "above 0"),
        ("125.3,123,113.9", "--mean", r"is of pixels in \[0, 255\].*--mean 0.4914,0.4824,0.4467"),
    ):
        with pytest.raises(ParamsError, match=words):
            parsed_values(text, 3, option)


# --- the command


@pytest.fixture
def trained(tmp_path, monkeypatch, make_dataset, plain_params):
    """`trained(scale)`: the file of a network that a plain loop trained on pixels times `scale`, in a project; its dataset."""
    monkeypatch.chdir(tmp_path)
    dataset = make_dataset(classes=CLASSES, shape=SHAPE, validation=15)
    splits = {name: LabelledImages(part.images.numpy(), part.labels.numpy()) for name, part in dataset.splits.items()}
    write_prepared(dataset_path("digits"), dataset.class_names, splits, {})
    (tmp_path / "params.yaml").write_text(written_yaml(changed(plain_params, {"device": "cpu"})), encoding="utf-8")

    def train(mean=MEAN, deviation=DEVIATION):
        network, split = built(), dataset.splits["train"]
        optimizer = torch.optim.SGD(network.parameters(), lr=0.05)
        images = (split.images / 255 - torch.tensor(mean).view(-1, 1, 1)) / torch.tensor(deviation).view(-1, 1, 1)
        for _ in range(6):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(images), split.labels).backward()
            optimizer.step()
        for _ in range(40):  # the statistics of batch-norm follow
            network(images)
        torch.save(network.state_dict(), "network.pt")
        return network.eval()

    return train


def run(*arguments):
    """What the command prints, and what it says as it ends."""
    app = typer.Typer()
    app.command()(module.main)
    done = typer.testing.CliRunner().invoke(app, ["network.pt", "imported", "--arch", "resnet18", *arguments])
    return done.exit_code, done.output


def test_an_imported_classifier_computes_what_its_network_did(trained, cpu):
    network = trained()
    code, said = run(*GIVEN, "--accuracy", "0.8")
    assert code == 0, said
    dataset = read_dataset(dataset_path("digits"))
    validation = dataset.splits["validation"]
    images = (validation.images / 255 - torch.tensor(MEAN).view(-1, 1, 1)) / torch.tensor(DEVIATION).view(-1, 1, 1)
    with torch.no_grad():
        expected = network(images)
    right = (expected.argmax(1) == validation.labels).double().mean().item()
    assert right > 0.9 and f"accuracy on 60 validation images: {right:.1%}" in said and "Warning" not in said
    classifier, saved = load_classifier(Path("imported"), dataset, cpu)
    torch.testing.assert_close(classifier(validation.pixels()), expected)
    card = saved.card
    assert card["dataset"] is None and "training" not in card
    assert card["provenance"]["inputs"]["checkpoint"] == file_digest(Path("network.pt"))
    assert card["imported"] == {"file": "network.pt", "weights": "", "accuracy": right, "validation_images": 60}
    assert card["normalisation"]["mean"] == pytest.approx(MEAN) and card["normalisation"]["deviation"] == pytest.approx(
        DEVIATION
    )
    assert json.loads((Path("imported") / "card.json").read_text())["class_names"] == list(dataset.class_names)


@pytest.mark.parametrize(
    ("trained_with", "words"),
    [
        (((0.0,) * 3, (1 / 255,) * 3), r"pixels in \[0, 255\] \(--mean 0 --std 0.003922\) gives"),
        (((0.5,) * 3, (0.5,) * 3), r"pixels in \[-1, 1\] \(--mean 0.5 --std 0.5\) gives"),
    ],
)
def test_a_normalization_that_gives_more_is_pointed_out(trained, trained_with, words):
    trained(*trained_with)
    wrong = ("--mean", "0.9", "--std", "0.05")
    code, said = run(*wrong)
    assert code == 0 and re.search(f"Warning: another normalization, {words}", said), said
    assert Path("imported").exists()
    Path("imported").rename("before")
    code, said = run(*wrong, "--accuracy", "0.95")
    assert code == 1
    assert re.search(f"far below the 95.0% of --accuracy: another normalization, {words}", said), said
    assert not Path("imported").exists()
