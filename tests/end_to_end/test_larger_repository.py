"""A checkout in a folder of a larger git repository, with a blank in its path: experiments run, are found again, and listed."""

import json
import re
import sys

import pytest

from pag_core.params.yaml_text import written_yaml
from tests.fixtures.project_copy import ProjectCopy
from tests.fixtures.small_experiment import DESCRIPTION, archived, as_folders

pytestmark = pytest.mark.slow


def test_an_experiment_runs_and_is_found_again(tmp_path):
    project = ProjectCopy(tmp_path / "mono/my papers/pag", {}, repository=tmp_path / "mono")
    assert project.git("rev-parse", "--show-prefix").strip() == "my papers/pag/"
    images = archived(as_folders(tmp_path / "pictures"))
    described = {**DESCRIPTION, "stages": ["train"], "rows": {"class means": {"of": "cm"}}, "settings": []}
    described["classifiers"] = {"cm": DESCRIPTION["classifiers"]["cm"]}
    (project.path / "tiny.yaml").write_text(written_yaml(described), encoding="utf-8")
    command = [sys.executable, "experiments/run.py", "tiny.yaml", "--size", "tiny", "--images", str(images)]
    ran = project.run(*command)
    (row,) = re.findall(r"^\| class means \| \d.*$", ran.stdout, re.MULTILINE)

    # what has finished is neither run again nor called other
    again = project.run(*command)
    (name,) = re.findall(r"^(tiny-tiny-cm-\w{8}): done before$", again.stdout, re.MULTILINE)
    assert row in again.stdout
    shown = project.run(*command, "--show")
    assert row in shown.stdout and "other code" not in shown.stderr

    project.run(sys.executable, "experiments/page.py", forked=False)
    html = (project.path / "experiments.html").read_text(encoding="utf-8")
    content = json.loads(re.search(r'<script id="content" type="application/json">(.*?)</script>', html)[1])
    assert [experiment["cells"][0] for experiment in content["experiments"]].count(name) == 1
