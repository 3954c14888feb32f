"""The experiment runner: real stages on a handful of images, from archives, broken off and taken up again."""

import json
import subprocess
import sys
import tarfile

import pytest
import yaml
from PIL import Image

from experiments.run import CHECKOUT, arrange_images, identity, laid_over, stages, steps_of
from tests.samples import ROOT, make_labelled

NAMES = ("cat", "dog", "eel")
DESCRIPTION = {
    "params": {"dataset": "image_folder", "prepare": {"validation_fraction": 0.2}, "processes": 1},
    "sizes": {
        "tiny": {
            "classes": ["cat", "dog"],
            "train": {"epochs": 1, "validation_attacked": 4},
            "objective": {"classes_per_step": None},
            "autoattack": {"images": 2, "radii": {"L2": [0.5]}},
            "alignment": {"images": 4},
        }
    },
    "classifiers": {"cm": {"source": "cm", "lambda": 0.2}},
    "published": {"cm": [81.41, 47.25, 11.24]},
}


@pytest.fixture
def archives(tmp_path):
    """train.tar.xz and test.tar.xz of three classes of small pictures."""
    folder = tmp_path / "pictures"
    for split, count, seed in (("train", 20, 1), ("test", 6, 2)):
        made = make_labelled(3, count, (3, 8, 8), seed)
        for number, (image, label) in enumerate(zip(made.images, made.labels, strict=True)):
            place = folder / split / NAMES[label]
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.transpose(1, 2, 0)).save(place / f"{number:03}.png")
        with tarfile.open(folder / f"{split}.tar.xz", "w:xz") as file:
            file.add(folder / split, split)
        for path in (folder / split).rglob("*.png"):
            path.unlink()
        for path in sorted((folder / split).glob("*")):
            path.rmdir()
        (folder / split).rmdir()
    return folder


def run(tmp_path, archives, *arguments):
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(DESCRIPTION), encoding="utf-8")
    return subprocess.run(
        [
            sys.executable, str(ROOT / "experiments/run.py"), "tiny.yaml", "--images", str(archives), "--work", "work",
            "--out", "out", "--size", "tiny", *arguments,
        ],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip


def ran(output):
    return [line.split(":")[0].removeprefix("=== ") for line in output.splitlines() if line.startswith("=== ")]


@pytest.mark.slow
def test_an_experiment_from_archives_broken_off_and_changed(tmp_path, archives):
    first = run(tmp_path, archives, "--until", "vanilla train")
    assert first.returncode == 0, first.stderr[-2000:]
    assert ran(first.stdout) == ["prepare", "vanilla train"] and not (tmp_path / "out").exists()

    whole = run(tmp_path, archives)
    assert whole.returncode == 0, whole.stderr[-2000:]
    assert ran(whole.stdout) == ["vanilla autoattack", "cm", "cm train", "cm autoattack", "cm alignment"]
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert results["size"] == "tiny" and len(results["seconds"]) == 7
    for name in ("vanilla", "cm"):
        attacked = results["classifiers"][name]
        assert attacked["images"] == 2 and set(attacked["autoattack"]) >= {"clean", "L2 0.5"}
        assert "clean" in attacked["validation"]
    assert f"| cm | {100 * results['classifiers']['cm']['autoattack']['L2 0.5']:.1f} |" in whole.stdout
    assert results["classifiers"]["cm"]["published"] == [81.41, 47.25, 11.24]
    card = json.loads((tmp_path / "out/cm/classifier_card.json").read_text())
    assert card["class_names"] == ["cat", "dog"]
    assert not list((tmp_path / "out").rglob("*.safetensors"))

    # lambda changes one classifier; everything before it stays
    changed = run(tmp_path, archives, "--set", "cm:lambda=0.5")
    assert ran(changed.stdout) == ["cm train", "cm autoattack", "cm alignment"]
    assert changed.stdout.count("done before") == 4

    failed = run(tmp_path, archives, "--set", "sbg.timestep=5", "--set", "cm:train.epochs=0")
    assert failed.returncode == 1 and "train.epochs" in failed.stderr
    for wrong in ("train.epoch=3", "cm:lamda=1", "lambda", "pet:lambda=1"):
        refused = run(tmp_path, archives, "--set", wrong)
        assert refused.returncode == 2 and "no such parameter" in refused.stderr, refused.stderr


def test_images_are_arranged_anew_only_where_they_change(tmp_path, archives):
    place = tmp_path / "images"
    mark = arrange_images(archives, place, ["cat", "dog"])
    assert sorted(path.name for path in (place / "train").iterdir()) == ["cat", "dog"]
    assert len(list((place / "train/cat").iterdir())) == 20
    marker = place / "train/cat/marker"
    marker.touch()
    assert arrange_images(archives, place, ["cat", "dog"]) == mark and marker.exists()
    assert arrange_images(archives, place, None) != mark and not marker.exists()
    assert sorted(path.name for path in (place / "test").iterdir()) == sorted(NAMES)
    # the same classes from folders, without copies
    folders = tmp_path / "folders"
    arrange_images(place, folders, ["eel", "dog"])
    assert (folders / "test/eel").is_symlink() and len(list((folders / "test/eel").iterdir())) == 6


def test_a_step_depends_on_its_own_parameters_code_and_predecessors():
    described = stages()
    base = yaml.safe_load((CHECKOUT / "params.yaml").read_text(encoding="utf-8"))
    reference = identity(described["diffusion"], base, ["a"], "images")
    for changes, stage, same in (
        ({"train": {"epochs": 3}}, "diffusion", True),
        ({"diffusion": {"steps": 3}}, "diffusion", False),
        ({"seed": 1}, "diffusion", False),
        ({"processes": 2}, "diffusion", True),
    ):
        assert (identity(described[stage], laid_over(base, changes), ["a"], "images") == reference) == same, changes
    assert identity(described["diffusion"], base, ["b"], "images") != reference
    assert identity(described["diffusion"], base, ["a"], "others") != reference
    without = {**described["diffusion"], "deps": described["diffusion"]["deps"][:-1]}
    assert identity(without, base, ["a"], "images") != reference


def test_the_committed_experiment_names_what_exists():
    described = yaml.safe_load((CHECKOUT / "experiments/cifar10_resnet18.yaml").read_text(encoding="utf-8"))
    base = yaml.safe_load((CHECKOUT / "params.yaml").read_text(encoding="utf-8"))
    names = [step.name for step in steps_of(described["classifiers"])]
    assert len(names) == len(set(names)) and all(step.stage in stages() for step in steps_of(described["classifiers"]))
    from pag_core.params import parse_params

    for size in described["sizes"].values():
        layers = {key: value for key, value in size.items() if key != "classes"}
        for chosen in described["classifiers"].values():
            parse_params(laid_over(base, described["params"], layers, chosen))
