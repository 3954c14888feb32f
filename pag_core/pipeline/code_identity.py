"""The identity of code: one fingerprint of all project files that a program can load, for DVC and for checkpoints alike."""

import ast
import functools
import hashlib
import sys
from pathlib import Path

from pag_core.pipeline.own_code import OWN, is_own, missing, own_file

PACKAGE = "pag_core"
# where params.yaml names a function of the user's: by the file of data/code/own that has its code
NAMED = {"network": "arch", "gradients": "own.function"}
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


def imported_modules(code: str, folder: Path = Path()) -> set[str]:
    """The dotted names that Python code imports anywhere in it, inside functions too; of `from a import b` also a.b.

    `folder` is the one of the file that holds it, from which relative imports go.
    """
    names: set[str] = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = folder.parts[: len(folder.parts) + 1 - node.level] if node.level else ()
            module = ".".join([*above, *([node.module] if node.module else [])])
            names.add(module)
            names.update(f"{module}.{alias.name}" for alias in node.names)
    return names


def _file_of(root: Path, module: str) -> Path | None:
    base = root.joinpath(*module.split("."))
    for path in (base.with_suffix(".py"), base / "__init__.py"):
        if path.exists():
            return path.relative_to(root)
    return None


def import_closure(root: Path, program: Path) -> set[Path]:
    """Files, relative to `root`, of every project module that `program` can load, whatever is loaded already.

    Data files beside a module (a page's template) count with it, hidden ones and Markdown do not; the project's __init__ files
    hold docs, and names of the library that no stage uses.
    """
    return _reached(root, imported_modules((root / program).read_text(encoding="utf-8"), program.parent))


def _reached(root: Path, modules: set[str]) -> set[Path]:
    found: set[Path] = set()
    waiting = list(modules)
    while waiting:
        module = waiting.pop()
        path = _file_of(root, module) if module.split(".")[0] in (PACKAGE, OWN) else None
        if path is not None and path not in found and (path.name != "__init__.py" or path.parts[0] == OWN):
            found.add(path)
            waiting += imported_modules((root / path).read_text(encoding="utf-8"), path.parent)
    beside = {file for folder in {path.parent for path in found} for file in (root / folder).iterdir()}
    data = {file for file in beside if file.is_file() and file.suffix not in (".py", ".md") and file.name[0] != "."}
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
    return _fingerprints(root, paths)


def _fingerprints(root: Path, paths: set[Path]) -> dict[str, str]:
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


def own_code_record(name: str | None, key: str, root: Path = CHECKOUT) -> str:
    """As `code_record` of the file that holds a function of the user's; empty for one of the project's.

    Raises ParamsError, which says that `key` names it, where the file is not there.
    """
    found = _fingerprints(root, own_code_files(name, key, root))
    return "".join(f"{fingerprint}  {path}\n" for path, fingerprint in found.items())


def own_code_files(name: str | None, key: str, root: Path = CHECKOUT) -> set[Path]:
    """The file of a function of the user's and what it can load, relative to `root`; raises as `own_code_record`."""
    if name is None or not is_own(name):
        return set()
    if not (root / (file := own_file(name))).is_file():
        raise missing(name, key)
    # the packages that it lies in are loaded too
    packages = {".".join(file.parent.parts[:depth]) for depth in range(1, len(file.parts))}
    return _reached(root, {".".join(file.with_suffix("").parts), *packages})


def own_code_inputs(name: str | None, key: str) -> dict[str, str]:
    """The fingerprint of the code of a function of the user's, by its name, for a record; nothing for one of the project's."""
    record = own_code_record(name, key)
    return {name: hashlib.sha256(record.encode()).hexdigest()} if name is not None and record else {}


def code_fingerprint(program: Path | None = None, root: Path = CHECKOUT) -> str:
    """SHA-256 over `file_fingerprints` of `program`, by default the file that Python was started with."""
    if program is None:
        program = Path(getattr(sys.modules["__main__"], "__file__", None) or "/").resolve()
    lines = [f"{path} {fingerprint}\n" for path, fingerprint in file_fingerprints(program, root).items()]
    return hashlib.sha256("".join(lines).encode()).hexdigest()
