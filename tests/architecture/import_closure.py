"""The project modules that a stage's file imports, directly or not: what its entry in dvc.yaml must depend on."""

import ast
from pathlib import Path

PACKAGE = "pag_core"


def _imported_modules(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return {name for name in names if name.split(".")[0] == PACKAGE}


def _file_of(root: Path, module: str) -> Path | None:
    base = root.joinpath(*module.split("."))
    for path in (base.with_suffix(".py"), base / "__init__.py"):
        if path.exists():
            return path.relative_to(root)
    return None


def import_closure(root: Path, stage: Path) -> set[Path]:
    """Files, relative to `root`, of every project module that `stage` loads; package __init__ files hold docs only."""
    found: set[Path] = set()
    waiting = [stage]
    while waiting:
        for module in _imported_modules(root / waiting.pop()):
            path = _file_of(root, module)
            if path is not None and path not in found and path.name != "__init__.py":
                found.add(path)
                waiting.append(path)
    return found
