"""A checkpoint belongs to the code that made it: a stage, and all that it can load, loaded or not."""

import os
import shutil
import subprocess
import sys

import pytest

from pag_core.errors import ParamsError
from pag_core.pipeline.code_identity import code_fingerprint, file_fingerprints, own_code_record
from tests.fixtures.own_folder import BLOCKS, NETWORKS, write_own
from tests.fixtures.project_copy import forks
from tests.fixtures.samples import ROOT

# as a stage does: opens its run folder before it loads the architecture, and is killed within
KILLED = """
import os, sys
from pathlib import Path
sys.path[0] = str(Path(__file__).resolve().parents[1])
import torch
from pag_core.pipeline.checkpoint import run_folder
with run_folder("train", {"seed": 1}, torch.device("cpu")) as folder:
    from pag_core.classifiers.building import build_classifier
    print(folder.path.name, "resumed" if folder.load_unit("begun") else "new", flush=True)
    folder.save_unit("begun", {"done": 1})
    os._exit(9)
"""


@pytest.fixture
def checkout(tmp_path):
    shutil.copytree(ROOT / "pag_core", tmp_path / "pag_core", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages/killed.py").write_text(KILLED)
    return tmp_path


def run(checkout):
    environment = {**os.environ, "DVC_ROOT": str(checkout), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [f"{forks()}/python", "stages/killed.py"],
        cwd=checkout,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 9, done.stderr
    return done.stdout.split()


@pytest.mark.slow
def test_an_edit_of_what_is_loaded_later_voids_the_checkpoint(checkout):
    name, how = run(checkout)
    assert how == "new"
    assert run(checkout) == [name, "resumed"]
    for edited, same in (
        ("pag_core/classifiers/vision_transformer.py", False),
        ("pag_core/evaluation/autoattack.py", True),  # nothing that this stage can load
        ("stages/killed.py", False),
    ):
        with (checkout / edited).open("a") as file:
            file.write("\nEDITED = True\n")
        before, (name, how) = name, run(checkout)
        assert (name == before, how) == (same, "resumed" if same else "new"), edited


@pytest.mark.slow
def test_the_code_of_a_stage_does_not_depend_on_what_is_loaded():
    """A process that has loaded nothing but the digest's own needs gives what this one gives."""
    import pag_core.classifiers.vision_transformer
    import pag_core.report.page  # noqa: F401

    programs = sorted((ROOT / "stages").glob("*.py"))
    command = (
        "import sys; from pathlib import Path; from pag_core.pipeline.code_identity import code_fingerprint\n"
        "for program in sys.argv[1:]: print(code_fingerprint(Path(program)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", command, *programs], cwd=ROOT, capture_output=True, text=True, check=True
    )
    digests = done.stdout.split()
    assert digests == [code_fingerprint(program) for program in programs] and len(set(digests)) == len(programs)


def test_a_program_from_elsewhere_has_the_whole_package_as_its_code(checkout, tmp_path_factory):
    notebook = tmp_path_factory.mktemp("elsewhere") / "notebook.py"
    notebook.write_text("print('nothing of the project')\n")
    before = code_fingerprint(notebook, checkout)
    with (checkout / "pag_core/report/verdict.py").open("a") as file:
        file.write("\nEDITED = True\n")
    assert code_fingerprint(notebook, checkout) != before


@pytest.mark.parametrize(
    ("edit", "same"),
    [
        (lambda code: code + "\n# a comment\n", True),
        (lambda code: code.replace('"""', '"""Other words. ', 1), True),
        (lambda code: code.replace("    ", "      "), True),
        (lambda code: code.replace("REPORT_EVERY = 50", "REPORT_EVERY = 51"), False),
        (lambda code: code + "\nEDITED = True\n", False),
    ],
)
def test_comments_docstrings_and_layout_are_no_part_of_it(checkout, edit, same):
    program, edited = checkout / "stages/diffusion.py", checkout / "pag_core/diffusion/training.py"
    shutil.copy(ROOT / "stages/diffusion.py", program)
    before, code = code_fingerprint(program, checkout), edited.read_text()
    edited.write_text(edit(code))
    assert edited.read_text() != code
    assert (code_fingerprint(program, checkout) == before) == same


ATTACKING = {"autoattack", "foolbox", "masking"}
LOADING = {"check", "train", "validation", *ATTACKING, "pag_score", "figures", "report"}  # a classifier
EDITS = {
    "an architecture": (["params/sections.py", "classifiers/architectures.py", "classifiers/vgg.py"], LOADING),
    "a parameter": (["params/sections.py", "params/measurements.py", "params/reading.py"], set()),
    "a name of a source or a method": (["params/values.py", "params/sections.py"], set()),
    "an error": (["errors.py"], set()),
    "a dataset": (["params/sections.py", "datasets/cifar.py"], {"prepare"}),
    "the template of the page": (["report/page.html"], {"report"}),
    "the training of the diffusion model": (["diffusion/training.py"], {"diffusion"}),
    "AutoAttack": (["evaluation/autoattack.py"], {"autoattack"}),
    "the name of an attack": (["evaluation/attacks.py"], {"figures", "report"}),
    "what all attacks begin with": (["evaluation/subject.py"], ATTACKING),
    "a figure": (["figures/training_curves.py"], {"figures"}),
}


@pytest.fixture(scope="module")
def code_of_stages():
    """The files by whose content each stage is known."""
    programs = [path for path in (ROOT / "stages").glob("*.py") if path.stem != "code"]
    return {path.stem: set(file_fingerprints(path)) for path in programs}


@pytest.mark.parametrize("name", EDITS)
def test_an_edit_rebuilds_what_runs_it(code_of_stages, name):
    """A teacher, or a store that was distilled from it, costs hours."""
    edited, rebuilt = EDITS[name]
    places = {f"pag_core/{place}" for place in edited}
    assert all((ROOT / place).exists() for place in places)
    assert {stage for stage, files in code_of_stages.items() if files & places} == rebuilt


@pytest.mark.parametrize("own", [True, False])
def test_hidden_files_are_no_code(checkout, tmp_path_factory, own):
    """What macOS leaves in a folder that was looked at, and beside each file of a foreign disk, and what editors leave."""
    program = checkout / "stages/report.py" if own else tmp_path_factory.mktemp("elsewhere") / "notebook.py"
    shutil.copy(ROOT / "stages/report.py", program)
    before = code_fingerprint(program, checkout)
    for name in (".DS_Store", "._verdict.py", ".page.html.swp"):
        (checkout / "pag_core/report" / name).write_bytes(b"\0\5\x16\7\xff")
    assert code_fingerprint(program, checkout) == before


def test_a_template_beside_a_module_is_part_of_it(checkout):
    program = checkout / "stages/report.py"
    shutil.copy(ROOT / "stages/report.py", program)
    before = code_fingerprint(program, checkout)
    page = checkout / "pag_core/report/page.html"
    page.write_text(page.read_text() + "<!-- edited -->")
    assert code_fingerprint(program, checkout) != before


def test_the_code_of_a_users_function_is_all_that_its_file_can_load(checkout):
    """Relative imports, what it takes of the project, the packages that it lies in and data beside it; no other file."""
    write_own(
        checkout,
        {
            "__init__.py": "", "networks.py": NETWORKS, "blocks.py": BLOCKS, "widths.json": "[4]", "README.md": "",
            "gradients.py": "import own.networks", "deep/other.py": "from ..blocks import activation",
        },
    )  # fmt: skip

    def record(name):
        lines = own_code_record(name, "arch", checkout).splitlines()
        return {path: fingerprint for fingerprint, path in (line.split("  ") for line in lines)}

    network = record("own.networks:convnet")
    beside = {"own/__init__.py", "own/blocks.py", "own/widths.json", "pag_core/classifiers/activations.py"}
    assert set(network) == {"own/networks.py", *beside}
    assert set(record("own.gradients:f")) == {*network, "own/gradients.py"}
    assert set(record("own.deep.other:f")) == {"own/deep/other.py", *beside}
    for name, edit, changes in (
        ("networks.py", f"{NETWORKS}# a comment", False), ("networks.py", f"{NETWORKS}\nA = 1", True),
        ("blocks.py", f"{BLOCKS}\nA = 1", True), ("widths.json", "[5]", True), ("README.md", "other", False),
        ("gradients.py", "A = 1", False),
    ):  # fmt: skip
        before = record("own.networks:convnet")
        write_own(checkout, {name: edit})
        assert (record("own.networks:convnet") != before) == changes, name
    assert own_code_record("small_resnet", "arch", checkout) == own_code_record(None, "arch", checkout) == ""
    with pytest.raises(ParamsError, match=r"own\.function is own\.gone:f, and own/gone\.py is not there"):
        own_code_record("own.gone:f", "own.function", checkout)
