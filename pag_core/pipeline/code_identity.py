"""The identity of code: one fingerprint of all project files that a program can load, for DVC and for checkpoints alike."""

import ast
import functools
import hashlib
import sys
from pathlib import Path

PACKAGE = "pag_core"
CHECKOUT = Path(__file__).resolve().parents[2]
# these only refuse: what they let through is in the parameters that DVC and every record hold, and an error leaves no result.
# Were they part of it, a new value or a new message would cost each diffusion model
REFUSING = {
    Path(PACKAGE) / name
    for name in (
        "errors.py", "params/sections.py", "params/measurements.py", "params/values.py", "params/reading.py",
        "params/yaml_text.py",
    )
}  # fmt: skip


def imported_modules(code: str) -> set[str]:
    """The dotted names that Python code imports anywhere in it, inside functions too; of `from a import b` also a.b."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def _file_of(root: Path, module: str) -> Path | None:
    base = root.joinpath(*module.split("."))
    for path in (base.with_suffix(".py"), base / "__init__.py"):
        if path.exists():
            return path.relative_to(root)
    return None


def import_closure(root: Path, program: Path) -> set[Path]:
    """Files, relative to `root`, of every project module that `program` can load, whatever is loaded already.

    Data files beside a module (a page's template) count with it, hidden ones do not; package __init__ files hold docs only.
    """
    found: set[Path] = set()
    waiting = [program]
    while waiting:
        code = (root / waiting.pop()).read_text(encoding="utf-8")
        for module in imported_modules(code):
            path = _file_of(root, module) if module.split(".")[0] == PACKAGE else None
            if path is not None and path not in found and path.name != "__init__.py":
                found.add(path)
                waiting.append(path)
    beside = {file for folder in {path.parent for path in found} for file in (root / folder).iterdir()}
    data = {file for file in beside if file.is_file() and file.suffix != ".py" and not file.name.startswith(".")}
    return found | {file.relative_to(root) for file in data}


@functools.lru_cache
def meaning(code: str) -> str:
    """Python code without comments, docstrings and layout: what can change a result."""
    tree = ast.parse(code)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)


def file_fingerprints(program: Path, root: Path = CHECKOUT) -> dict[str, str]:
    """SHA-256 of `program` and of each file that it can load, by path relative to `root`, sorted.

    An edit of comments, docstrings or layout alone leaves them as they are, and the files of `REFUSING` are not among them.
    A program from elsewhere (a notebook, a test) has the whole package as its code.
    """
    closure = import_closure(root, program.relative_to(root)) if program.is_relative_to(root) else set()
    if closure:
        paths = closure | {program.relative_to(root)}
    else:
        paths = {path.relative_to(root) for path in (root / PACKAGE).rglob("[!.]*.py")}
    found = {}
    for path in sorted(paths - REFUSING):
        content = (root / path).read_bytes()
        if path.suffix == ".py":
            content = meaning(content.decode()).encode()
        found[path.as_posix()] = hashlib.sha256(content).hexdigest()
    return found


def code_record(program: Path) -> str:
    """The content of data/code/STAGE.txt, by which DVC knows a stage's code: a line for each file, with its fingerprint."""
    return "".join(f"{fingerprint}  {path}\n" for path, fingerprint in file_fingerprints(program).items())


def code_fingerprint(program: Path | None = None, root: Path = CHECKOUT) -> str:
    """SHA-256 over `file_fingerprints` of `program`, by default the file that Python was started with."""
    if program is None:
        program = Path(getattr(sys.modules["__main__"], "__file__", None) or "/").resolve()
    lines = [f"{path} {fingerprint}\n" for path, fingerprint in file_fingerprints(program, root).items()]
    return hashlib.sha256("".join(lines).encode()).hexdigest()
