"""The walls of the house: imports run one way, dvc.yaml says what stages load and read, names say what they hold."""

import ast
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest

from experiments.runs.stages import Stages
from pag_core.figures.labels import METHODS
from pag_core.gradients.sources import SOURCES
from pag_core.params.declared import WHERE, Reads, keys_of
from pag_core.params.sections import SourceDefaults
from pag_core.params.values import MethodName, Source
from pag_core.params.yaml_text import read_yaml
from pag_core.pipeline.code_identity import NAMED, imported_modules
from tests.fixtures.samples import changed

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
    trained = ["own/network", "params/validation"]
    more = {"check": ["own/network"], "train": trained, "baseline": trained, "own": ["own/gradients"]}.get(name, [])
    assert [path for path in stage["deps"] if path.startswith("data/code")] == [
        f"data/code/{program_of(stage).stem}.txt",
        *(f"data/code/{what}.txt" for what in more),
    ]


def test_no_stage_depends_on_a_file_of_the_users_that_is_not_made() -> None:
    """And the stage that makes them depends on what names them."""
    (code,) = (stage for name, stage in read_yaml((ROOT / "dvc.yaml").read_text())["stages"].items() if name == "code")
    assert set(code["params"]) == {*NAMED.values(), "train.validate_every", "validation"}
    wanted = {dep for param in STAGES for dep in param.values[1]["deps"] if "code/own/" in dep}  # type: ignore[index,call-overload]
    assert wanted == {f"data/code/own/{name}.txt" for name in NAMED}


def test_the_fingerprints_are_made_anew_after_an_edit_of_any_program() -> None:
    (code,) = (stage for name, stage in read_yaml((ROOT / "dvc.yaml").read_text())["stages"].items() if name == "code")
    programs = {f"stages/{path.name}" for path in (ROOT / "stages").glob("*.py")}
    assert sorted(code["deps"]) == sorted([*programs, "pag_core", "own"])


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


class Declared(Exception):
    pass


def declared(command: str, monkeypatch: pytest.MonkeyPatch) -> Reads:
    """What a stage's command declares that it reads."""

    def opening(name: str, *, reads: Reads = (), **options: Any) -> None:
        raise Declared(reads)

    program, *arguments = command.split()[1:]
    monkeypatch.setattr("pag_core.pipeline.stage.stage", opening)
    monkeypatch.setattr(sys, "argv", [program, *arguments])
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(Declared) as found:
        runpy.run_path(str(ROOT / program), run_name="__main__")
    reads: Reads = found.value.args[0]
    return reads


@pytest.mark.parametrize("changes", [{}, {"source": "cm", "method": "at", "baseline_method": "trades"}])
def test_dvc_tracks_what_each_stage_declares(
    make_params: Any, plain_params: dict[str, Any], monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    resolved = Stages().of(changed(plain_params, changes))
    stages = {name: (stage.command, set(stage.tracked)) for name, stage in resolved.items() if name != "code"}
    for name, stage in read_yaml((ROOT / PIPELINES[2]).read_text(encoding="utf-8"))["stages"].items():
        stages[name] = (stage["cmd"], set(stage["params"]))
    reads = {name: declared(command, monkeypatch) for name, (command, _) in stages.items()}
    found = {name: set(keys_of(entries, make_params(changes))) for name, entries in reads.items()}
    assert found == {name: tracked for name, (_, tracked) in stages.items()}
    for name, entries in reads.items():
        assert not (WHERE | {"feed"}) & set(entries), f"{name}: where it runs is part of no experiment's identity"
        auto = {"lambda", "objective", "objective.output"} & set(entries)
        assert bool(auto) == ("source_defaults.${source}" in entries), f"{name}: {auto} may be auto"


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
    assert readers == {"pag_core/params/yaml_text.py", "tests/fixtures/project_copy.py"}


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_is_named_after_what_it_holds(path: Path) -> None:
    assert path.stem not in {"utils", "util", "helpers", "helper", "common", "misc"}


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
