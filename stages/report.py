"""Gather the experiment's numbers and pictures in one page that opens offline."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # this checkout, also in a DVC copy; not the stages beside

from pag_core.artifacts import replacing_file
from pag_core.params import load_params
from pag_core.report.page import render_page
from pag_core.report.results import read_results
from pag_core.stage import run, stage


def main() -> None:
    """Write report.html."""
    with stage("report"):
        page = Path("report.html")
        text = render_page(read_results(load_params()))
        with replacing_file(page) as partial:
            partial.write_text(text, encoding="utf-8")
        print(f"The page: {page.resolve()}")


if __name__ == "__main__":
    run(main)
