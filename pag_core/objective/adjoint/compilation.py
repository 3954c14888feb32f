"""Forward and adjoint as one graph for torch.compile, which then makes a single backward pass for both."""

from collections.abc import Callable, Sequence

import torch
from torch.fx.experimental.proxy_tensor import make_fx

from pag_core.compute.compiler import require_compiler
from pag_core.objective.adjoint.program import AdjointProgram

Cotangents = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Compiled = Callable[
    [Sequence[torch.Tensor], Sequence[torch.Tensor], torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]
]


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
