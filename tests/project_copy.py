"""A copy of the project in a folder of its own, at a small budget, for tests that run real stages."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from tests.samples import PARAMS, ROOT

# what a run needs; neither the user's data, settings and lock files, nor what has run in this checkout
FOLDERS = ("pag_core", "stages", "experiments")
FILES = (
    "LICENSE", ".gitignore", ".dvcignore", ".dvc/.gitignore", "dvc.yaml", "data/.gitignore", "data/gradients/.gitignore",
    "data/image_folder/.gitignore", "data/image_folder/README.md",
)  # fmt: skip
CONFIG = "[core]\n    analytics = false\n    check_update = false\n    autostage = true\n"

# every stage runs for real, on few images and steps
SMALL = {
    "processes": 1,
    "checkpoint_seconds": 0,
    "prepare.images_per_class": 60,
    "nn.samples_per_class": 10,
    "diffusion.steps": 120,
    "gradient_store.images_per_shard": 128,
    "gradient_store.held_out_images": 20,
    "train.epochs": 3,
    "validation.images": 10,
    "autoattack.images": 2,
    "autoattack.images_per_shard": 2,
    "foolbox.images": 3,
    "foolbox.ead_steps": 5,
    "foolbox.search_steps": 20,
    "foolbox.salt_and_pepper_repeats": 1,
    "masking.images": 8,
    "masking.steps": 3,
    "masking.square_queries": 20,
    "pag_score.images": 10,
    "pag_score.judged_images": 5,
    "figures.images": 2,
    "figures.targeted_steps": 3,
    "toy.seeds": 2,
    "toy.epochs": 3,
}


class ProjectCopy:
    """The project's files, committed to a git repository of their own, with `overrides` written into params.yaml."""

    def __init__(self, path: Path, overrides: dict[str, Any], repository: Path | None = None) -> None:
        """`repository` is a folder above it, whose git repository then holds the project."""
        self.path = path
        for name in FOLDERS:
            ignored = shutil.ignore_patterns("__pycache__", "dvc.lock")
            shutil.copytree(ROOT / name, path / name, ignore=ignored, dirs_exist_ok=True)
        for name in FILES:
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, path / name)
        (path / ".dvc/config").write_text(CONFIG, encoding="utf-8")
        shutil.copy2(PARAMS, path / "params.yaml")
        self.set(overrides)
        self.git("init", "--quiet", "--initial-branch=main", str(repository or path))
        # in the repository's own configuration: DVC commits as well
        self.git("config", "user.name", "test")
        self.git("config", "user.email", "test@example.invalid")
        self.commit("start")

    def set(self, overrides: dict[str, Any]) -> None:
        """Write values into params.yaml, `section.key` by name."""
        yaml = YAML()
        file = self.path / "params.yaml"
        content = yaml.load(file.read_text(encoding="utf-8"))
        for name, value in overrides.items():
            *sections, key = name.split(".")
            place = content
            for section in sections:
                place = place[section]
            place[key] = value
        with file.open("w", encoding="utf-8") as out:
            yaml.dump(content, out)

    def git(self, *arguments: str) -> str:
        return self.run("git", *arguments).stdout

    def commit(self, message: str) -> None:
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message", message)

    def environment(self) -> dict[str, str]:
        """This process's, without what the user has set for all of DVC and git, such as another cache, or signed commits."""
        variables = {key: value for key, value in os.environ.items() if not key.startswith(("DVC_", "GIT_"))}
        variables |= {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
        variables |= {f"DVC_{kind}_CONFIG_DIR": str(self.path / ".git/none") for kind in ("GLOBAL", "SYSTEM")}
        variables["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{variables['PATH']}"
        return variables

    def run(self, *command: str, check: bool = True, timeout: float = 800) -> subprocess.CompletedProcess[str]:
        """Run a command in the project; with `check`, a failure shows its output."""
        done = subprocess.run(
            command, cwd=self.path, env=self.environment(), capture_output=True, text=True, timeout=timeout, check=False
        )
        if check and done.returncode != 0:
            raise AssertionError(
                f"{command} ended with {done.returncode}:\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
            )
        return done

    def stage(self, name: str, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a stage by hand, without DVC."""
        return self.run(sys.executable, f"stages/{name}.py", *arguments, **options)

    def metrics(self, name: str) -> dict[str, Any]:
        """A metrics file by its name."""
        content: dict[str, Any] = json.loads((self.path / "metrics" / f"{name}.json").read_text(encoding="utf-8"))
        return content

    def metrics_bytes(self) -> dict[str, bytes]:
        """Every metrics file's bytes by name."""
        metrics = self.path / "metrics"
        return {str(path.relative_to(metrics)): path.read_bytes() for path in sorted(metrics.rglob("*.json"))}


def stages_run(output: str) -> list[str]:
    """The stages that `dvc repro` or `dvc exp run` says it ran, in order (not those taken from the cache)."""
    names = []
    for line in output.splitlines():
        if line.startswith("Running stage '"):
            names.append(line.split("'")[1].split(":")[-1])
    return names
