"""docs/library.md: every public name, in blocks of fewer than fifteen lines, which run in their order."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

import pag_core
from pag_core.datasets.labelled_images import LabelledImages
from pag_core.datasets.prepared import read_dataset
from tests.fixtures.noise_predictors import ALPHAS_CUMPROD, EDM, DiffusersUNet
from tests.fixtures.samples import gaussian, write_dense, write_prepared

DOCUMENT = Path(__file__).resolve().parents[3] / "docs/library.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```$", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def test_each_public_name_is_shown_in_under_fifteen_lines():
    assert all(len(block.splitlines()) < 15 for block in BLOCKS)
    code = "\n".join(BLOCKS)
    imported = set(re.findall(r"^from pag_core import (.+)$", code, re.MULTILINE))
    names = {name for line in imported for name in line.split(", ")}
    # what the functions of targets return
    assert names == set(pag_core.__all__) - {"GradientTargets"}
    for name in names:
        assert len(re.findall(rf"\b{name}\b", code)) > 1, f"{name} is imported and not used"


def stand_ins():
    """What a reader has: diffusion models of digits, a vanilla network, and the pipeline's files in the current folder."""
    digits = load_digits()
    images = torch.tensor(digits.images[:, None] / 16, dtype=torch.float32)
    means = torch.stack([images[torch.tensor(digits.target) == label].mean(0) for label in range(10)]) * 2 - 1
    parts = {
        name: LabelledImages((digits.images[rows, None] * 15).astype("uint8"), digits.target[rows].astype("int64"))
        for name, rows in {"train": slice(0, 64), "validation": slice(64, 90), "test": slice(90, 120)}.items()
    }
    write_prepared(Path("data/digits.zarr"), tuple(map(str, digits.target_names)), parts, {})
    gradients = {"train": gaussian(64, classes=10)}
    write_dense(Path("data/gradients/sbg.zarr"), Path("work"), read_dataset(Path("data/digits.zarr")), gradients)
    torch.manual_seed(0)
    vanilla = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.SiLU(), nn.Linear(32, 10)).eval()
    return {
        "unet": DiffusersUNet(means),
        "scheduler": SimpleNamespace(alphas_cumprod=ALPHAS_CUMPROD),
        "conditional": EDM(means, conditional=True),
        "unconditional": EDM(means, conditional=False),
        "vanilla": vanilla,
    }


@pytest.mark.slow
def test_the_blocks_run_in_their_order(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names = {"__name__": "reader", **stand_ins()}
    for number, block in enumerate(BLOCKS):
        exec(compile(block, f"block {number} of {DOCUMENT.name}", "exec"), names)
    assert names["attacked"]["clean"] > 0.8 and set(names["checked"]["verdict"]) >= {"reaches_zero"}
    assert names["every_class"].shape == (2, 10, 1, 8, 8) == names["adversarial"].shape
    assert names["chosen"].shape == (2, 2, 1, 8, 8) and names["score"] > 0.1
    assert "must lie in [0, 1]" in capsys.readouterr().out
    assert {"plain.zarr", "edm.zarr", "evaluation", "targeted.png"} <= {path.name for path in tmp_path.iterdir()}
