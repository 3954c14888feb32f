"""A network on disk is what was saved, or it is refused."""

import json

import pytest
import torch

from pag_core.classifiers.architectures import ARCHITECTURES
from pag_core.classifiers.building import build_classifier, load_classifier, save_classifier
from pag_core.datasets.prepared import Dataset, Split
from pag_core.diffusion.network import load_noise_predictor
from pag_core.errors import ParamsError, TrainingDiverged, WeightsError
from pag_core.pipeline.checkpoint import RunFolder
from pag_core.pipeline.loop import CheckpointClock
from pag_core.pipeline.saved_network import load_network, save_network


def last(tensors):
    """The bias of the last layer, of as many values as there are classes, or channels."""
    return list(tensors)[-1]


def make_3_channels(dataset):
    """The same classes of colour images, so that both kinds of network have three outputs."""
    parts = {name: Split(part.images.expand(-1, 3, -1, -1), part.labels) for name, part in dataset.splits.items()}
    return Dataset(dataset.class_names, dataset.fingerprint, parts)


@pytest.fixture
def saved(tmp_path):
    tensors = {"a.weight": torch.randn(3, 4), "b": torch.arange(5), "c": torch.zeros(2, 3).t()}
    save_network(tmp_path / "net", tensors, {"kind": "classifier", "arch": "x"})
    return tmp_path / "net", tensors


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_are_not_saved(saved, value):
    folder, tensors = saved
    before = load_network(folder, "classifier").fingerprint
    tensors["a.weight"][2, 1] = value
    with pytest.raises(TrainingDiverged, match=r"net: a\.weight is not finite"):
        save_network(folder, tensors, {"kind": "classifier"})
    assert load_network(folder, "classifier").fingerprint == before


@pytest.mark.parametrize("part", ["classifier", "average"])
def test_neither_is_a_checkpoint_of_such_weights(tmp_path, cpu, part):
    clock, state = (
        CheckpointClock(RunFolder(tmp_path), 0.0),
        {"classifier": {"w": torch.ones(2)}, "average": None, "step": 1},
    )
    clock.tick(lambda: state)
    with pytest.raises(TrainingDiverged, match=f"{part}: w is not finite"):
        clock.tick(lambda: {**state, part: {"w": torch.tensor([1.0, torch.nan])}, "step": 2})
    assert RunFolder(tmp_path).load_checkpoint(cpu)["step"] == 1


def test_round_trip(saved):
    folder, tensors = saved
    network = load_network(folder, "classifier")
    assert network.tensors.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(network.tensors[name], tensor) and network.tensors[name].dtype == tensor.dtype
    assert network.card["arch"] == "x" and len(network.fingerprint) == 64


def test_every_flipped_byte_of_the_weights_is_refused(saved):
    folder, _ = saved
    path = folder / "weights.safetensors"
    whole = path.read_bytes()
    for position in (0, 8, 20, len(whole) // 2, len(whole) - 1):
        broken = bytearray(whole)
        broken[position] ^= 1
        path.write_bytes(broken)
        with pytest.raises(WeightsError, match="damaged"):
            load_network(folder, "classifier")
    path.write_bytes(whole[:-1])
    with pytest.raises(WeightsError, match="damaged"):
        load_network(folder, "classifier")


def test_other_kinds_are_refused(saved):
    with pytest.raises(WeightsError, match="holds a classifier, a diffusion is needed"):
        load_network(saved[0], "diffusion")


@pytest.mark.parametrize("missing", ["card.json", "weights.safetensors", None])
def test_missing_files_are_named(saved, tmp_path, missing):
    folder = saved[0]
    if missing:
        (folder / missing).unlink()
    else:
        folder = tmp_path / "nothing"
    with pytest.raises(WeightsError, match=missing or "card.json"):
        load_network(folder, "classifier")


@pytest.mark.parametrize("text", ["{", "", "\x00"])
def test_a_damaged_card_is_refused(saved, text):
    (saved[0] / "card.json").write_text(text)
    with pytest.raises(WeightsError, match=r"card.json"):
        load_network(saved[0], "classifier")


def test_classifier_round_trip(tmp_path, dataset, make_dataset, make_classifier, cpu):
    classifier = make_classifier(width=4).train()
    save_classifier(
        tmp_path / "c", classifier, arch="small_resnet", options={"width": 4, "activation": None}, dataset=dataset,
        provenance={"seed": 1},
    )  # fmt: skip
    again, saved = load_classifier(tmp_path / "c", dataset, cpu)
    images = dataset.splits["test"].pixels()
    assert torch.equal(again(images), classifier(images))
    assert not again.training and not any(parameter.requires_grad for parameter in again.parameters())
    assert saved.card["dataset"] == dataset.fingerprint and saved.card["provenance"] == {"seed": 1}
    assert json.loads((tmp_path / "c" / "card.json").read_text())["normalisation"]["input_range"] == [0, 1]
    for other in (make_dataset(classes=4), make_dataset(shape=(3, 8, 8))):
        with pytest.raises(WeightsError, match="was trained on 3 classes"):
            load_classifier(tmp_path / "c", other, cpu)
    # of the same classes and shape, of which another split may have other images for testing
    with pytest.raises(WeightsError, match=f"other images or another split.*{dataset.fingerprint[:12]}.*train again"):
        load_classifier(tmp_path / "c", make_dataset(seed=99), cpu)
    with pytest.raises(WeightsError, match="a diffusion is needed"):
        load_noise_predictor(tmp_path / "c", dataset, cpu)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda t: {f"module.{name}": tensor for name, tensor in t.items()}, r"absent.*it holds module\."),
        (lambda t: {**t, "extra": torch.zeros(2)}, r"extra is \[2\], and no part of the network"),
        (lambda t: {**t, last(t): torch.zeros(7, 7)}, r"\S+ is \[7, 7\], and \[3\] in the network"),
        (lambda t: {name: t[name] for name in t if name != last(t)}, r"bias is absent, and \[3\] in the network"),
    ],
    ids=["a prefix", "more", "another shape", "fewer"],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["classifier", "diffusion"])
def test_weights_of_another_network_are_named(
    tmp_path, dataset, make_classifier, make_predictor, cpu, kind, spoil, words
):
    """As a script of one's own may save them, with a card that is in order."""
    card = {
        "kind": kind,
        "class_names": list(dataset.class_names),
        "image_shape": [1, 8, 8],
        "dataset": dataset.fingerprint,
    }
    if kind == "classifier":
        tensors, load = make_classifier().state_dict(), load_classifier
        card |= {"arch": "small_resnet", "options": {"width": 4, "activation": None}}
    else:
        predictor, load = make_predictor(make_3_channels(dataset)), load_noise_predictor
        card |= {"image_shape": [3, 8, 8], "architecture": predictor.card}
        tensors, dataset = predictor.network.state_dict(), make_3_channels(dataset)
    save_network(tmp_path / "c", spoil(tensors), card)
    with pytest.raises(WeightsError, match=f"c does not fit the network that its card describes: .*{words}"):
        load(tmp_path / "c", dataset, cpu)
    save_network(tmp_path / "c", tensors, card)
    load(tmp_path / "c", dataset, cpu)


def test_normalisation_lies_inside(make_classifier):
    classifier = make_classifier().eval()
    images = torch.rand(2, 1, 8, 8)
    assert torch.allclose(classifier(images), classifier.network(images * 2 - 1), atol=1e-6)
    assert {"mean", "deviation"} <= set(classifier.state_dict())


@pytest.mark.parametrize("activation", [None, "gelu"])
def test_resnet18_has_the_small_image_stem(activation):
    classifier = build_classifier(
        "resnet18", width=None, activation=activation, image_shape=(3, 16, 16), classes=7
    ).eval()
    network = classifier.network
    assert network.conv1.kernel_size == (3, 3) and network.conv1.stride == (1, 1)
    kinds = {type(module).__name__ for module in network.modules()}
    assert "MaxPool2d" not in kinds
    assert ("GELU" in kinds, "ReLU" in kinds) == ((True, False) if activation else (False, True))
    assert classifier(torch.rand(1, 3, 16, 16)).shape == (1, 7)
    # He et al.'s 11.17 million of ResNet-18 for CIFAR, with seven classes
    assert sum(parameter.numel() for parameter in network.parameters()) == 11_173_962 - 3 * 513


def test_options_that_an_architecture_lacks_are_refused():
    with pytest.raises(ParamsError, match=r"classifier.width is 32"):
        build_classifier("resnet18", width=32, activation=None, image_shape=(3, 8, 8), classes=3)
    with pytest.raises(ParamsError, match=", ".join(ARCHITECTURES)):
        build_classifier("vgg", width=None, activation=None, image_shape=(3, 8, 8), classes=3)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"class_names"', '"klass_names"'),
        ('"width": 4', '"width": 5'),
        ('"arch": "small_resnet"', '"arch": "other"'),
        ('"width"', '"widtx"'),
    ],
)
def test_a_changed_card_is_refused(tmp_path, dataset, make_classifier, cpu, old, new):
    save_classifier(
        tmp_path / "c", make_classifier(width=4), arch="small_resnet", options={"width": 4, "activation": None},
        dataset=dataset, provenance={},
    )  # fmt: skip
    card = tmp_path / "c" / "card.json"
    text = card.read_text()
    assert old in text
    card.write_text(text.replace(old, new))
    with pytest.raises(WeightsError):
        load_classifier(tmp_path / "c", dataset, cpu)


def test_a_card_of_another_activation_is_refused(tmp_path, dataset, make_classifier, cpu):
    save_classifier(
        tmp_path / "c", make_classifier(width=4), arch="small_resnet", options={"width": 4, "activation": "silu"},
        dataset=dataset, provenance={},
    )  # fmt: skip
    card = tmp_path / "c" / "card.json"
    card.write_text(card.read_text().replace('"silu"', '"relu"'))
    with pytest.raises(WeightsError):
        load_classifier(tmp_path / "c", dataset, cpu)


def test_a_card_that_is_a_list_is_refused(saved):
    (saved[0] / "card.json").write_text("[]")
    with pytest.raises(WeightsError):
        load_network(saved[0], "classifier")
