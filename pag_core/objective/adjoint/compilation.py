"""Forward and adjoint as one graph for torch.compile, which then makes a single backward pass for both."""

import importlib.util
import os
import shutil
from collections.abc import Callable, Sequence

import torch
from torch.fx.experimental.proxy_tensor import make_fx

from pag_core.errors import CompilerMissing
from pag_core.objective.adjoint.program import AdjointProgram

Cotangents = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Compiled = Callable[
    [Sequence[torch.Tensor], Sequence[torch.Tensor], torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]
]


def require_compiler(device: torch.device) -> None:
    """Raise CompilerMissing where torch.compile would find nothing to compile with.

    On the CPU it compiles C++; on a GPU it takes Triton, which compiles what starts its kernels as C.
    """
    if device.type == "cpu":
        _require_program("a C++ compiler on the CPU", "CXX", ["g++", "clang++"])
    elif device.type == "cuda":
        if importlib.util.find_spec("triton") is None:
            raise CompilerMissing(
                "train.compile needs Triton on a GPU, and no package `triton` is installed; pip install triton, or set "
                "train.compile: false"
            )
        _require_program("a C compiler on a GPU, for Triton", "CC", ["gcc", "clang"])


def _require_program(what: str, variable: str, usual: list[str]) -> None:
    """Raise CompilerMissing where neither the program that `variable` names nor, without it, a `usual` one is in PATH."""
    programs = [os.environ[variable]] if variable in os.environ else usual
    if not any(shutil.which(program) for program in programs):
        raise CompilerMissing(
            f"train.compile needs {what} ({' or '.join(programs)} is not in PATH); install one, or name it in {variable}, "
            "or set train.compile: false"
        )


def compiled_program(
    program: AdjointProgram,
    parameters: Sequence[torch.Tensor],
    buffers: Sequence[torch.Tensor],
    images: torch.Tensor,
    class_indices: torch.Tensor,
    cotangents: Cotangents,
) -> Compiled:
    """`program` for inputs of these shapes as one compiled function of (parameters, buffers, images, classes).

    It returns the logits [B, classes] and the input-gradients [K, B, C, H, W]. `cotangents` gives the cotangents of the
    logits. Raises AdjointUnavailable where an operation has no adjoint rule, CompilerMissing without a compiler.
    """
    require_compiler(images.device)

    def whole(
        parameters: Sequence[torch.Tensor], buffers: Sequence[torch.Tensor], images: torch.Tensor, classes: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        logits, steps = program.forward(parameters, buffers, images)
        return logits, program.back(steps, cotangents(logits, classes))

    with torch.autocast(images.device.type, enabled=False):
        graph = make_fx(whole, pre_dispatch=True, tracing_mode="fake")(parameters, buffers, images, class_indices)
    compiled: Compiled = torch.compile(graph, fullgraph=True)
    return compiled
