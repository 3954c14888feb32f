"""The experiment runner: real stages on a handful of images, from archives, broken off and taken up again."""

import json
import shutil
import subprocess
import sys
import tarfile

import pytest
import typer
import yaml
from PIL import Image

from experiments.images import arrange_images
from experiments.run import CHECKOUT, identity, laid_over, stages, steps_of
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


def as_folders(place):
    """Small pictures of three classes as train/CLASS and test/CLASS below `place`, which is returned."""
    for split, count, seed in (("train", 20, 1), ("test", 6, 2)):
        made = make_labelled(3, count, (3, 8, 8), seed)
        for number, (image, label) in enumerate(zip(made.images, made.labels, strict=True)):
            folder = place / split / NAMES[label]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.transpose(1, 2, 0)).save(folder / f"{number:03}.png")
    return place


@pytest.fixture
def archives(tmp_path):
    """train.tar.xz and test.tar.xz of three classes of small pictures."""
    folder = as_folders(tmp_path / "pictures")
    for split in ("train", "test"):
        with tarfile.open(folder / f"{split}.tar.xz", "w:xz") as file:
            file.add(folder / split, split)
        shutil.rmtree(folder / split)
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

    # the record is not believed where an output is gone, or where it is no record
    (tmp_path / "work/common/data/baseline_training.json").unlink()
    shutil.rmtree(tmp_path / "work/cm/data/classifier")
    assert ran(run(tmp_path, archives).stdout) == ["vanilla train", "cm train"]
    record = tmp_path / "work/steps.json"
    kept = record.read_text()
    record.write_text(kept[: len(kept) // 2])
    broken = run(tmp_path, archives)
    assert broken.returncode == 2 and "no record of finished steps" in broken.stderr.replace("\n", " ")
    record.write_text(kept)

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
    work = tmp_path / "work"
    place, mark = arrange_images(archives, work, ["cat", "dog"])
    assert sorted(path.name for path in (place / "train").iterdir()) == ["cat", "dog"]
    assert len(list((place / "train/cat").iterdir())) == 20
    marker = place / "train/cat/marker"
    marker.touch()
    assert arrange_images(archives, work, ["cat", "dog"]) == (place, mark) and marker.exists()
    other, other_mark = arrange_images(archives, work, None)
    assert other != place and other_mark != mark and marker.exists()
    assert sorted(path.name for path in (other / "test").iterdir()) == sorted(NAMES)


def test_added_and_changed_images_are_seen(tmp_path):
    """Folders are linked, not copied, and known by their content."""
    images, work = as_folders(tmp_path / "pictures"), tmp_path / "work"
    place, mark = arrange_images(images, work, ["eel", "dog"])
    assert (place / "test/eel").is_symlink() and len(list((place / "test/eel").iterdir())) == 6
    shutil.copytree(images, tmp_path / "moved")
    assert arrange_images(tmp_path / "moved", work, ["eel", "dog"])[1] == mark
    first = next((images / "train/dog").iterdir())
    seen = {mark}
    for change in (
        lambda: shutil.copy(first, images / "train/dog/another.png"),
        lambda: first.write_bytes(first.read_bytes()[:-1] + b"x"),
        lambda: first.rename(first.with_name("renamed.png")),
        lambda: (images / "test/eel" / next((images / "test/eel").iterdir()).name).unlink(),
    ):
        change()
        seen.add(arrange_images(images, work, ["eel", "dog"])[1])
    assert len(seen) == 5
    shutil.copy(images / "train/dog/renamed.png", images / "train/cat/unused.png")
    assert arrange_images(images, work, ["eel", "dog"])[1] in seen


@pytest.mark.parametrize("nested", ["work", "work/images", "work/images/deeper", "."])
def test_images_and_working_folder_lie_apart(tmp_path, nested):
    images = as_folders(tmp_path / nested)
    before = sorted(path for path in tmp_path.rglob("*.png"))
    done = run(tmp_path, images)
    assert done.returncode == 2 and "lies apart" in done.stderr.replace("\n", " "), done.stderr
    assert sorted(path for path in tmp_path.rglob("*.png")) == before and len(before) == 78


def test_a_link_into_the_working_folder_does_not_hide_it(tmp_path):
    images = as_folders(tmp_path / "work/images")
    (tmp_path / "link").symlink_to(images)
    with pytest.raises(typer.BadParameter, match="lies apart"):
        arrange_images(tmp_path / "link", tmp_path / "work", None)
    (tmp_path / "half").mkdir()
    for split in ("train", "test"):
        (tmp_path / "half" / split).symlink_to(images / split)
    with pytest.raises(typer.BadParameter, match="lies apart"):
        arrange_images(tmp_path / "half", tmp_path / "work", None)
    assert len(list(images.rglob("*.png"))) == 78


def test_a_folder_of_the_users_is_never_replaced(tmp_path):
    images, work = as_folders(tmp_path / "pictures"), tmp_path / "work"
    place, _ = arrange_images(images, work, None)
    shutil.rmtree(place)
    place.mkdir()
    (place / "mine.txt").touch()
    with pytest.raises(typer.BadParameter, match="was not made by this program"):
        arrange_images(images, work, None)
    assert (place / "mine.txt").exists()


def test_heuristic_sources_of_the_preset_align_logits():
    from pag_core.params.reading import parse_params

    described = yaml.safe_load((CHECKOUT / "experiments/cifar10_resnet18.yaml").read_text(encoding="utf-8"))
    base = yaml.safe_load((CHECKOUT / "params.yaml").read_text(encoding="utf-8"))
    outputs = {
        name: parse_params(laid_over(base, described["params"], layer)).objective.output
        for name, layer in described["classifiers"].items()
    }
    assert outputs == {"cm": "logit", "sbg": "log_softmax"}


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
    from pag_core.params.reading import parse_params

    for size in described["sizes"].values():
        layers = {key: value for key, value in size.items() if key != "classes"}
        for chosen in described["classifiers"].values():
            parse_params(laid_over(base, described["params"], layers, chosen))
