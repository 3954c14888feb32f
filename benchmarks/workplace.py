"""A folder in which this checkout's stages run as commands, each measured from outside: time, and peaks of memory."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from pag_core.params.yaml_text import read_yaml, written_yaml
from pag_core.pipeline.paths import DIFFUSION
from pag_core.pipeline.saved_network import load_network, save_network
from pag_core.pipeline.stage import TIMINGS

ROOT = Path(__file__).resolve().parents[1]
# not what the user has set in params.yaml: what is compared stays the same
PARAMS = ROOT / "tests/params.yaml"
SAMPLED_EVERY = 0.01  # seconds
FIELDS = ("RssAnon", "VmHWM")  # of /proc/PID/status
PATTERNS = 10
SEED = 3407


@dataclass(frozen=True)
class Cost:
    """What a command took.

    `whole` seconds, imports included, and `seconds` by its own timing, without them. `anonymous` bytes are the peak of what
    only the process can free, sampled; `resident` ones (VmHWM) that with pages of mapped files, which the system takes
    back when memory is short.
    """

    whole: float
    seconds: float
    anonymous: int
    resident: int


class Workplace:
    """A folder with its own params.yaml, in which this checkout's stages run."""

    def __init__(self, path: Path, values: dict[str, Any]) -> None:
        path.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.content = read_yaml(PARAMS.read_text(encoding="utf-8"))
        self.set(values)

    def set(self, values: dict[str, Any]) -> None:
        """Change parameters, `section.key` by name."""
        for name, value in values.items():
            *sections, key = name.split(".")
            place = self.content
            for section in sections:
                place = place[section]
            if key not in place:
                raise KeyError(f"params.yaml has no {name}")
            place[key] = value
        (self.path / "params.yaml").write_text(written_yaml(self.content), encoding="utf-8")

    def stage(self, name: str, *arguments: str) -> Cost:
        """Run a stage; raises RuntimeError with its last words where it fails."""
        return self.command(str(ROOT / "stages" / f"{name}.py"), *arguments)

    def command(self, *arguments: str) -> Cost:
        """Run Python with `arguments`, which writes its own seconds as a stage does; peaks are 0 on a system without /proc."""
        environment = {key: value for key, value in os.environ.items() if not key.startswith("DVC_")}
        environment["PYTHONPATH"] = str(ROOT)
        self.remove(str(TIMINGS))
        peaks = dict.fromkeys(FIELDS, 0)
        with tempfile.TemporaryFile() as said:
            start = time.perf_counter()
            command, place = [sys.executable, *arguments], {"cwd": self.path, "env": environment}
            running = subprocess.Popen(command, **place, stdout=said, stderr=subprocess.STDOUT)  # type: ignore[call-overload]
            while running.poll() is None:
                for line in _status(running.pid):
                    field, _, value = line.partition(":")
                    if field in peaks:
                        peaks[field] = max(peaks[field], int(value.split()[0]) * 1024)
                time.sleep(SAMPLED_EVERY)
            whole = time.perf_counter() - start
            said.seek(0)
            words = said.read().decode(errors="replace")
        if running.returncode != 0:
            raise RuntimeError(f"{' '.join(arguments)} ended with {running.returncode}:\n{words[-2000:]}")
        [timing] = (self.path / TIMINGS).glob("*.json")
        return Cost(whole, json.loads(timing.read_text(encoding="utf-8"))["seconds"], *peaks.values())

    def remove(self, name: str) -> None:
        """Remove an output, so that what an earlier run wrote cannot stand for this one's."""
        place = self.path / name
        if place.is_dir():
            shutil.rmtree(place)
        else:
            place.unlink(missing_ok=True)

    def contents(self, name: str) -> dict[str, bytes]:
        """The bytes of an output, file by file, apart from the manifest, which tells how it was made."""
        place = self.path / name
        files = [place] if place.is_file() else sorted(path for path in place.rglob("*") if path.is_file())
        found = {str(path.relative_to(self.path)): path.read_bytes() for path in files if path.name != "manifest.json"}
        if not found:
            raise RuntimeError(f"{name} was not written")
        return found


def _status(process: int) -> list[str]:
    try:
        return Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines()
    except OSError:  # it has ended, or the system has none
        return []


def write_images(folder: Path, images: int, classes: int, side: int) -> None:
    """An image folder: `images` for training, one of each class for testing, as PNG without compression.

    Random pixels around one of PATTERNS coarse pictures, which classes share in turn: a teacher learns them in seconds.
    """
    draws = np.random.default_rng(SEED)
    coarse = draws.choice([40, 215], (PATTERNS, 4, 4, 3))
    pictures = coarse.repeat(side // 4, axis=1).repeat(side // 4, axis=2)
    for split, count in (("train", images), ("test", classes)):
        for label in range(classes):
            (folder / split / class_name(label)).mkdir(parents=True)
        for number in range(count):
            label = number % classes
            pixels = pictures[label % PATTERNS] + draws.integers(-40, 41, (side, side, 3))
            picture = Image.fromarray(pixels.astype(np.uint8))
            picture.save(folder / split / class_name(label) / f"{number:07}.png", compress_level=0)


def class_name(label: int) -> str:
    """The name of a class's folder; names are in the order of labels."""
    return f"{label:04}"


def write_teacher(place: Workplace, folder: Path, classes: int) -> None:
    """The diffusion model of PATTERNS classes that `place` has trained, as one of `classes` that share its labels in turn."""
    saved = load_network(place.path / DIFFUSION, "diffusion")
    labels = saved.tensors["label_emb.weight"]
    shared = torch.cat([labels[torch.arange(classes) % PATTERNS], labels[PATTERNS:]])
    card = saved.card | {"class_names": [class_name(label) for label in range(classes)], "dataset": None}
    del card["checksum"]  # of the card as it was
    save_network(folder, saved.tensors | {"label_emb.weight": shared}, card)
