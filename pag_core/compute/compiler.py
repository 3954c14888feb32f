"""What torch.compile needs on a machine, looked for before the work begins."""

import importlib.util
import os
import shutil

import torch

from pag_core.errors import CompilerMissing, ParamsError


def require_one_process(key: str, *, several: bool) -> None:
    """Raise ParamsError, naming the parameter `key` that compiles, where `several` processes train together."""
    if several:
        raise ParamsError(f"params.yaml: {key} works in one process only; set it to false, or processes: 1")


def require_compiler(device: torch.device, key: str = "train.compile") -> None:
    """Raise CompilerMissing, naming the parameter `key`, where torch.compile would find nothing to compile with.

    On the CPU it compiles C++; on a GPU it takes Triton, which compiles what starts its kernels as C.
    """
    if device.type == "cpu":
        _require_program(key, "a C++ compiler on the CPU", "CXX", ["g++", "clang++"])
    elif device.type == "cuda":
        if importlib.util.find_spec("triton") is None:
            raise CompilerMissing(
                f"{key} needs Triton on a GPU, and no package `triton` is installed; pip install triton, or set {key}: false"
            )
        _require_program(key, "a C compiler on a GPU, for Triton", "CC", ["gcc", "clang"])


def _require_program(key: str, what: str, variable: str, usual: list[str]) -> None:
    """Raise CompilerMissing where neither the program that `variable` names nor, without it, a `usual` one is in PATH."""
    programs = [os.environ[variable]] if variable in os.environ else usual
    if not any(shutil.which(program) for program in programs):
        raise CompilerMissing(
            f"{key} needs {what} ({' or '.join(programs)} is not in PATH); install one, or name it in {variable}, "
            f"or set {key}: false"
        )
