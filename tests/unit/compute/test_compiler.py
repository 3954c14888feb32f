"""What torch.compile needs on each device, checked before the work begins."""

import importlib.util

import pytest
import torch

from pag_core.compute.compiler import require_compiler
from pag_core.errors import CompilerMissing

GPU = torch.device("cuda")


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A machine with the named programs in PATH, and with or without Triton."""

    def make(*programs, triton=True):
        for program in programs:
            (tmp_path / program).write_text("#!/bin/sh\n")
            (tmp_path / program).chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path))
        for variable in ("CC", "CXX"):
            monkeypatch.delenv(variable, raising=False)
        find = importlib.util.find_spec
        spec = importlib.util.spec_from_loader("triton", loader=None) if triton else None
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name, *rest: spec if name == "triton" else find(name, *rest)
        )

    return make


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_triton_and_a_c_compiler_are_enough_on_a_gpu(machine, compiler):
    machine(compiler)
    require_compiler(GPU)


def test_triton_is_needed_on_a_gpu(machine):
    machine("gcc", triton=False)
    with pytest.raises(CompilerMissing, match=r"Triton.*pip install triton.*train\.compile: false"):
        require_compiler(GPU)


def test_a_c_compiler_is_needed_on_a_gpu(machine):
    machine("g++", "clang++")
    with pytest.raises(CompilerMissing, match=r"C compiler.*gcc or clang.*not in PATH.*train\.compile: false"):
        require_compiler(GPU)


def test_the_c_compiler_may_be_named(machine, monkeypatch):
    machine("gcc", "mycc")
    monkeypatch.setenv("CC", "mycc")
    require_compiler(GPU)
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.raises(CompilerMissing, match=r"no-such-compiler is not in PATH"):
        require_compiler(GPU)
