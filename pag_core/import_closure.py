"""The project modules that a file imports, directly or not: what its results depend on, whatever is loaded so far."""

import ast
from pathlib import Path

PACKAGE = "pag_core"
CHECKOUT = Path(__file__).resolve().parents[1]


def imported_modules(path: Path) -> set[str]:
    """The dotted names that a Python file imports anywhere in it, inside functions too; of `from a import b` also a.b."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
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


def import_closure(root: Path, file: Path) -> set[Path]:
    """Files, relative to `root`, of every project module that `file` can load; package __init__ files hold docs only."""
    found: set[Path] = set()
    waiting = [file]
    while waiting:
        for module in imported_modules(root / waiting.pop()):
            path = _file_of(root, module) if module.split(".")[0] == PACKAGE else None
            if path is not None and path not in found and path.name != "__init__.py":
                found.add(path)
                waiting.append(path)
    return found
