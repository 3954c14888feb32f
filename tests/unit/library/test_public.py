"""What is public: listed in one place, loaded when it is used, and of the signatures that users rely on."""

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import pag_core

ROOT = Path(__file__).resolve().parents[3]
SIGNATURES = Path(__file__).with_name("signatures.txt")


def loaded_by(code):
    """The names of the modules that a fresh Python has after `code`."""
    command = [sys.executable, "-c", f"{code}\nimport sys\nprint(*sys.modules)"]
    return set(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split())


def test_an_import_costs_nothing_until_a_name_is_used():
    loaded = loaded_by("import pag_core, pag_core as again; dir(pag_core)")
    assert not loaded & {"torch", "numpy", "dvc", "pydantic", "zarr"}
    assert {name for name in loaded if name.startswith("pag_core")} == {"pag_core"}


def test_the_library_never_loads_dvc_and_the_loss_loads_no_attack():
    assert not loaded_by("from pag_core import *") & {"dvc", "dvclive"}
    loss = loaded_by("from pag_core import pag_loss")
    assert "torch" in loss and not loss & {"foolbox", "zarr", "matplotlib", "sklearn", "guided_diffusion"}


def test_type_checkers_see_what_there_is():
    tree = ast.parse(Path(pag_core.__file__).read_text(encoding="utf-8"))
    checked = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {(node.module, alias.asname) for node in checked.body for alias in node.names}
    assert all(
        alias.name == alias.asname for node in checked.body for alias in node.names
    )  # others are not re-exported
    there = {(f"pag_core.{module}", name) for module, names in pag_core.PUBLIC.items() for name in names}
    assert seen == there


def test_every_name_is_there_and_any_other_is_refused():
    assert (
        {getattr(pag_core, name).__name__ for name in pag_core.__all__} == set(pag_core.__all__) <= set(dir(pag_core))
    )
    with pytest.raises(AttributeError, match=r"no attribute 'pagloss'.*pag_loss"):
        _ = pag_core.pagloss


def signatures():
    """A line for each public function, class and method, as its source has it: the same under every version of Python."""
    lines = []
    for name in sorted(pag_core.__all__):
        (node,) = ast.parse(inspect.getsource(getattr(pag_core, name))).body
        if isinstance(node, ast.FunctionDef):
            lines.append(line(node))
            continue
        lines.append(f"{name}({', '.join(map(ast.unparse, node.bases))})")
        methods = [part for part in node.body if isinstance(part, ast.FunctionDef)]
        shown = ("__init__", "__call__", "__len__", "__getitem__")
        lines += [f"    {line(part)}" for part in methods if part.name in shown or not part.name.startswith("_")]
    return "\n".join(lines) + "\n"


def line(node):
    return f"{node.name}({ast.unparse(node.args)}) -> {ast.unparse(node.returns)}"


def test_signatures_are_as_users_know_them():
    """Where a change is meant, write what this prints into signatures.txt, and tell users in docs/library.md."""
    assert signatures() == SIGNATURES.read_text(encoding="utf-8")


def test_the_other_packages_hold_docs_alone_in_their_first_file():
    """Their code is no part of a stage's fingerprint (`code_identity`)."""
    for path in (ROOT / "pag_core").rglob("__init__.py"):
        code = ast.parse(path.read_text(encoding="utf-8")).body
        assert len(code) == 1 or path.parent.name == "pag_core", path
