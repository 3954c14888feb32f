"""From data to an attacked classifier no connection is opened beyond this machine: neither stages nor DVC ask anyone."""

import os
import sys
from pathlib import Path

import pytest

from tests.fixtures.forked import LIBRARIES
from tests.fixtures.project_copy import CONFIG, SMALL, ProjectCopy
from tests.fixtures.samples import ROOT

pytestmark = pytest.mark.slow

# of every Python that is started: what it would connect to, or look the address of up
WATCH = """
import sys
def _watch(event, arguments):
    if event in ("socket.connect", "socket.sendto", "socket.getaddrinfo", "socket.gethostbyname"):
        told = arguments[1] if event in ("socket.connect", "socket.sendto") else arguments[0]
        host = told[0] if isinstance(told, tuple) else told
        if isinstance(told, tuple) or "get" in event:
            with open({log!r}, "a") as log:
                log.write(f"{{event}} {{host}} {{sys.argv}}\\n")
sys.addaudithook(_watch)
"""
HERE = ("127.", "::1", "localhost", "None", "0.0.0.0")


def test_the_pipeline_opens_no_connection_to_another_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "asked.txt"
    (tmp_path / "watch").mkdir()
    (tmp_path / "watch/sitecustomize.py").write_text(WATCH.format(log=str(log)), encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "watch"))
    monkeypatch.delenv("CI", raising=False)  # of which DVC sends no analytics
    # what the copy tells DVC is what the project tells it
    assert set(CONFIG.splitlines()) <= set((ROOT / ".dvc/config").read_text(encoding="utf-8").splitlines())
    project = ProjectCopy(tmp_path / "pag", {**SMALL, "processes": 2})
    ask = "import socket; socket.create_connection(('192.0.2.1', 9), timeout=0.01)"
    for forked in (False, True):
        project.run(sys.executable, "-c", ask, forked=forked, check=False)
        assert "192.0.2.1" in log.read_text(encoding="utf-8"), "the watch sees nothing"
        log.unlink()
    # what a stage's process has been forked with is imported once as each imports it by itself
    project.run(sys.executable, "-c", f"import {', '.join(LIBRARIES)}", forked=False)
    project.run("dvc", "repro", "validation", "autoattack")
    assert (project.path / "metrics/autoattack.json").exists()
    asked = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
    assert not [line for line in asked if not line.split()[1].startswith(HERE)], os.linesep.join(asked)
