"""One page over all experiments, to sort, to filter, and to put side by side: experiments.html, which opens offline.

python experiments/page.py           # --text: its table alone, as text
"""

import sys
from pathlib import Path
from typing import Annotated

sys.path[0] = str(Path(__file__).resolve().parents[1])  # this checkout

import typer

from experiments.overview.collection import of_checkout
from experiments.overview.page import render_overview
from experiments.overview.text import as_text
from pag_core.errors import PagError
from pag_core.pipeline.artifacts import readable_bytes, replacing_file


def main(
    output: Annotated[Path, typer.Option(help="Where the page is written.")] = Path("experiments.html"),
    text: Annotated[bool, typer.Option("--text", help="Write no page: print its table as text.")] = False,
) -> None:
    """Write the page of this checkout's results and of its DVC experiments."""
    try:
        found = of_checkout(figures=not text)
        if not found:
            print(
                "No experiment has results yet; run one: dvc repro, dvc exp run or experiments/run.py", file=sys.stderr
            )
            sys.exit(1)
        if text:
            print(as_text(found), end="")
            return
        html = render_overview(found)
    except PagError as error:
        print(error, file=sys.stderr)
        sys.exit(1)
    with replacing_file(output) as partial:
        partial.write_text(html, encoding="utf-8")
    size = readable_bytes(output.stat().st_size)
    print(f"{len(found)} experiment{'' if len(found) == 1 else 's'}, {size}: {output.resolve()}")


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    app()
