"""An experiment on a handful of pictures: its description, the pictures, and the command that runs it."""

import os
import shutil
import signal
import subprocess
import sys
import tarfile
from concurrent.futures import ThreadPoolExecutor

from PIL import Image

from experiments.description.experiment import laid_over
from pag_core.params.yaml_text import written_yaml
from tests.samples import ROOT, make_labelled, plain_params

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


def archived(folder):
    """The splits of `folder` as train.tar.xz and test.tar.xz in their place; `folder` is returned."""
    for split in ("train", "test"):
        with tarfile.open(folder / f"{split}.tar.xz", "w:xz") as file:
            file.add(folder / split, split)
        shutil.rmtree(folder / split)
    return folder


def _command(tmp_path, images, *arguments):
    # this checkout's params.yaml lies below it, in which the user may have set anything
    described = {**DESCRIPTION, "params": laid_over(plain_params(), DESCRIPTION["params"])}
    (tmp_path / "tiny.yaml").write_text(written_yaml(described), encoding="utf-8")
    return [
        sys.executable, str(ROOT / "experiments/run.py"), "tiny.yaml", "--images", str(images), "--work", "work",
        "--size", "tiny", *arguments,
    ]  # fmt: skip


def run(tmp_path, images, *arguments):
    """What the command printed and returned that runs DESCRIPTION in `tmp_path`, with the pictures in `images`."""
    command = _command(tmp_path, images, *arguments)
    return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)


def killed_in(stage, tmp_path, images, *arguments):
    """What the same command printed until it was killed, as it began `stage`."""
    options = {"stdout": subprocess.PIPE, "text": True, "start_new_session": True}
    said = []
    with subprocess.Popen(_command(tmp_path, images, *arguments), cwd=tmp_path, **options) as process:
        for line in process.stdout:
            said.append(line)
            if line.startswith(f"=== {stage}:"):
                os.killpg(process.pid, signal.SIGKILL)
                break
    return "".join(said)


def in_two_threads(function):
    """What two calls at once return; as two commands they hold locks of their own."""
    with ThreadPoolExecutor(2) as pool:
        return [future.result() for future in [pool.submit(function), pool.submit(function)]]
