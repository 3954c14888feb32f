"""What differs in params.yaml from the last commit: `dvc exp run -S` leaves there what it was given."""

import subprocess
from pathlib import Path
from typing import Any

from pag_core.params.reading import plain_params


def uncommitted(path: Path = Path("params.yaml")) -> dict[str, tuple[Any, Any]]:
    """The value now and the one of the last commit by dotted key, where they differ; nothing where git knows no such file."""
    try:
        shown = subprocess.run(
            ["git", "show", f"HEAD:./{path.name}"], cwd=path.resolve().parent, capture_output=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return {}
    now, before = (_leaves(plain_params(text, str(path))) for text in (path.read_bytes(), shown.stdout))
    return {key: (now.get(key), before.get(key)) for key in sorted({*now, *before}) if now.get(key) != before.get(key)}


def _leaves(content: Any, place: str = "") -> dict[str, Any]:
    if not isinstance(content, dict):
        return {place: content}
    return {
        key: value
        for name, part in content.items()
        for key, value in _leaves(part, f"{place}.{name}".lstrip(".")).items()
    }
