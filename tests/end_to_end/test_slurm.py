"""The batch files of examples/slurm on a Slurm of two nodes: requeued in the middle of training, with an unbroken run's bytes.

Skipped where none answers. The folder of the tests has to be one that its nodes share (pytest --basetemp).
"""

import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pag_core.params.yaml_text import written_yaml
from tests.faults.test_killed_stages import contents
from tests.fixtures.project_copy import SMALL, ProjectCopy, stages_run
from tests.fixtures.samples import ROOT
from tests.fixtures.small_experiment import as_folders

PATIENCE = 3000  # seconds: a job may wait in the queue
pytestmark = [pytest.mark.slow, pytest.mark.timeout(2 * PATIENCE)]

TRAIN = "stages/gradients/dvc.yaml:train"
# so many steps that they are under way for seconds
LONG = {**SMALL, "source": "cm", "checkpoint_seconds": 10**6, "train.epochs": 40}
# the sites' GPUs are not asked for
SMALL_JOB = ("--gpus-per-node=0", "--cpus-per-task=1", "--mem=0", "--time=30")


class ClusterProject(ProjectCopy):
    """With the batch files, and what they find of the environment; git knows who commits, in clones as well."""

    def __init__(self, path: Path, overrides: dict[str, Any], **files: str) -> None:
        shutil.copytree(ROOT / "examples/slurm", path / "examples/slurm")
        for name, content in files.items():
            (path / f"{name}.yaml").write_text(content, encoding="utf-8")
        super().__init__(path, overrides)
        (path / ".venv/bin").mkdir(parents=True)
        (path / ".venv/bin/activate").write_text(f'PATH="{Path(sys.executable).parent}:$PATH"\n', encoding="utf-8")
        (path.parent / ".gitconfig").write_text("[user]\nname = test\nemail = test@example.invalid\n", encoding="utf-8")

    def environment(self, *, forked: bool = False) -> dict[str, str]:
        variables = super().environment(forked=forked)
        return {**variables, "HOME": str(self.path.parent), "GIT_CONFIG_GLOBAL": str(self.path.parent / ".gitconfig")}

    def ask(self, *command: str, check: bool = True) -> str:
        return self.run(*command, check=check, forked=False).stdout.strip()

    def submit(self, file: str, *arguments: str, options: tuple[str, ...] = ()) -> str:
        """The number of a job that runs a batch file."""
        place = f"--output={self.path.parent}/%x-%a.out"
        name = f"--job-name={file}"
        given = ("sbatch", "--parsable", *SMALL_JOB, place, name, *options, f"examples/slurm/{file}.sbatch", *arguments)
        return self.ask(*given)

    def log(self, file: str, task: str = "4294967294") -> str:
        """What a job has said; without a task the number is Slurm's for none."""
        return _text(self.path.parent / f"{file}-{task}.out")

    def requeue(self, job: str, said: Callable[[], str], by: tuple[str, ...] = ("scontrol", "requeue")) -> None:
        """Requeue `job` when the bar of a training in `said` is at two steps, and let it begin again at once."""
        until(lambda: any(int(done) >= 2 for done in re.findall(r"classifier:.*?(\d+)/\d+ \[", said())), said)
        self.ask(*by, job)
        until(lambda: self.ask("squeue", "--noheader", f"--jobs={job}", "--format=%T") == "PENDING", said)
        self.ask("scontrol", "update", f"JobId={job}", "StartTime=now")

    def wait(self, job: str, said: Callable[[], str]) -> None:
        """Wait for a job, or all of an array, to complete."""

        def states() -> set[str]:
            return set(re.findall(r"JobState=(\w+)", self.ask("scontrol", "show", "job", "--oneliner", job)))

        until(lambda: states() <= {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT"}, said)
        assert states() == {"COMPLETED"}, said()[-3000:]


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""


def until(condition: Callable[[], bool], said: Callable[[], str]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, said()[-3000:]
        time.sleep(0.1)


@pytest.fixture(scope="module", autouse=True)
def two_nodes() -> None:
    if shutil.which("sinfo") is None:
        pytest.skip("Slurm is not installed here (no sinfo)")
    asked = ["sinfo", "--noheader", "--responding", "--format=%D"]
    done = subprocess.run(asked, capture_output=True, text=True, check=False, timeout=120)
    if done.returncode or sum(map(int, done.stdout.split())) < 2:
        pytest.skip(f"no Slurm of two nodes answers: {done.stderr.strip() or done.stdout.strip()}")


@pytest.mark.parametrize(
    ("file", "arguments", "by", "unbroken"),
    [
        ("one_node", (TRAIN,), ("scontrol", "requeue"), (sys.executable,)),
        (
            "several_nodes",
            ("heuristic@cm", TRAIN),
            ("scancel", "--batch", "--signal=USR1"),  # as near the time limit
            (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
        ),
    ],
)
def test_a_requeued_training_ends_with_the_bytes_of_an_unbroken_one(
    tmp_path: Path, file: str, arguments: tuple[str, ...], by: tuple[str, ...], unbroken: tuple[str, ...]
) -> None:
    project = ClusterProject(tmp_path / "pag", LONG)
    job = project.submit(file, *arguments)
    project.requeue(job, lambda: project.log(file), by)
    assert list((project.path / ".cache").glob("classifier-*/checkpoint.pt")), project.log(file)[-3000:]
    project.wait(job, lambda: project.log(file))
    # what the second run says begins with stages that the first has made
    _, _, after = project.log(file).partition("DUE TO JOB REQUEUE")[2].partition("didn't change")
    begun = re.search(r"classifier:.*?(\d+)/(\d+) \[", after)
    assert begun is not None and 0 < int(begun[1]) < int(begun[2]), after[-3000:]
    # DVC has recorded what is there
    assert project.ask("dvc", "status", TRAIN).endswith("up to date.")
    outputs = ["data/classifier", "curves/classifier"]
    made = contents(project.path, outputs)
    for name in outputs:
        shutil.rmtree(project.path / name)
    project.run(*unbroken, "stages/train.py", forked=False)
    assert contents(project.path, outputs) == made


def test_an_array_shares_what_its_first_job_has_made(tmp_path: Path) -> None:
    description = {
        "stages": ["validation", "baseline"],
        "sizes": {
            "full": {
                "prepare": {"classes": ["cat", "dog"], "validation_fraction": 0.2},
                "train": {"epochs": 300},
                "validation": {"images": 4},
                "objective": {"classes_per_step": "all"},
            }
        },
        "classifiers": {"cm": {"source": "cm", "lambda": 0.2}, "oi": {"source": "oi", "lambda": 0.2}},
    }
    project = ClusterProject(tmp_path / "pag", {"checkpoint_seconds": 10**6}, sweep=written_yaml(description))
    given = ("sweep.yaml", "--images", str(as_folders(tmp_path / "pictures")))
    clones = [tmp_path / f"pag-sweep/sweep-{task}" for task in range(2)]

    def said(task: int = 0) -> str:
        logs = [_text(log) for log in (clones[task] / ".dvc/tmp/exps/run").glob("*/*.out")]
        return "\n".join([project.log("sweep", str(task)), *logs])

    first = project.submit("sweep", *given, options=("--array=0",))
    rest = project.submit("sweep", *given, options=("--array=0-1", f"--dependency=afterok:{first}"))
    project.requeue(f"{first}_0", said)
    assert list((clones[0] / ".cache").glob("*/checkpoint.pt")), said()[-3000:]
    project.wait(first, said)
    project.wait(rest, lambda: said(1))

    # the second clone has taken from the cache what the first has made
    assert {"train", "validation"} <= set(stages_run(said(1)))
    assert not {"prepare", "baseline"} & set(stages_run(said(1)))
    shown = project.ask(sys.executable, "experiments/run.py", *given, "--show")
    assert re.search(r"\| cm \| \d", shown) and re.search(r"\| oi \| \d", shown), shown

    # the requeued run beside one that nothing broke off, with a cache of its own
    project.ask("git", "clone", "--quiet", ".", str(tmp_path / "unbroken"))
    alone = f'cd "{tmp_path}/unbroken" && python experiments/run.py "$@" --only 0 -S processes=1'
    assert "done after" in project.ask("bash", "-c", alone, "bash", *given)
    locks = [made_by(project, place) for place in (project.path, tmp_path / "unbroken")]
    assert locks[0] == locks[1] and locks[0].count("md5:") > 10


def made_by(project: ClusterProject, place: Path) -> str:
    """The hashes of all that the experiment of `cm` made, as the repository in `place` has them."""
    names = project.ask("git", "-C", str(place), "for-each-ref", "--format=%(refname)", "refs/exps/").split()
    (name,) = [name for name in names if "/sweep-full-cm-" in name]
    files = ("dvc.lock", "stages/gradients/dvc.lock")
    return "\n".join(project.ask("git", "-C", str(place), "show", f"{name}:{file}") for file in files)
