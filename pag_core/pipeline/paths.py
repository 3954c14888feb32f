"""Where the artifacts of an experiment lie, relative to the folder that holds params.yaml."""

from pathlib import Path
from typing import Any

from pag_core.pipeline.artifacts import write_json

DATA = Path("data")
CODE = DATA / "code"
VALIDATED = CODE / "params/validation.txt"
DIFFUSION = DATA / "diffusion"
TOY = DATA / "toy"
# the same wherever it exists: it says that what was asked for fits the data, and nothing is made from it
CHECKED = DATA / "check.txt"
METRICS = Path("metrics")
FIGURES = Path("figures")
PAGE = Path("report.html")


def dataset_path(name: str) -> Path:
    """The prepared dataset."""
    return DATA / f"{name}.zarr"


def gradients_path(source: str) -> Path:
    """The gradient store of a source."""
    return DATA / "gradients" / f"{source}.zarr"


def classifier_path(who: str) -> Path:
    """A trained network: `classifier` or `baseline`."""
    return DATA / who


def measured_path(who: str, checkpoint: str) -> Path:
    """The network that is measured as `who`: the baseline, or for `classifier` the one in `classifier_checkpoint`."""
    return Path(checkpoint) if who == "classifier" else classifier_path(who)


def curves_path(what: str) -> Path:
    """The training curves of `diffusion`, `classifier` or `baseline`."""
    return Path("curves") / what


def details_path(name: str) -> Path:
    """All that was measured of one kind; the headline of it is in `METRICS / NAME.json`."""
    return METRICS / "details" / f"{name}.json"


def write_metrics(name: str, details: dict[str, Any], headline: dict[str, Any]) -> None:
    """Write all that was measured, and beside it the few numbers by which experiments are compared (`dvc exp show`)."""
    write_json(details_path(name), details)
    write_json(METRICS / f"{name}.json", headline)
