"""Write each stage's code dependencies into the dvc.yaml files: its own file and its import closure.

Run it after a change of imports: python tests/architecture/sync_dependencies.py
"""

import re
import sys
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from pag_core.import_closure import import_closure  # noqa: E402

PIPELINES = (ROOT / "dvc.yaml", ROOT / "stages" / "gradients" / "dvc.yaml")
CODE = ("pag_core/", "stages/")
# read by the stage through importlib.resources or jinja2, so no import shows them
DATA_FILES = {"report": ["pag_core/report/page.html"]}


def stage_file(command: str) -> Path:
    """The stages/NAME.py that a stage's command runs."""
    found = re.search(r"stages/\w+\.py", command)
    if found is None:
        raise ValueError(f"no stage file in the command {command!r}")
    return Path(found[0])


def expected_dependencies(name: str, stage: dict[str, Any]) -> list[str]:
    """The stage's data dependencies as they stand, then its file and the project modules that it loads."""
    file = stage_file(stage["cmd"])
    data = [dependency for dependency in stage.get("deps", []) if not dependency.startswith(CODE)]
    closure = sorted(path.as_posix() for path in import_closure(ROOT, file))
    return [*data, file.as_posix(), *closure, *DATA_FILES.get(name, [])]


def main() -> None:
    yaml = YAML()
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.width = 4096
    for path in PIPELINES:
        content = yaml.load(path.read_text(encoding="utf-8"))
        for name, stage in content["stages"].items():
            stage["deps"] = expected_dependencies(name, stage)
        with path.open("w", encoding="utf-8") as file:
            yaml.dump(content, file)


if __name__ == "__main__":
    main()
