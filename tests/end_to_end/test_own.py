"""A network and a source of gradients of the user's, through DVC: from two files to the page, and what an edit rebuilds."""

import shutil
import subprocess
import sys

import pytest

from tests.fixtures.own_folder import BLOCKS, NETWORKS, write_own
from tests.fixtures.project_copy import SMALL, ProjectCopy, stages_run

pytestmark = pytest.mark.slow

GRADIENTS = """
import torch


def towards_a_pattern(images, labels, classes, reads):
    patterns = torch.load(reads)[classes]
    return patterns - images[:, None]
"""
OWN = {"arch": "own.networks:convnet", "source": "own", "own.function": "own.gradients:towards_a_pattern",
       "own.reads": "patterns.pt", "classifier.options": {"width": 8}, "objective.batch_norm": "class"}  # fmt: skip
FILES = {"networks.py": NETWORKS, "blocks.py": BLOCKS, "gradients.py": GRADIENTS}
PATTERNS = "import torch; torch.manual_seed({}); torch.save(torch.rand(10, 1, 8, 8), 'patterns.pt')"
# in a process that sees the export alone
OUTSIDE = """
import sys
from pag_classifier import load
import torch
print(repr(load(".")(torch.full((2, 1, 8, 8), 0.25)).double().sum().item()))
assert not [name for name in sys.modules if name == "own" or name.startswith(("own.", "pag_core"))]
"""
INSIDE = """
import torch
from pathlib import Path
from pag_core.classifiers.building import load_classifier
from pag_core.datasets.prepared import read_dataset
network, _ = load_classifier(Path("data/classifier"), read_dataset(Path("data/digits.zarr")), torch.device("cpu"))
print(repr(network(torch.full((2, 1, 8, 8), 0.25)).double().sum().item()))
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> ProjectCopy:
    # numbers are not looked at: an attack under which every image falls at once, and little else
    short = {"autoattack.radii": {"L2": [3]}, "foolbox.images": 1, "train.epochs": 1}
    copy = ProjectCopy(tmp_path_factory.mktemp("own") / "pag", {**SMALL, **OWN, **short})
    write_own(copy.path, FILES)
    copy.run(sys.executable, "-c", PATTERNS.format(0))
    return copy


def repro(project: ProjectCopy, *targets: str) -> set[str]:
    ran = stages_run(project.run("dvc", "repro", *targets).stdout)
    return {name.rpartition(":")[2] for name in ran}


def test_to_the_page_and_what_an_edit_rebuilds(project: ProjectCopy) -> None:
    assert {"own", "train", "baseline", "report"} <= repro(project)
    page = (project.path / "report.html").read_text(encoding="utf-8")
    assert "own.gradients:towards_a_pattern" in page and "own.networks:convnet" in page
    assert repro(project) == set()

    # these two, and all before them; what measures them depends on them
    trained = ("stages/gradients/dvc.yaml:train", "baseline")
    write_own(project.path, {"networks.py": NETWORKS.replace("width,", "width , ")})
    assert repro(project, *trained) == {"code"}, "layout is no code"
    write_own(project.path, {"blocks.py": BLOCKS.replace("gelu", "silu")})
    assert repro(project, *trained) == {"code", "check", "train", "baseline"}
    write_own(project.path, {"gradients.py": GRADIENTS.replace("- images", "- 0.5 * images")})
    assert repro(project, *trained) == {"code", "own", "train"}
    project.run(sys.executable, "-c", PATTERNS.format(1))
    assert repro(project, *trained) == {"own", "train"}


def test_dvcs_copies_of_the_checkout_have_what_git_knows(project: ProjectCopy) -> None:
    run = ("dvc", "exp", "run", "--temp", "--set-param", "lambda=0.5", "validation")
    refused = project.run(*run, check=False)
    assert refused.returncode and "`git add own/networks.py`" in refused.stdout + refused.stderr
    project.git("add", "own", "patterns.pt")
    assert "train" in stages_run(project.run(*run).stdout)


def test_an_exported_network_carries_its_code(project: ProjectCopy) -> None:
    shutil.rmtree(project.path / "metrics/details")  # of the network before the edits
    project.run(sys.executable, "-m", "pag_core.exchange.export", "exported")
    inside = project.run(sys.executable, "-c", INSIDE).stdout
    outside = subprocess.run(
        [sys.executable, "-c", OUTSIDE], cwd=project.path / "exported", capture_output=True, text=True, check=False
    )
    assert outside.stdout == inside != "", outside.stderr
    write_own(project.path, {"networks.py": f"{NETWORKS}\nA = 1\n"})
    edited = project.run(sys.executable, "-m", "pag_core.exchange.export", "again", check=False)
    assert edited.returncode == 1 and "was trained with another own/networks.py: train again" in edited.stderr
