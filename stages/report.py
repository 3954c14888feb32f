"""Gather the experiment's numbers and pictures in one page that opens offline."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # import from this checkout, or DVC's copy of it

from pag_core.datasets.counts import count
from pag_core.datasets.prepared import read_dataset
from pag_core.params.declared import ALL
from pag_core.pipeline.artifacts import replacing_file
from pag_core.pipeline.paths import PAGE, dataset_path
from pag_core.pipeline.stage import run, stage
from pag_core.report.page import render_page
from pag_core.report.results import read_results


def main() -> None:
    """Write report.html."""
    with stage("report", reads=ALL) as opened:
        params = count(opened, read_dataset(dataset_path(opened.params.dataset)))
        text = render_page(read_results(params))
        with replacing_file(PAGE) as partial:
            partial.write_text(text, encoding="utf-8")
        print(f"The page: {PAGE.resolve()}")


if __name__ == "__main__":
    run(main)
