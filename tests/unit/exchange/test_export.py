"""An exported classifier: whole, of this classifier, and built without the project."""

import html
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import foolbox
import pytest
import torch
from markdown_it import MarkdownIt

from pag_core.classifiers import architectures
from pag_core.classifiers.architectures import build_classifier
from pag_core.classifiers.building import load_classifier, save_classifier
from pag_core.datasets.labelled_images import LabelledImages
from pag_core.datasets.prepared import read_dataset
from pag_core.errors import ArtifactError
from pag_core.evaluation.subject import baseline_place
from pag_core.exchange import export as export_module
from pag_core.exchange.export import export
from pag_core.exchange.model_card import _loading, model_card
from pag_core.exchange.standalone.loading import attacked_images, load
from pag_core.params.radii import radius_value
from pag_core.pipeline.artifacts import write_json
from pag_core.pipeline.paths import classifier_path, dataset_path, details_path
from tests.fixtures.samples import ARCHITECTURES, ROOT, write_prepared
from tests.fixtures.standalone import outside

LIBRARIES = {"torch": "2", "safetensors": "1", "torchvision": "0", "timm": "1", "pyautoattack": "0", "foolbox": "3"}


@pytest.fixture
def make_place(tmp_path, monkeypatch, make_dataset):
    """`make_place(shape, arch)`: the current folder as after training: prepared images, a classifier and a baseline."""

    def make(shape=(1, 8, 8), arch="small_resnet"):
        monkeypatch.chdir(tmp_path)
        dataset = make_dataset(classes=4, shape=shape)
        splits = {n: LabelledImages(part.images.numpy(), part.labels.numpy()) for n, part in dataset.splits.items()}
        write_prepared(dataset_path("digits"), dataset.class_names, splits, {})
        recipe = {"arch": arch, "source": "sbg", "lambda": 1.5, "method": "standard"}
        for seed, who in enumerate(("classifier", "baseline")):
            record = {
                "params": recipe if who == "classifier" else {"arch": arch, "baseline_method": "standard"},
                "seed": 7, "inputs": {"dataset": dataset.fingerprint}, "versions": LIBRARIES, "device": "Some CPU, 1 thread",
            }  # fmt: skip
            torch.manual_seed(seed)
            options = {"width": None, "activation": None, **ARCHITECTURES.get(arch, ({},))[0]}
            classifier = build_classifier(arch, **options, image_shape=shape, classes=4)
            save_classifier(
                classifier_path(who), classifier, arch=arch, options=options, dataset=dataset, provenance=record
            )
        return dataset

    return make


def provenance(who, **changes):
    """What an attack on `who` records, as the stage does."""
    dataset = read_dataset(dataset_path("digits"))
    _, saved = load_classifier(classifier_path(who), dataset, torch.device("cpu"))
    sections = {
        "autoattack": {
            "version": "standard",
            "images": 5,
            "images_per_shard": 3,
            "batch_size": 3,
            "radii": {"Linf": ["8/255"]},
        },
        "foolbox": {"images": 4},
    }
    inputs = {"dataset": dataset.fingerprint, who: saved.fingerprint, **changes}
    return {"params": sections, "seed": 7, "inputs": inputs, "versions": LIBRARIES, "device": "Some CPU, 3 threads"}


AUTOATTACK = {
    "clean": 0.8, "Linf 8/255": 0.2, "disagreements": {"Linf 8/255": 0}, "warnings": ["flat"],
    "per_attack": {"Linf 8/255": {"apgd-ce": 0.6, "apgd-t": 0.4, "fab-t": 0.4, "square": 0.2}},
}  # fmt: skip
FOOLBOX = {"clean": 0.75, "EADAttack": {"L1 2": 0.5, "None": 0.25, "median_distance": None}}


def measure(who, verdict=None, **changes):
    record = provenance(who, **changes)
    for name, result in (("autoattack", AUTOATTACK), ("foolbox", FOOLBOX)):
        if who == "baseline":
            write_json(baseline_place(name), {"result": result, "provenance": record})
        else:
            write_json(details_path(name), {"model": result, "provenance": {"model": record}})
    if verdict is not None:
        write_json(details_path("masking"), {"verdict": verdict, "provenance": record})


@pytest.mark.parametrize("arch", ["small_resnet", "wrn_34_10", "vit"])
def test_the_network_is_that_of_the_project(make_place, arch):
    dataset = make_place((3, 16, 16), arch)
    export(Path("out"), "classifier", "digits")
    own, _ = load_classifier(classifier_path("classifier"), dataset, torch.device("cpu"))
    found = load("out")
    images = dataset.splits["test"].pixels()
    assert torch.equal(found(images), own(images))
    assert not found.training and not any(parameter.requires_grad for parameter in found.parameters())
    # the folder is also one that this project loads
    again, _ = load_classifier(Path("out"), dataset, torch.device("cpu"))
    assert torch.equal(again(images), own(images))


def test_foolbox_takes_it_as_it_is(make_place):
    dataset = make_place()
    export(Path("out"), "classifier", "digits")
    own, _ = load_classifier(classifier_path("classifier"), dataset, torch.device("cpu"))
    images, attack = dataset.splits["test"].pixels(), foolbox.attacks.LinfPGD(steps=3, random_start=False)
    labels = own(images).argmax(1)
    moved = [
        attack(foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu"), images, labels, epsilons=0.1)[1]
        for model in (own, load("out"))
    ]
    assert torch.equal(*moved) and not torch.equal(moved[0], images)


@pytest.mark.parametrize("who", ["classifier", "baseline"])
def test_what_was_measured_is_in_the_folder(make_place, who):
    dataset = make_place()
    verdict = {"reaches_zero": True, "transfer_weaker": True, "square_weaker": False}
    measure(who, verdict if who == "classifier" else None)
    export(Path("out"), who, "digits")
    images, labels = attacked_images("out")
    test = dataset.splits["test"]
    assert torch.equal(images, test.pixels(slice(0, 5))) and torch.equal(labels, test.labels[:5])
    attack = json.loads(Path("out/measured.json").read_text())["autoattack"]
    assert attack["counts"] == {"Linf 8/255": {"clean": 4, "apgd-ce": 3, "apgd-t": 2, "fab-t": 2, "square": 1}}
    shards = attack["shards"]["Linf 8/255"]
    assert [(shard["start"], shard["stop"]) for shard in shards] == [(0, 3), (3, 5)]
    assert all(shard["radius"] == radius_value("8/255") and 0 <= shard["seed"] < 2**31 for shard in shards)
    assert attack["threads"] == 3 and attack["attack"].startswith("non-standard: 3 target classes")
    text = Path("out/README.md").read_text().replace("\N{NO-BREAK SPACE}", " ")
    assert "| Linf 8/255 | 80.0 % | 60.0 % | 40.0 % | 40.0 % | 20.0 % | **20.0 %** |" in text
    assert "AutoAttack warned: flat" in text and "- EADAttack: L1 2 50.0 %, any distance 25.0 %" in text
    assert ("lambda 1.5" in text) == (who == "classifier")
    warned = "**Warning" in text and "Square attack is stronger than a white-box attack" in text
    assert warned == (who == "classifier")


def test_the_card_gives_a_warning_only_where_a_check_failed(make_place):
    make_place()
    measure("classifier", {"reaches_zero": True, "square_weaker": True})
    export(Path("out"), "classifier", "digits")
    text = Path("out/README.md").read_text()
    assert "None of the 2 checks found a sign of masked gradients" in text and "Warning" not in text


def test_what_was_not_measured_is_said(make_place):
    make_place()
    measured = export(Path("out"), "classifier", "digits")
    assert measured == {"autoattack": None, "foolbox": None, "masking": None}
    assert Path("out/README.md").read_text().count("Not measured.") == 3
    assert not Path("out/attack.py").exists() and not Path("out/attacked_images.safetensors").exists()


@pytest.mark.parametrize(
    ("recipe", "trained", "origin"),
    [
        ({}, "trained so that its input-gradients are perceptually aligned", "source sbg, lambda 1.5"),
        ({"control": None}, "trained so that its input-gradients are perceptually aligned", "source sbg, lambda 1.5"),
        (
            {"control": "shuffled_pixels"},
            "trained as a control, with score-based gradients in shuffled pixels",
            "source sbg, control shuffled_pixels, lambda 1.5",
        ),
        (
            {"control": "shuffled_pixels", "lambda": 0},
            "trained without alignment",
            "source sbg, control shuffled_pixels, lambda 0",
        ),
        ({"source": "none"}, "trained without alignment", "source none, lambda 1.5"),
    ],
)
def test_the_card_says_what_it_was_trained_with(make_place, recipe, trained, origin):
    make_place()
    card = json.loads((classifier_path("classifier") / "card.json").read_text())
    card["provenance"]["params"] |= recipe
    nothing = {"autoattack": None, "foolbox": None, "masking": None}
    text = model_card("out", "classifier", "digits", card, nothing, parameters=1)
    assert f"An image classifier, {trained} (the classifier of a run" in text
    assert f"- arch small_resnet, {origin}, method standard, seed 7\n" in text


def test_class_names_are_read_as_they_are(make_place):
    """By a reader of Markdown, which takes some characters for marks, and HTML for what it is."""
    make_place()
    card = json.loads((classifier_path("classifier") / "card.json").read_text())
    card["class_names"] = [
        "<b>bold</b>",
        "*a*",
        "_b_",
        "n01_tench",
        "`c` [d](e)",
        "&amp;",
        "a|b\\",
        "two\nlines",
        "# 猫",
        "~~f~~",
    ]
    nothing = {"autoattack": None, "foolbox": None, "masking": None}
    text = model_card("out", "classifier", "digits", card, nothing, parameters=1)
    (line,) = (line for line in text.splitlines() if line.startswith("- Classes"))
    read = html.unescape(re.sub("</?(ul|li)>", "", MarkdownIt("gfm-like", {"linkify": False}).render(line))).strip()
    wanted = ", ".join(card["class_names"]).replace("\n", " ")
    assert read == f"Classes, in the order of the logits: {wanted}; <code>card.json</code> names all"


@pytest.mark.parametrize(("shape", "named"), [([3, 32, 32], True), ([3, 16, 16], False)])
def test_robustbench_is_named_for_images_of_its_size_alone(shape, named):
    """It attacks 32 pixels, which a network made for 16 takes without a word."""
    card = {"arch": "small_resnet", "image_shape": shape, "provenance": {"versions": LIBRARIES}}
    assert ("RobustBench" in _loading("classifier", "cifar10", card)) == named
    assert "RobustBench" not in _loading("classifier", "digits", card)


@pytest.mark.parametrize("changed", ["classifier", "dataset"])
def test_a_measurement_of_something_else_is_refused(make_place, changed):
    make_place()
    measure("classifier", **{changed: "f" * 64})
    with pytest.raises(ArtifactError, match=f"autoattack.json was made with another {changed} .*ffffffffffff"):
        export(Path("out"), "classifier", "digits")
    assert not Path("out").exists()


def test_a_measurement_that_does_not_say_of_what_is_refused(make_place):
    make_place()
    write_json(details_path("foolbox"), {"model": FOOLBOX})
    with pytest.raises(ArtifactError, match=r"foolbox.json was made with another classifier \(fingerprint unknown"):
        export(Path("out"), "classifier", "digits")


def test_a_folder_that_exists_is_left_alone(make_place):
    make_place()
    Path("out").mkdir()
    Path("out/precious").write_text("x")
    with pytest.raises(ArtifactError, match="out exists already"):
        export(Path("out"), "classifier", "digits")
    assert Path("out/precious").read_text() == "x"


def test_a_failure_on_the_way_leaves_nothing(make_place, monkeypatch):
    make_place()
    before = sorted(Path().iterdir())

    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export_module, "model_card", fail)
    with pytest.raises(OSError, match="No space"):
        export(Path("out"), "classifier", "digits")
    assert sorted(Path().iterdir()) == before


def test_changed_weights_are_refused(make_place):
    make_place()
    export(Path("out"), "classifier", "digits")
    path = Path("out/weights.safetensors")
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    with pytest.raises(Exception, match="is not what its card describes"):
        load("out")


FULL_PRECISION = """
import torch
from pag_core.exchange.standalone.attack import prepare

prepare(torch.device("cuda"), None)
print(torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32)
"""


@pytest.mark.slow
def test_another_attack_takes_no_tf32_on_a_gpu():
    """Also where the variable of some vendors' images makes TF32 the default; the switches are there without a GPU."""
    environment = os.environ | {"TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "1"}
    command = [sys.executable, "-c", FULL_PRECISION]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["False", "False"], done.stderr[-3000:]


@pytest.mark.slow
def test_every_architecture_is_built_outside_from_the_packages_that_its_card_names(make_place, tmp_path):
    """First those that need torch alone, then with torchvision, then with timm, which imports it."""
    packages = {arch: known.package for arch, known in architectures.ARCHITECTURES.items()}
    order = sorted(packages, key=lambda arch: [None, "torchvision", "timm"].index(packages[arch]))
    expected = {}
    for arch in order:
        dataset = make_place((1, 32, 32), arch)
        export(Path(arch), "classifier", "digits")
        own, _ = load_classifier(classifier_path("classifier"), dataset, torch.device("cpu"))
        expected[arch] = own(torch.full((2, 1, 32, 32), 0.25)).double().sum().item()
        assert (packages[arch] or "safetensors") in Path(arch, "README.md").read_text()
    program = f"""
import torch
torch.set_num_threads(1)
for arch, package in {[(arch, packages[arch]) for arch in order]!r}:
    refused -= {{"torchvision", "PIL", "scipy"}} if package else set()
    refused -= {{"timm", "yaml", "tqdm"}} if package == "timm" else set()
    sys.path.insert(0, f"{{sys.argv[1]}}/{{arch}}")
    for name in [name for name in sys.modules if name.startswith("pag_classifier")]:
        del sys.modules[name]
    from pag_classifier import load
    print("sum", arch, repr(load(f"{{sys.argv[1]}}/{{arch}}")(torch.full((2, 1, 32, 32), 0.25)).double().sum().item()))
try:
    import pag_core
except ImportError:
    print("pag_core is refused")
"""
    done = outside(program, str(tmp_path))
    assert done.returncode == 0, done.stderr[-3000:]
    sums = [line.split() for line in done.stdout.splitlines() if line.startswith("sum ")]
    assert {arch: float(value) for _, arch, value in sums} == expected
    assert "pag_core is refused" in done.stdout
