"""Where memory runs out, a stage ends with one sentence that names the parameter to lower."""

import ast

import numpy as np
import pytest
import torch

from experiments.runs.stages import value_at
from pag_core.params.yaml_text import written_yaml
from pag_core.pipeline.stage import stage
from tests.fixtures.samples import ROOT, changed


@pytest.fixture
def place(tmp_path, monkeypatch, plain_params):
    """`place(changes)`: the folder that the stage runs in, with its parameters."""
    monkeypatch.chdir(tmp_path)

    def make(changes=None):
        (tmp_path / "params.yaml").write_text(written_yaml(changed(plain_params, changes or {})), encoding="utf-8")

    make()
    return make


def raising(error):
    def fail():
        raise error

    return fail


# what torch says of a GPU, shortened
FULL = "CUDA out of memory. Tried to allocate 21.10 GiB. GPU 0 has a total capacity of 15.77 GiB of which 9.90 GiB is free."
EXHAUSTED = {
    "a GPU's allocator": raising(torch.OutOfMemoryError(FULL)),
    "the driver": raising(RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported later")),
    "cuBLAS": raising(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")),
    "cuDNN": raising(RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED")),
    "torch on the CPU": lambda: torch.empty(10**15),
    "numpy": lambda: np.empty(10**15),
    "Python": raising(MemoryError()),
    "the operating system": raising(OSError(12, "Cannot allocate memory")),
}


@pytest.mark.parametrize("what", EXHAUSTED)
def test_the_parameter_to_lower_is_named(place, capsys, what):
    place({"validation.batch_size": 321})
    with pytest.raises(SystemExit) as ended, stage("some", memory="validation.batch_size"):
        EXHAUSTED[what]()
    assert ended.value.code == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("some: out of memory") and "set validation.batch_size, which is 321, lower" in line
    assert "capacity" not in line, "what is told of it is short"
    assert ("Tried to allocate 21.10 GiB" in line) == (what == "a GPU's allocator")


def test_where_nothing_can_be_lowered_it_says_what_else_helps(place, capsys):
    place({"validation.batch_size": 1})
    for memory in ("validation.batch_size", None):
        with pytest.raises(SystemExit), stage("some", memory=memory):
            raise MemoryError
        error = capsys.readouterr().err
        assert "more memory" in error and "lower" not in error


def test_other_errors_keep_their_traceback(place):
    for error in (RuntimeError("shapes differ"), OSError(2, "No such file"), ValueError("no")):
        with pytest.raises(type(error)), stage("some", memory="validation.batch_size"):
            raise error


def memory_of(path):
    """The parameter that a program's call of `stage` names, None for none; and its first argument's call."""
    calls = [
        node
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "stage"
    ]
    (call,) = calls
    return next((keyword.value.value for keyword in call.keywords if keyword.arg == "memory"), None)


def test_every_stage_that_works_in_batches_names_its_parameter(plain_params):
    programs = {path.stem: path for path in (ROOT / "stages").glob("*.py") if path.stem != "code"}
    named = {name: memory_of(path) for name, path in programs.items()}
    assert all(value_at(plain_params, key) for key in named.values() if key is not None)
    # these read no batches
    assert {name for name, key in named.items() if key is None} == {"prepare", "check", "heuristic", "report"}
    own = {name for name in named if isinstance(plain_params.get(name), dict) and "batch_size" in plain_params[name]}
    assert {"train", "diffusion", "sbg", "validation", "autoattack", "foolbox", "masking"} <= own
    assert all(named[name] == f"{name}.batch_size" for name in own)
