"""An experiment on a handful of pictures: its description, the pictures, and the command that runs it."""

import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time

from PIL import Image

from pag_core.params.yaml_text import written_yaml
from tests.samples import make_labelled

NAMES = ("cat", "dog", "eel")
DESCRIPTION = {
    "stages": ["autoattack", "pag_score"],
    "params": {"prepare": {"validation_fraction": 0.2}, "processes": 1},
    "sizes": {
        "tiny": {
            "prepare": {"classes": ["cat", "dog"]},
            "train": {"epochs": 1},
            "validation": {"images": 4},
            "objective": {"classes_per_step": "all"},
            "autoattack": {"images": 2, "radii": {"L2": [3.0]}},
            "pag_score": {"images": 4, "judged_images": 4},
        },
    },
    "classifiers": {"cm": {"source": "cm", "lambda": 0.2}, "oi": {"source": "oi", "lambda": 0.2}},
    "settings": ["clean", "L2 0.5"],
    "rows": {
        "vanilla": {"of": "cm", "baseline": True, "published": "table_5/vgg16/vanilla"},
        "class means": {"of": "cm", "published": "table_5/vgg16/sbg"},
        "one image": {"of": "oi"},
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


def archived(folder):
    """The splits of `folder` as train.tar.xz and test.tar.xz in their place; `folder` is returned."""
    for split in ("train", "test"):
        with tarfile.open(folder / f"{split}.tar.xz", "w:xz") as file:
            file.add(folder / split, split)
        shutil.rmtree(folder / split)
    return folder


def command(project, images, *arguments):
    """The command that runs DESCRIPTION in a copy of the project, on the pictures in `images`."""
    (project.path / "tiny.yaml").write_text(written_yaml(DESCRIPTION), encoding="utf-8")
    return [sys.executable, "experiments/run.py", "tiny.yaml", "--images", str(images), "--size", "tiny", *arguments]


def stopped_in(stage, number, project, given):
    """What a command printed that got the signal `number` as `stage` ran for it, and its exit code."""
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "start_new_session": True}
    with subprocess.Popen(given, cwd=project.path, env=project.environment(), **options) as process:
        deadline = time.monotonic() + 300
        while not running(stage, project):
            assert process.poll() is None and time.monotonic() < deadline, process.stdout.read()
            time.sleep(0.05)
        # as a terminal does it
        (os.kill if number == signal.SIGKILL else os.killpg)(process.pid, number)
        said, _ = process.communicate(timeout=200)
    return said, process.returncode


def running(stage, project):
    """Whether an experiment of the project is at `stage`."""
    logs = (project.path / ".dvc/tmp/exps/run").glob("*/*.out")
    last = [
        [line for line in log.read_text(encoding="utf-8").splitlines() if line.startswith("> ")][-1:] for log in logs
    ]
    return any(stage in line for lines in last for line in lines)
