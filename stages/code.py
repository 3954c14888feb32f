"""Write what code each stage's result depends on, so that DVC rebuilds a stage only where code that it can load changed."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # import from this checkout, or DVC's copy of it

from pag_core.pipeline.artifacts import replacing_folder
from pag_core.pipeline.code_identity import CHECKOUT, code_record
from pag_core.pipeline.paths import CODE


def main() -> None:
    """Write data/code/STAGE.txt for every program of stages/: a line for each file, with its fingerprint."""
    with replacing_folder(CODE) as folder:
        for program in sorted((CHECKOUT / "stages").glob("[!.]*.py")):
            (folder / f"{program.stem}.txt").write_text(code_record(program), encoding="utf-8")


if __name__ == "__main__":
    main()
