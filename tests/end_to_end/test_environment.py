"""The environment that make makes: in a path with blanks, and after its folder was moved or copied."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fixtures.samples import ROOT

pytestmark = pytest.mark.slow

# a command as pip writes it, which says where its Python is
COMMAND = "#!{python}\nimport sys\nprint(sys.prefix)\n"


def make(checkout: Path) -> str:
    variables = {key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "VIRTUAL_ENV"))}
    command = ["make", "environment", f"PYTHON={sys.executable}"]
    done = subprocess.run(command, cwd=checkout, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def printed(*command: str | Path, cwd: Path) -> str:
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What make needs, without packages, in a path with blanks."""
    place = tmp_path / "my papers/pag"
    place.mkdir(parents=True)
    for name in ("Makefile", "environment.py"):
        shutil.copy(ROOT / name, place / name)
    (place / "requirements.lock").write_text("")
    return place


def test_it_is_made_moved_and_copied(checkout: Path) -> None:
    assert "-m venv" in make(checkout)
    assert printed(".venv/bin/pip", "--version", cwd=checkout).startswith("pip ")
    (checkout / ".venv/bin/tool").write_text(COMMAND.format(python=checkout / ".venv/bin/python"))
    (checkout / ".venv/bin/tool").chmod(0o755)
    assert make(checkout) == ""

    moved = checkout.rename(checkout.with_name("the paper"))
    with pytest.raises(FileNotFoundError):
        printed(".venv/bin/tool", cwd=moved)
    assert f".venv was at {checkout}/.venv; its commands are written anew" in make(moved)
    assert printed(".venv/bin/pip", "--version", cwd=moved).startswith("pip ")
    for shell in (".venv/bin/tool", ". .venv/bin/activate && tool", ". .venv/bin/activate && printenv VIRTUAL_ENV"):
        assert printed("sh", "-c", shell, cwd=moved) == f"{moved}/.venv"
    assert make(moved) == ""

    # of a copy the old place is still there
    copy = Path(shutil.copytree(moved, moved.with_name("copy"), symlinks=True))
    assert "written anew" in make(copy) and make(copy) == make(moved) == ""
    assert printed(".venv/bin/tool", cwd=copy) == f"{copy}/.venv"
    assert printed(".venv/bin/tool", cwd=moved) == f"{moved}/.venv"

    # the same place by another name
    (copy.parent / "link").symlink_to(copy)
    assert make(copy.parent / "link") == ""


def test_sigterm_reaches_what_make_runs(checkout: Path) -> None:
    """Else DVC would go on alone, with stage after stage."""
    (checkout / ".venv/bin").mkdir(parents=True)
    (checkout / ".venv/bin/python").symlink_to(sys.executable)
    (checkout / ".venv/.installed").touch()
    (checkout / "environment.py").write_text("")
    for module in ("experiments/runs/repository.py", "pag_core/params.py"):
        (checkout / module).parent.mkdir(parents=True)
        (checkout / module).write_text("")
    (checkout / "dvc.py").write_text(
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit('dvc got it'))\n"
        "print('begun', flush=True)\n"
        "time.sleep(60)\n"
    )
    process = subprocess.Popen(
        ["make", "repro"], cwd=checkout, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    while process.stdout.readline() != "begun\n":
        assert process.poll() is None
    process.terminate()
    _, said = process.communicate(timeout=30)
    assert "dvc got it" in said
