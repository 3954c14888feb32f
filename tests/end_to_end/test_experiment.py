"""Experiments: real stages on a handful of images, from archives, broken off and resumed, by hand and through DVC."""

import json
import shutil
import subprocess
import sys
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import typer
import yaml
from PIL import Image

from experiments import images as images_module
from experiments.by_hand import ByHand
from experiments.collection import of_work
from experiments.described_stages import described_stages, outputs_of
from experiments.description import base_params, read_experiment
from experiments.images import arrange_images
from experiments.with_dvc import metrics_paths, overrides
from pag_core.errors import ParamsError
from pag_core.params.reading import parse_params
from pag_core.pipeline.artifacts import write_json
from tests.project_copy import ProjectCopy, stages_run
from tests.samples import ROOT, make_labelled

NAMES = ("cat", "dog", "eel")
DESCRIPTION = {
    "stages": ["autoattack", "pag_score"],
    "params": {"prepare": {"validation_fraction": 0.2}, "processes": 1},
    "sizes": {
        "tiny": {
            "classes": ["cat", "dog"],
            "train": {"epochs": 1, "validation_attacked": 4},
            "objective": {"classes_per_step": "all"},
            "autoattack": {"images": 2, "radii": {"L2": [3.0]}},
            "pag_score": {"images": 4, "judged_images": 4},
        },
    },
    "classifiers": {"cm": {"source": "cm", "lambda": 0.2}},
    "settings": ["clean", "L2 0.5"],
    "rows": {
        "vanilla": {"of": "cm", "baseline": True, "published": "table_5/vgg16/vanilla"},
        "class means": {"of": "cm", "published": "table_5/vgg16/sbg"},
    },
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


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    """train.tar.xz and test.tar.xz of three classes of small pictures."""
    folder = as_folders(tmp_path_factory.mktemp("archives") / "pictures")
    for split in ("train", "test"):
        with tarfile.open(folder / f"{split}.tar.xz", "w:xz") as file:
            file.add(folder / split, split)
        shutil.rmtree(folder / split)
    return folder


@pytest.fixture(scope="module")
def by_hand(tmp_path_factory, archives):
    """The folder in which the experiment ran by hand, and what it printed: broken off by a wrong value, shown, and whole."""
    folder = tmp_path_factory.mktemp("by_hand")
    failed = run(folder, archives, "--by-hand", "--set", "autoattack.images=1000")
    shown = run(folder, archives, "--by-hand", "--show")
    whole = run(folder, archives, "--by-hand", "--output", "tables")
    return folder, failed, shown, whole


def run(tmp_path, archives, *arguments):
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(DESCRIPTION), encoding="utf-8")
    return subprocess.run(
        [
            sys.executable, str(ROOT / "experiments/run.py"), "tiny.yaml", "--images", str(archives), "--work", "work",
            "--size", "tiny", *arguments,
        ],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip


def ran(output):
    return [line.split(":")[0].removeprefix("=== ") for line in output.splitlines() if line.startswith("=== ")]


@pytest.mark.slow
def test_an_experiment_by_hand_broken_off_and_changed(archives, by_hand):
    folder, failed, shown, whole = by_hand

    def again_by_hand(*arguments):
        return run(folder, archives, "--by-hand", *arguments)

    assert failed.returncode == 1 and "autoattack.images is 1000" in failed.stderr
    assert ran(failed.stdout) == ["prepare", "heuristic@cm", "train", "baseline", "baseline_autoattack"]

    # what was not run is a gap
    assert "| class means | not run | 81.93 |  | not run | 42.03 |  |" in shown.stdout and ran(shown.stdout) == []

    assert whole.returncode == 0, whole.stderr[-2000:]
    assert ran(whole.stdout) == ["baseline_autoattack", "autoattack", "heuristic@none", "pag_score"]
    results = folder / "work/results/tiny-tiny-cm"
    attacked = json.loads((results / "metrics/autoattack.json").read_text())
    assert attacked["images"] == 2 and set(attacked["model"]) == {"clean", "L2 3.0"}
    clean, robust = (100 * attacked["model"][name] for name in ("clean", "L2 3.0"))
    row = f"| class means | {clean:.1f} | 81.93 | {clean - 81.93:+.1f} | {robust:.1f} | 42.03 | {robust - 42.03:+.1f} |"
    assert row in whole.stdout and "| vanilla |" in whole.stdout and "2 test images; one seed." in whole.stdout
    written = (folder / "tables/tiny-tiny.csv").read_text(encoding="utf-8").splitlines()
    # the description was written with sorted keys
    assert len(written) == 1 + 4 and written[1].startswith(f"tiny-tiny,class means,clean,{clean:.2f},")
    assert row in (folder / "tables/tiny-tiny.md").read_text(encoding="utf-8")
    assert (results / "metrics/details/training.json").exists() and len(
        json.loads((results / "seconds.json").read_text())
    ) == 8

    (results / "metrics/of_an_earlier_run.json").touch()

    # both models of one seed, from the runs by hand
    command = ["experiments/figure.py", "correlation", "tiny.yaml", "--by-hand", "--work", "work", "--size", "tiny"]
    drawn = subprocess.run(
        [sys.executable, str(ROOT / command[0]), *command[1:], "--images", str(archives), "--output", "drawn"],
        cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert drawn.returncode == 0, drawn.stderr[-2000:]
    assert (folder / "drawn/correlation.png").read_bytes().startswith(b"\x89PNG")
    assert "; 2 models; seed 3407." in (folder / "drawn/correlation.txt").read_text(encoding="utf-8")

    # a stage whose output is gone runs again; equal inputs are not asked for again
    (train,) = (path.parent for path in (folder / "work").glob("train-*/ended.json"))
    shutil.rmtree(train / "data/classifier")
    again = again_by_hand()
    assert again_by_hand("--show").stdout.strip() == again.stdout[again.stdout.index("tiny\n") :].strip()
    assert ran(again.stdout) == ["train"] and again.stdout.count("done before") == 7

    # lambda changes one classifier; everything before it stays
    changed = again_by_hand("--set", "cm:lambda=0.5")
    assert ran(changed.stdout) == ["train", "autoattack", "pag_score"] and changed.stdout.count("done before") == 5
    (listed,) = of_work(folder / "work")
    assert listed.params["lambda"] == 0.5 and listed.metrics.keys() == {"autoattack", "pag_score", "training"}


@pytest.mark.slow
def test_the_same_experiment_through_dvc(tmp_path, archives, by_hand):
    project = ProjectCopy(tmp_path / "project", {})
    (project.path / "tiny.yaml").write_text(yaml.safe_dump(DESCRIPTION), encoding="utf-8")
    command = [
        sys.executable,
        "experiments/run.py",
        "tiny.yaml",
        "--images",
        str(archives),
        "--work",
        str(tmp_path / "work"),
    ]
    whole = project.run(*command, "--size", "tiny")
    assert "tiny-tiny-cm" in project.run("dvc", "exp", "show", "--csv").stdout
    # the numbers do not depend on who runs the stages
    assert table_of(whole.stdout) == table_of(by_hand[-1].stdout) != []

    # the networks come out of DVC's cache
    pictured = project.run(
        command[0], "experiments/figure.py", "targeted", *command[2:], "--size", "tiny", "--output", "drawn"
    )
    assert "class means" in pictured.stdout and "not run" not in pictured.stderr
    assert (project.path / "drawn/targeted.png").exists()

    # what a broken-off command left in the queue has other parameters, and does not take the name
    project.run("dvc", "exp", "remove", "tiny-tiny-cm")
    project.run("dvc", "exp", "run", "--queue", "--name", "tiny-tiny-cm", "-S", "lambda=7")
    again = project.run(*command, "--size", "tiny")
    assert table_of(again.stdout) == table_of(whole.stdout)
    # a store that is made in seconds stays out of DVC's cache; the rest comes out of it
    assert stages_run(last_log(project)) == ["heuristic@cm", "heuristic@none"]

    # only what ran with the same parameters is shown, also from later commits
    project.run("git", "commit", "--allow-empty", "--quiet", "--message", "later")
    assert table_of(project.run(*command, "--size", "tiny", "--show").stdout) == table_of(whole.stdout)
    other = project.run(*command, "--size", "tiny", "--set", "cm:lambda=0.5", "--show")
    assert "| class means | not run |" in other.stdout and "tiny-tiny-cm ran with other parameters" in other.stderr

    failed = project.run(*command, "--size", "tiny", "--set", "autoattack.images=1000", check=False)
    assert (
        failed.returncode == 1
        and "autoattack.images is 1000" in failed.stderr
        and "tiny-tiny-cm failed" in failed.stderr
    )


def test_the_metrics_of_the_stages_that_are_wanted_are_taken():
    """Also where nothing is attacked."""
    for size, names in (("levels", ["training"]), ("full", ["autoattack", "pag_score"])):
        experiment = read_experiment(ROOT / "experiments/cifar10_16px.yaml", size, [])
        found = metrics_paths(experiment, next(iter(experiment.params)))
        assert sorted(found) == sorted(f"{place}{name}" for name in names for place in ("", "details/"))
        assert all(path == f"metrics/{name}.json" for name, path in found.items())


def last_log(project):
    tasks = project.run("dvc", "queue", "status").stdout.splitlines()
    newest = [line.split()[0] for line in tasks if "tiny-tiny-cm" in line][-1]
    return project.run("dvc", "queue", "logs", newest).stdout


def table_of(output):
    return [line for line in output.splitlines() if line.startswith("| ")]


def in_two_threads(function):
    """What two calls at once return; as two commands they hold locks of their own."""
    with ThreadPoolExecutor(2) as pool:
        return [future.result() for future in [pool.submit(function), pool.submit(function)]]


def test_two_commands_make_a_stage_once(tmp_path, capsys):
    ran = []

    class Slow(ByHand):
        def is_done(self, name):
            return (self.folder(name) / "done").exists()

        def _run(self, name):
            time.sleep(0.5)
            self.folder(name).mkdir()
            (self.folder(name) / "done").touch()
            ran.append(name)

    in_two_threads(lambda: Slow(base_params(), tmp_path).make("prepare"))
    assert ran == ["prepare"]
    said = capsys.readouterr().out
    assert "Another process is running the stage prepare; waiting for it." in said and "prepare: done before" in said


def test_two_commands_arrange_images_once(tmp_path, monkeypatch):
    pictures, extracted = as_folders(tmp_path / "pictures"), []

    def slow(place, content):
        time.sleep(0.5)
        extracted.append(place)
        write_json(place, content)

    monkeypatch.setattr(images_module, "write_json", slow)
    one, two = in_two_threads(lambda: arrange_images(pictures, tmp_path / "work", None))
    assert one == two and len(extracted) == 1 and (one / "origin.json").exists()


@pytest.mark.parametrize("wrong", ["train.epoch=3", "cm:lamda=1", "lambda", "pet:lambda=1"])
def test_a_change_of_no_parameter_is_refused(tmp_path, wrong):
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(DESCRIPTION), encoding="utf-8")
    with pytest.raises(typer.BadParameter, match="no such parameter"):
        read_experiment(tmp_path / "tiny.yaml", "tiny", [wrong])


def test_a_wrong_value_is_refused_before_anything_runs(tmp_path):
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(DESCRIPTION), encoding="utf-8")
    with pytest.raises(ParamsError, match=r"tiny\.yaml \(tiny, cm\).*\n.*train\.epochs: 0 is refused"):
        read_experiment(tmp_path / "tiny.yaml", "tiny", ["cm:train.epochs=0"])
    with pytest.raises(typer.BadParameter, match="huge is not one of: tiny"):
        read_experiment(tmp_path / "tiny.yaml", "huge", [])


VALUES = [
    None,
    True,
    3,
    1e-4,
    0.5,
    "8/255",
    "a b",
    "it's",
    "a\\b",
    "",
    [],
    [1, "8/255"],
    {"factor": 0.667, "epochs": 50},
]


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_overrides_are_read_as_they_were_meant(tmp_path, value):
    """By DVC's own reading of `--set-param`, in a file that holds another value."""
    from dvc.utils.hydra import apply_overrides

    base = {"section": {"key": 1, "other": 2, "gone": 3}, "plain": 5}
    file = tmp_path / "params.yaml"
    file.write_text(yaml.safe_dump(base))
    wanted = {"section": {"key": value, "other": 2}, "plain": 5, "new": value}
    apply_overrides(file, overrides(wanted, base))
    assert yaml.safe_load(file.read_text()) == wanted


def test_images_are_arranged_anew_only_where_they_change(tmp_path, archives):
    work = tmp_path / "work"
    place = arrange_images(archives, work, ["cat", "dog"])
    assert sorted(path.name for path in (place / "train").iterdir()) == ["cat", "dog"]
    assert len(list((place / "train/cat").iterdir())) == 20
    marker = place / "train/cat/marker"
    marker.touch()
    assert arrange_images(archives, work, ["cat", "dog"]) == place and marker.exists()
    other = arrange_images(archives, work, None)
    assert other != place and marker.exists()
    assert sorted(path.name for path in (other / "test").iterdir()) == sorted(NAMES)


def test_added_and_changed_images_are_seen(tmp_path):
    """Folders are linked, not copied, and known by their content."""
    images, work = as_folders(tmp_path / "pictures"), tmp_path / "work"
    place = arrange_images(images, work, ["eel", "dog"])
    assert (place / "test/eel").is_symlink() and len(list((place / "test/eel").iterdir())) == 6
    shutil.copytree(images, tmp_path / "moved")
    assert arrange_images(tmp_path / "moved", work, ["eel", "dog"]) == place
    first = next((images / "train/dog").iterdir())
    seen = {place}
    for change in (
        lambda: shutil.copy(first, images / "train/dog/another.png"),
        lambda: first.write_bytes(first.read_bytes()[:-1] + b"x"),
        lambda: first.rename(first.with_name("renamed.png")),
        lambda: (images / "test/eel" / next((images / "test/eel").iterdir()).name).unlink(),
    ):
        change()
        seen.add(arrange_images(images, work, ["eel", "dog"]))
    assert len(seen) == 5
    shutil.copy(images / "train/dog/renamed.png", images / "train/cat/unused.png")
    assert arrange_images(images, work, ["eel", "dog"]) in seen


@pytest.mark.parametrize("nested", ["work", "work/images", "work/images/deeper", "."])
def test_images_and_working_folder_lie_apart(tmp_path, nested):
    images = as_folders(tmp_path / nested)
    before = sorted(path for path in tmp_path.rglob("*.png"))
    done = run(tmp_path, images)
    assert done.returncode == 2 and "is apart" in done.stderr.replace("\n", " "), done.stderr
    assert sorted(path for path in tmp_path.rglob("*.png")) == before and len(before) == 78


def test_a_link_into_the_working_folder_does_not_hide_it(tmp_path):
    images = as_folders(tmp_path / "work/images")
    (tmp_path / "link").symlink_to(images)
    with pytest.raises(typer.BadParameter, match="is apart"):
        arrange_images(tmp_path / "link", tmp_path / "work", None)
    (tmp_path / "half").mkdir()
    for split in ("train", "test"):
        (tmp_path / "half" / split).symlink_to(images / split)
    with pytest.raises(typer.BadParameter, match="is apart"):
        arrange_images(tmp_path / "half", tmp_path / "work", None)
    assert len(list(images.rglob("*.png"))) == 78


def test_a_folder_of_the_users_is_never_replaced(tmp_path):
    images, work = as_folders(tmp_path / "pictures"), tmp_path / "work"
    place = arrange_images(images, work, None)
    shutil.rmtree(place)
    place.mkdir()
    (place / "mine.txt").touch()
    with pytest.raises(typer.BadParameter, match="was not made by this program"):
        arrange_images(images, work, None)
    assert (place / "mine.txt").exists()


@pytest.mark.parametrize("size", ["full", "half_hour", "small"])
def test_the_committed_experiment_is_valid(size):
    experiment = read_experiment(ROOT / "experiments/cifar10_resnet18.yaml", size, [])
    assert experiment.params.keys() == {"cm", "sbg"} and [row.label for row in experiment.rows] == [
        "vanilla",
        "cm",
        "sbg",
    ]
    assert experiment.rows[2].published == (78.56, 55.39, 23.97)
    for name, params in experiment.params.items():
        # heuristic targets aligned with the log-probability cost the clean accuracy
        assert parse_params(params).objective.output == {"cm": "logit", "sbg": "log_softmax"}[name]
        assert set(experiment.stages) <= described_stages(params).keys()


@pytest.mark.parametrize("size", ["full", "small"])
def test_the_rivals_on_digits_are_valid(size):
    experiment = read_experiment(ROOT / "experiments/digits_rivals.yaml", size, ["sbg_trades:lambda=0.5"])
    assert len(experiment.params) == 3 * len(experiment.runs) == 36
    assert {experiment.params[run]["seed"] for run in experiment.runs["trades"]} == {3407, 3408, 3409}
    assert {experiment.params[run]["lambda"] for run in experiment.runs["sbg_trades"]} == {0.5}
    assert experiment.params["at_linf-seed3407"]["at"]["norm"] == "Linf"


def test_stages_are_described_with_their_values():
    params = {**base_params(), "source": "nn"}
    stages = described_stages(params)
    assert "data/gradients/nn.zarr" in stages["train"]["deps"] and "source_defaults.nn" in stages["train"]["params"]
    assert outputs_of(stages["heuristic@nn"]) == ["data/gradients/nn.zarr"] and "code" not in stages
    assert stages["heuristic@nn"]["cmd"] == "python stages/heuristic.py nn" and "nn" in stages["heuristic@nn"]["params"]
