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
from pag_core.params import Params, Section

STAGES = [
    pytest.param(name, stage, id=name)
    for path in PIPELINES
    for name, stage in YAML(typ="safe").load(path.read_text(encoding="utf-8"))["stages"].items()
]
SOURCES = sorted([*(ROOT / "pag_core").rglob("*.py"), *(ROOT / "stages").glob("*.py")])
# where work runs, and where its data lie, is no part of an experiment's identity
UNTRACKED = {"device", "processes", "threads", "feed.mode", "feed.budget_gb"}


def test_imports_run_one_way() -> None:
    command = Path(sys.executable).parent / "lint-imports"
    done = subprocess.run([command, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:]


@pytest.mark.parametrize(("name", "stage"), STAGES)
def test_dvc_depends_on_the_code_that_a_stage_loads(name: str, stage: dict[str, Any]) -> None:
    assert stage["deps"] == expected_dependencies(name, stage), "run: python tests/architecture/sync_dependencies.py"


def _keys_of(field: str) -> set[str]:
    """A parameter's dotted keys: its own name, or those of its section's values."""
    section = Params.model_fields[field].annotation
    name = Params.model_fields[field].alias or field
    return {f"{name}.{key}" for key in section.model_fields} if _is_section(section) else {name}


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Section) and bool(kind.model_fields)


def _keys_read(code: str) -> set[str]:
    """The keys that a file reads of a name `params` of the whole Params; a section passed on whole stands for all its keys."""
    read: set[str] = set()
    tree = ast.parse(code)
    inner = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "section":
            named = {part.value for part in ast.walk(node) if isinstance(part, ast.Constant)}
            read.update(
                *(_keys_of(field) for field, info in Params.model_fields.items() if (info.alias or field) in named)
            )
        if not isinstance(node, ast.Attribute) or id(node) in inner:
            continue
        chain: list[str] = []
        place: ast.expr = node
        while isinstance(place, ast.Attribute):
            chain.insert(0, place.attr)
            place = place.value
        if not (isinstance(place, ast.Name) and place.id == "params" and chain[0] in Params.model_fields):
            continue
        keys = _keys_of(chain[0])
        read |= {f"{chain[0]}.{chain[1]}"} if len(chain) > 1 and f"{chain[0]}.{chain[1]}" in keys else keys
    if "lambda" in read:  # where it is auto
        read |= _keys_of("source_lambda")
    return read


def _keys_declared(entries: list[str]) -> set[str]:
    declared: set[str] = set()
    for entry in entries:
        name, _, key = entry.partition(".")
        whole = _keys_of("weight" if name == "lambda" else name)
        declared |= whole if not key or key.startswith("$") else {entry}
    return declared


@pytest.mark.parametrize(
    ("code", "keys"),
    [
        ("params.feed.mode", {"feed.mode"}),
        ("f(params.feed)", {"feed.mode", "feed.budget_gb", "feed.window_shards"}),
        ("params.feed.model_dump()", {"feed.mode", "feed.budget_gb", "feed.window_shards"}),
        ("params.section('feed', 'seed')", {"feed.mode", "feed.budget_gb", "feed.window_shards", "seed"}),
        ("params.arch + other.seed", {"arch"}),
        ("params.autoattack.radii.items()", {"autoattack.radii"}),
    ],
)
def test_reads_are_found_key_by_key(code: str, keys: set[str]) -> None:
    assert _keys_read(code) == keys


@pytest.mark.parametrize(("name", "stage"), STAGES)
def test_dvc_tracks_the_parameters_that_a_stage_reads(name: str, stage: dict[str, Any]) -> None:
    file = stage_file(stage["cmd"])
    texts = [(ROOT / path).read_text(encoding="utf-8") for path in (file, *import_closure(ROOT, file))]
    whole = [text for text in texts if "load_params" in text or "import Params\n" in text]
    read = {key for text in whole for key in _keys_read(text)} - UNTRACKED
    if name in ("none", "oi", "cm", "nn"):  # one file makes them all
        read -= set.union(*(_keys_of(source) for source in ("oi", "cm", "nn") if source != name))
    if name == "baseline":  # vanilla training reads neither the source nor the objective nor the feed
        unread = ("source", "weight", "source_lambda", "objective", "feed")
        read -= set.union(*(_keys_of(field) for field in unread))
    if name in ("baseline", "train"):  # a guard against a store of another model; the store itself is a dependency
        read -= {"diffusion_checkpoint"}
    declared = _keys_declared(stage["params"])
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
