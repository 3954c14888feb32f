"""A classifier of real stages, exported and attacked outside."""

import json
import re
import sys
from pathlib import Path

import pytest

from pag_core.compute.device import processor_name
from tests.fixtures.project_copy import SMALL, ProjectCopy
from tests.fixtures.standalone import outside

pytestmark = pytest.mark.slow

RUN = "import runpy; sys.argv = sys.argv[1:]; sys.path.insert(0, sys.argv[0].rpartition('/')[0])\n"
ATTACK = RUN + "runpy.run_path(sys.argv[0], run_name='__main__')"


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[ProjectCopy, Path]:
    """A project whose classifier has been attacked, in two shards of which the second is small, and its export."""
    chosen = {
        "source": "cm", "train.epochs": 8, "prepare.images_per_class": None, "autoattack.images": 5,
        "autoattack.images_per_shard": 3, "autoattack.batch_size": 3, "autoattack.radii": {"L2": [0.6]},
    }  # fmt: skip
    project = ProjectCopy(tmp_path_factory.mktemp("exchange"), {**SMALL, **chosen})
    project.stage("prepare")
    project.stage("heuristic", "cm")
    for name in ("train", "autoattack"):
        project.stage(name, "--baseline")
        project.stage(name)
    project.run(sys.executable, "-m", "pag_core.exchange.export", "exports/aligned", forked=False)
    return project, project.path / "exports/aligned"


def test_autoattack_outside_gives_the_numbers_of_the_metrics(exported: tuple[ProjectCopy, Path]) -> None:
    project, folder = exported
    model = project.metrics("details/autoattack")["model"]
    done = outside(ATTACK, str(folder / "attack.py"))
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    printed = re.findall(r"^L2 0.6, ([a-z-]+): (\d+) of 5 images", done.stdout, re.MULTILINE)
    found = {name: int(count) / 5 for name, count in printed}
    assert found == {"clean": model["clean"], **model["per_attack"]["L2 0.6"]}
    assert 0 < found["square"] < found["clean"], "a radius at which nothing or everything falls proves little"


def test_the_lines_of_the_card_do_what_they_say(exported: tuple[ProjectCopy, Path]) -> None:
    """Its code as it stands: loads the classifier, and attacks the first shard with the measured seed."""
    _, folder = exported
    text = (folder / "README.md").read_text(encoding="utf-8")
    blocks = "\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL))
    program = f"import os; os.chdir({str(folder.parent)!r})\n{blocks}\n"
    program += "print('clean', int((classifier(images).argmax(1) == labels).sum()), len(images))"
    done = outside(program)
    assert done.returncode == 0, done.stderr[-3000:]
    counts = json.loads((folder / "measured.json").read_text(encoding="utf-8"))["autoattack"]["counts"]["L2 0.6"]
    assert f"clean {counts['clean']} 5" in done.stdout


def test_other_counts_are_noticed(exported: tuple[ProjectCopy, Path]) -> None:
    _, folder = exported
    path = folder / "measured.json"
    before = path.read_text(encoding="utf-8")
    measured = json.loads(before)
    for shard in measured["autoattack"]["shards"]["L2 0.6"]:
        shard["radius"] = 3.0  # every image falls to the first attack, which ends it soon
    path.write_text(json.dumps(measured), encoding="utf-8")
    done = outside(ATTACK, str(folder / "attack.py"))
    path.write_text(before, encoding="utf-8")
    expected = f"The counts differ. They were measured on {processor_name()}, 1 thread,"
    assert done.returncode == 1 and expected in done.stdout


def test_results_of_another_classifier_are_refused(exported: tuple[ProjectCopy, Path]) -> None:
    project, _ = exported
    project.set({"train.epochs": 1})
    project.stage("train")
    command = (sys.executable, "-m", "pag_core.exchange.export", "exports/stale")
    done = project.run(*command, check=False)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "metrics/details/autoattack.json was made with another classifier" in done.stderr
    assert not (project.path / "exports/stale").exists()
    project.run(*command, "--baseline")
    assert (project.path / "exports/stale/measured.json").exists()


def test_an_attack_beside_another_baseline_is_refused(exported: tuple[ProjectCopy, Path]) -> None:
    project, _ = exported
    before = project.metrics_bytes()
    project.stage("train", "--baseline")
    done = project.stage("autoattack", check=False)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "data/attacks/baseline_autoattack.json was made with another baseline" in done.stderr
    assert "run python stages/autoattack.py --baseline again" in done.stderr
    assert project.metrics_bytes() == before
