"""Write what code each stage's result depends on, so that DVC rebuilds a stage only where code that it can load changed.

A function of the user's that params.yaml names has a file of its own, on which the stages that call it depend, and so have the
parameters that training reads only where it validates.
"""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # import from this checkout, or DVC's copy of it

from pag_core.errors import PagError
from pag_core.params.declared import validation_record
from pag_core.params.reading import load_params, value_at
from pag_core.pipeline.artifacts import replacing_folder
from pag_core.pipeline.code_identity import CHECKOUT, NAMED, code_record, own_code_record
from pag_core.pipeline.own_code import OWN
from pag_core.pipeline.paths import CODE, VALIDATED

NONE = "none\n"  # DVC warns of an empty file at each stage that reads it


def main() -> None:
    """Write data/code/STAGE.txt for every program of stages/, data/code/own/NAME.txt, and data/code/params/validation.txt."""
    params = load_params().model_dump(mode="json", by_alias=True)
    with replacing_folder(CODE) as folder:
        for program in sorted((CHECKOUT / "stages").glob("[!.]*.py")):
            (folder / f"{program.stem}.txt").write_text(code_record(program), encoding="utf-8")
        (folder / OWN).mkdir()
        (folder / VALIDATED.relative_to(CODE)).parent.mkdir()
        (folder / VALIDATED.relative_to(CODE)).write_text(validation_record(params), encoding="utf-8")
        # what a source of the user's reads that reads nothing: DVC asks for a path
        (folder / OWN / "nothing.txt").write_text(NONE, encoding="utf-8")
        for name, key in NAMED.items():
            record = own_code_record(value_at(params, key), key)
            (folder / OWN / f"{name}.txt").write_text(record or NONE, encoding="utf-8")


if __name__ == "__main__":
    try:
        main()
    except PagError as error:
        sys.exit(f"code: {type(error).__name__}: {error}")
