"""The batch files of examples/slurm and the page about them, docs/cluster.md."""

import re
import subprocess

import pytest

from experiments.description.experiment import read_experiment
from tests.fixtures.samples import ROOT

FILES = sorted((ROOT / "examples/slurm").iterdir())
PAGE = (ROOT / "docs/cluster.md").read_text(encoding="utf-8")


def test_page_and_folder_have_the_same_files():
    names = {f"examples/slurm/{file.name}" for file in FILES}
    assert set(re.findall(r"\]\(\.\./(examples/slurm/[^)]+)\)", PAGE)) == names
    assert set(re.findall(r"examples/slurm/\w+\.sbatch", PAGE)) == names


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_a_file_is_a_script_that_gives_how_it_is_submitted(file):
    assert not subprocess.run(["bash", "-n", str(file)], capture_output=True, text=True, check=True).stderr
    text = file.read_text(encoding="utf-8")
    assert f"sbatch examples/slurm/{file.name} " in text or f"examples/slurm/{file.name} experiments/" in text
    assert {"--requeue", "--open-mode=append", "--signal=B:USR1@120"} <= set(re.findall(r"^#SBATCH (\S+)$", text, re.M))


def test_the_array_of_the_page_is_all_runs_after_the_teachers():
    description = re.search(r"^description=(\S+)$", PAGE, re.M)[1]
    first, last = re.findall(r"--array=(\S+)", PAGE)
    runs = list(read_experiment(ROOT / description, "full", []).params)
    assert last == f"0-{len(runs) - 1}"
    assert [runs[int(number)] for number in first.split(",")] == [run for run in runs if run.startswith("sbg-")]
    sweep = (ROOT / "examples/slurm/sweep.sbatch").read_text(encoding="utf-8")
    assert re.findall(r"--array=(\S+)", sweep) == [first, last]
