"""The walls of the house: imports run one way, dvc.yaml says what stages load and read, names say what they hold."""

import ast
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML
from sync_dependencies import PIPELINES, ROOT, expected_dependencies, stage_file

from pag_core.import_closure import import_closure
from pag_core.params import Params

STAGES = [
    pytest.param(name, stage, id=name)
    for path in PIPELINES
    for name, stage in YAML(typ="safe").load(path.read_text(encoding="utf-8"))["stages"].items()
]
SOURCES = sorted([*(ROOT / "pag_core").rglob("*.py"), *(ROOT / "stages").glob("*.py")])
# where work runs is no part of an experiment's identity
UNTRACKED = {"device", "processes", "threads"}


def test_imports_run_one_way() -> None:
    command = Path(sys.executable).parent / "lint-imports"
    done = subprocess.run([command, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:]


@pytest.mark.parametrize(("name", "stage"), STAGES)
def test_dvc_depends_on_the_code_that_a_stage_loads(name: str, stage: dict[str, Any]) -> None:
    assert stage["deps"] == expected_dependencies(name, stage), "run: python tests/architecture/sync_dependencies.py"


def _sections_read(path: Path) -> set[str]:
    """Top-level parameters that a file reads: attributes of a name `params` of the whole Params, and params.section()."""
    names: set[str] = set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "params":
            field = Params.model_fields.get(node.attr)
            names.update({(field.alias or node.attr)} if field else set())
    return names


@pytest.mark.parametrize(("name", "stage"), STAGES)
def test_dvc_tracks_the_parameters_that_a_stage_reads(name: str, stage: dict[str, Any]) -> None:
    declared = {entry.split(".")[0] for entry in stage["params"]}
    file = stage_file(stage["cmd"])
    whole = [file, *(path for path in import_closure(ROOT, file) if "load_params" in (ROOT / path).read_text())]
    whole += [path for path in import_closure(ROOT, file) if "import Params\n" in (ROOT / path).read_text()]
    read = {section for path in whole for section in _sections_read(ROOT / path)} - UNTRACKED
    if name in ("none", "oi", "cm", "nn"):  # one file makes them all
        read -= {"oi", "cm", "nn"} - {name}
    if name == "baseline":  # vanilla training reads neither the source nor the objective nor the feed
        read -= {"source", "lambda", "objective", "feed", "diffusion_checkpoint"}
    assert read <= declared, f"{name} reads {sorted(read - declared)}, which dvc.yaml does not list"


def test_stages_import_no_stage() -> None:
    for path in (ROOT / "stages").glob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        modules = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        assert not {module for module in modules if module.split(".")[0] == "stages"}, path


def test_every_stage_file_has_its_stage() -> None:
    named = {stage_file(param.values[1]["cmd"]).name for param in STAGES}  # type: ignore[index,call-overload]
    assert named == {path.name for path in (ROOT / "stages").glob("*.py")}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_names_and_sizes(path: Path) -> None:
    assert path.stem not in {"utils", "util", "helpers", "helper", "common", "misc"}
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= 350
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            length = (node.end_lineno or 0) - node.lineno + 1
            assert length <= 60, f"{node.name} has {length} lines"


def test_the_repository_holds_no_addresses_or_machine_paths() -> None:
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    for name in files:
        path = ROOT / name
        if not path.is_file() or path.suffix in {".png", ".gz"}:
            continue
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"(?<![\w.])/(?:home|root|Users)/\w", text), f"{name} holds a path of a machine"
        if "requirements" in name or name.endswith(".lock"):
            assert "://" not in text, f"{name} holds a download address; pin with hashes instead"
