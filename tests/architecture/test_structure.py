"""The walls of the house: imports run one way, dvc.yaml says what stages load and read, names say what they hold."""

import ast
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest

from pag_core.figures.labels import METHODS
from pag_core.gradients.sources import SOURCES
from pag_core.params.sections import Params, SourceDefaults
from pag_core.params.values import MethodName, Section, Source
from pag_core.params.yaml_text import read_yaml
from pag_core.pipeline.code_identity import file_fingerprints, imported_modules

ROOT = Path(__file__).resolve().parents[2]
EXPERIMENT = ("dvc.yaml", "stages/gradients/dvc.yaml")
PIPELINES = (*EXPERIMENT, "stages/toy/dvc.yaml")
STAGES = [
    pytest.param(name, stage, id=name)
    for path in PIPELINES
    for name, stage in read_yaml((ROOT / path).read_text(encoding="utf-8"))["stages"].items()
    if name != "code"  # it makes the fingerprints that the others depend on
]
GRADIENTS = read_yaml((ROOT / PIPELINES[1]).read_text(encoding="utf-8"))["stages"]
HEURISTIC = GRADIENTS["heuristic"]["matrix"]["source"]
PROGRAMS = sorted(
    path for folder in ("pag_core", "stages", "experiments", "benchmarks") for path in (ROOT / folder).rglob("*.py")
)
SECTIONS_BY_NAME = {
    "${item.source}": HEURISTIC,
    "${method}": get_args(MethodName),
    "${baseline_method}": get_args(MethodName),
}
# what the program of a stage reads, but not in that stage
UNREAD: dict[str, list[Any]] = {
    # it has no alignment term, and of the objective takes how a method's own gradient is computed; the model that a store
    # was made from is a guard, the store itself a dependency
    "baseline": ["source", "method", "lambda", "source_defaults", "feed", "diffusion_checkpoint", "objective.output",
                 "objective.classes_per_step", "objective.scaling", "objective.weight_warmup", "control"],
    "train": ["baseline_method", "diffusion_checkpoint"],
}  # fmt: skip
# where work runs, and where its data lie, is no part of an experiment's identity
UNTRACKED = {"device", "processes", "threads", "checkpoint_seconds", "feed.mode", "feed.budget_gb"}


def program_of(stage: dict[str, Any]) -> Path:
    """The stages/NAME.py that a stage's command runs."""
    found = re.search(r"stages/\w+\.py", stage["cmd"])
    assert found is not None, stage["cmd"]
    return Path(found[0])


def test_imports_run_one_way() -> None:
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"]
    done = subprocess.run([*command, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:]


@pytest.mark.parametrize(("name", "stage"), STAGES)
def test_dvc_depends_on_the_fingerprint_of_a_stages_code(name: str, stage: dict[str, Any]) -> None:
    assert [path for path in stage["deps"] if path.startswith("data/code")] == [
        f"data/code/{program_of(stage).stem}.txt"
    ]


def test_the_fingerprints_are_made_anew_after_an_edit_of_any_program() -> None:
    (code,) = (stage for name, stage in read_yaml((ROOT / "dvc.yaml").read_text())["stages"].items() if name == "code")
    programs = {f"stages/{path.name}" for path in (ROOT / "stages").glob("*.py")}
    assert set(code["deps"]) == programs | {"pag_core"} and len(code["deps"]) == len(programs) + 1


def test_whatever_runs_long_waits_for_the_check() -> None:
    """By what it takes, or by what a stage before it takes."""
    stages: dict[str, Any] = {}
    for path in EXPERIMENT:
        stages |= read_yaml((ROOT / path).read_text(encoding="utf-8"))["stages"]
    waiting = {name for name, stage in stages.items() if "data/check.txt" in stage["deps"]}
    found = set(waiting)
    while (
        new := {
            name
            for name, stage in stages.items()
            if set(stage["deps"]) & {out for one in found for out in outs(stages[one])}
        }
        - found
    ):
        found |= new
    assert set(stages) - found == {"code", "prepare", "check"}
    # and DVC, which goes through the stages in their order, comes to it before any of them
    assert list(stages).index("check") < min(map(list(stages).index, found))


def outs(stage: dict[str, Any]) -> list[str]:
    return [next(iter(out)) if isinstance(out, dict) else out for out in [*stage["outs"], *stage.get("metrics", [])]]


def test_make_repro_checks_the_parameters_before_dvc_reads_them() -> None:
    printed = subprocess.run(["make", "-n", "repro"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    commands = [line for line in printed.splitlines() if line.endswith(("pag_core.params", "dvc repro"))]
    assert [line.split()[-1] for line in commands] == ["pag_core.params", "repro"]


def test_the_experiment_is_short() -> None:
    assert sum((ROOT / path).read_text(encoding="utf-8").count("\n") for path in EXPERIMENT) <= 260


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
        if isinstance(node, ast.Call) and _called(node) in ("section", "provenance", "open_subject"):
            # open_subject takes the section's name before those of networks
            parts = node.args[1:2] if _called(node) == "open_subject" else [node]
            named = {part.value for top in parts for part in ast.walk(top) if isinstance(part, ast.Constant)}
            read.update(
                *(_keys_of(field) for field, info in Params.model_fields.items() if (info.alias or field) in named)
            )
            if _called(node) != "section":  # the record of an artifact names the seed
                read.add("seed")
        if not isinstance(node, ast.Attribute) or id(node) in inner:
            continue
        chain: list[str] = []
        place: ast.expr = node
        while isinstance(place, ast.Attribute):
            chain.insert(0, place.attr)
            place = place.value
        if isinstance(place, ast.Name) and [place.id, chain[0]] == ["opened", "params"]:
            place, chain = ast.Name("params"), chain[1:]
        if not (isinstance(place, ast.Name) and place.id == "params" and chain and chain[0] in Params.model_fields):
            continue
        keys = _keys_of(chain[0])
        read |= {f"{chain[0]}.{chain[1]}"} if len(chain) > 1 and f"{chain[0]}.{chain[1]}" in keys else keys
    if "lambda" in read:  # where it is auto
        read |= _keys_of("source_defaults")
    return read


def _called(node: ast.Call) -> str:
    """The name of a method, or of the function open_subject."""
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    return name if isinstance(node.func, ast.Attribute) or name == "open_subject" else ""


def _keys_declared(entries: list[Any]) -> set[str]:
    declared: set[str] = set()
    for entry in entries:
        if isinstance(entry, dict):  # all of params.yaml
            return set.union(*(_keys_of(field) for field in Params.model_fields))
        if entry.startswith("${"):  # one section of several, by its name
            declared |= set.union(*(_keys_of(section) for section in SECTIONS_BY_NAME[entry]))
            continue
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
        ("opened.provenance('feed', inputs={})", {"feed.mode", "feed.budget_gb", "feed.window_shards", "seed"}),
        ("params.arch + other.seed", {"arch"}),
        ("params.autoattack.radii.items()", {"autoattack.radii"}),
        ("f(opened.params); opened.params.feed.mode", {"feed.mode"}),
    ],
)
def test_reads_are_found_key_by_key(code: str, keys: set[str]) -> None:
    assert _keys_read(code) == keys


@pytest.mark.parametrize(("name", "stage"), STAGES)
def test_dvc_tracks_the_parameters_that_a_stage_reads(name: str, stage: dict[str, Any]) -> None:
    texts = {
        path: (ROOT / path).read_text(encoding="utf-8")
        for path in file_fingerprints(ROOT / program_of(stage))
        if path.endswith(".py")
    }
    if name == "toy":  # it takes cross-entropy from there, and builds no method by its name
        del texts["pag_core/objective/methods.py"]
        assert not any("build_method" in text for text in texts.values())
    whole = [
        text
        for text in texts.values()
        if "opened.params" in text or "pag_core.params.sections.Params" in imported_modules(text)
    ]
    assert whole
    read = {key for text in whole for key in _keys_read(text)}
    unread = _keys_declared(UNREAD[name]) if name in UNREAD else set()
    assert unread <= read, f"{name} does not read {sorted(unread - read)}, which is excepted"
    read -= unread | UNTRACKED
    declared = _keys_declared(stage["params"])
    assert read <= declared, f"{name} reads {sorted(read - declared)}, which dvc.yaml does not list"


def test_every_source_is_known_where_it_is_needed() -> None:
    assert set(get_args(Source)) == set(SOURCES) == set(SourceDefaults.model_fields)
    assert set(HEURISTIC) == {name for name, source in SOURCES.items() if source.store is not None}
    made = [str(out) for stage in GRADIENTS.values() for out in stage["outs"]]
    for name in set(SOURCES) - set(HEURISTIC):
        assert any(f"data/gradients/{name}.zarr" in out for out in made), f"no stage makes the store of {name}"


def test_every_method_has_its_names() -> None:
    assert set(get_args(MethodName)) == set(METHODS)


def test_stages_import_no_stage() -> None:
    for path in (ROOT / "stages").glob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        modules = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        assert not {module for module in modules if module.split(".")[0] == "stages"}, path


def test_every_stage_file_has_its_stage() -> None:
    named = {program_of(param.values[1]).name for param in STAGES} | {"code.py"}  # type: ignore[arg-type]
    assert named == {path.name for path in (ROOT / "stages").glob("*.py")}


def test_yaml_has_one_reader() -> None:
    """A second parser reads 0123 or yes otherwise than DVC does."""
    readers = {
        path.relative_to(ROOT).as_posix()
        for path in [*PROGRAMS, *(ROOT / "tests").rglob("*.py")]
        for name in imported_modules(path.read_text(encoding="utf-8"))
        if name.split(".")[0] in ("yaml", "ruamel")
    }
    # the tests change params.yaml as a user does, comments and layout kept
    assert readers == {"pag_core/params/yaml_text.py", "tests/project_copy.py"}


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: str(path.relative_to(ROOT)))
def test_names_and_sizes(path: Path) -> None:
    assert path.stem not in {"utils", "util", "helpers", "helper", "common", "misc"}
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= 350
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            length = (node.end_lineno or 0) - node.lineno + 1
            assert length <= 60, f"{node.name} has {length} lines"


def test_what_only_linux_has_is_asked_for_in_one_place() -> None:
    """Of cores, which macOS does not tell so."""
    texts = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in PROGRAMS}
    assert [path for path, text in texts.items() if "sched_getaffinity" in text] == ["pag_core/compute/processes.py"]


def test_the_repository_holds_no_addresses_or_machine_paths() -> None:
    """What is written by hand: in params.yaml, .dvc and dvc.lock are paths of the user's."""
    folders = ("benchmarks", "docs", "experiments", "pag_core", "stages", "tests")
    beside = ("Makefile", "README.md", "dvc.yaml", "pyproject.toml", "requirements.lock", ".ci/run")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*")] + [ROOT / name for name in beside]
    for path in files:
        name = str(path.relative_to(ROOT))
        if not path.is_file() or path.suffix in {".png", ".gz", ".pyc"} or path.name == "dvc.lock":
            continue
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"(?<![\w.])/(?:home|root|Users)/\w", text), f"{name} holds a path of a machine"
        if "requirements" in name or name.endswith(".lock"):
            assert "://" not in text, f"{name} holds a download address; pin with hashes instead"
