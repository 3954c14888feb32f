"""Check a file of parameters by itself: `python -m pag_core.params [FILE]`.

DVC puts parameters into the templates of dvc.yaml before any stage reads them, and says of a mistyped one only what it misses.
"""

import sys
from pathlib import Path
from typing import Annotated

import typer

from pag_core.errors import ParamsError
from pag_core.params.reading import load_params


def main(file: Annotated[Path, typer.Argument(help="The file of parameters.")] = Path("params.yaml")) -> None:
    """Check every key and value; what is refused is named with what is allowed, and the exit code is then 1."""
    try:
        load_params(file)
    except ParamsError as error:
        print(f"ParamsError: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    app()
