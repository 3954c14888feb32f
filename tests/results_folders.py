"""Folders of made-up results, as an experiment has them at its root, for tests of the page over them."""

import io
import json
from pathlib import Path
from typing import Any

from fsspec.implementations.dirfs import DirFileSystem
from PIL import Image

from experiments.overview.collection import listed
from experiments.overview.page import Listed
from pag_core.params.yaml_text import written_yaml
from tests.samples import changed


def autoattack(clean: float, robust: float, images: int = 200) -> dict[str, Any]:
    return {
        "attack": "standard",
        "images": images,
        "model": {"clean": clean, "L2 0.75": robust},
        "baseline": {"clean": 0.95, "L2 0.75": 0.03},
    }


def details(verdicts: dict[str, str], dataset: str) -> dict[str, Any]:
    """Details of AutoAttack that tell of each image of the model, and which dataset it is of."""
    return {"model": {"verdicts": verdicts}, "baseline": {}, "provenance": {"model": {"inputs": {"dataset": dataset}}}}


def png(width: int, colour: str = "red") -> bytes:
    """A picture that is known by its width."""
    content = io.BytesIO()
    Image.new("RGB", (width, 10), colour).save(content, "PNG")
    return content.getvalue()


def write_results(
    work: Path,
    name: str,
    params: dict[str, Any],
    changes: dict[str, Any],
    metrics: dict[str, Any],
    figures: dict[str, bytes] | None = None,
) -> Path:
    """Write WORK/NAME, with `changes` laid over `params`, and return it."""
    place = work / name
    (place / "metrics/details").mkdir(parents=True)
    (place / "params.yaml").write_text(written_yaml(changed(params, changes)), encoding="utf-8")
    for file, content in {"details/autoattack": {}, **metrics}.items():
        (place / "metrics" / f"{file}.json").write_text(json.dumps(content), encoding="utf-8")
    for figure, content in (figures or {}).items():
        (place / "figures").mkdir(exist_ok=True)
        (place / "figures" / f"{figure}.png").write_bytes(content)
    return place


def listed_in(work: Path) -> list[Listed]:
    """The experiments below `work`, by name."""
    folders = sorted(path for path in work.iterdir() if path.is_dir())
    return [listed(DirFileSystem(str(folder)), folder.name, "here") for folder in folders]
