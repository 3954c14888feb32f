"""Input-gradients of chosen classes, differentiable in the network's parameters (the gradient term of Eq. 4)."""

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch._subclasses import FakeTensor
from torch.nn import functional as F

from pag_core.errors import AdjointUnavailable
from pag_core.objective.adjoint.compilation import Compiled, compiled_program
from pag_core.objective.adjoint.cotangent import Context
from pag_core.objective.adjoint.program import AdjointProgram
from pag_core.objective.adjoint.tracing import trace
from pag_core.objective.agreement import require_agreement, require_second_derivative
from pag_core.objective.autograd_path import autograd_input_gradients, training_batch_norms
from pag_core.objective.batch_statistics import shares_batch
from pag_core.objective.network_state import plain_values

_programs: "weakref.WeakKeyDictionary[nn.Module, dict[Any, Any]]" = weakref.WeakKeyDictionary()


def input_gradients(
    classifier: nn.Module,
    images: torch.Tensor,
    class_indices: torch.Tensor,
    *,
    output: str,
    differentiation: str,
    batch_norm: str,
    create_graph: bool = True,
    compiled: bool = False,
    with_loss: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits [B, classes] and input-gradients [B, K, C, H, W] of the classes int64 [B, K], for images [0, 1].

    The function differentiated is f_c (`output` "logit") or log p(c | x) ("log_softmax"); `with_loss`, an index
    `-1 - y` stands for the cross-entropy with the label y. `batch_norm` says what the
    gradient of one image is where batch-norm couples the batch: "repeat", "class" or "frozen" (see
    `adjoint.normalization`). `differentiation` "adjoint" computes all classes from one forward pass by the network's
    adjoint (`compiled` by torch.compile, with it); "autograd" has the same values for any network, more slowly.
    Raises AdjointUnavailable if the network has no adjoint or autograd is to be compiled, CompilerMissing, and
    ValueError for a name that is none of these.
    """
    if batch_norm not in ("repeat", "class", "frozen"):
        raise ValueError(f"batch_norm {batch_norm!r} is not one of: repeat, class, frozen")
    match differentiation:
        case "adjoint":
            with torch.set_grad_enabled(create_graph and torch.is_grad_enabled()):
                return _adjoint_input_gradients(
                    classifier, images, class_indices, Cotangents(output, with_loss), batch_norm, compiled
                )
        case "autograd":
            if compiled:
                raise AdjointUnavailable(
                    "objective.differentiation: autograd cannot be compiled (torch.compile does not differentiate twice); "
                    "use adjoint, or train.compile: false"
                )
            if create_graph and torch.is_grad_enabled():
                _once(require_second_derivative, classifier, images, batch_norm)
            return autograd_input_gradients(
                classifier,
                images,
                class_indices,
                Cotangents(output, with_loss),
                batch_norm=batch_norm,
                create_graph=create_graph,
            )
        case _:
            raise ValueError(f"differentiation {differentiation!r} is not one of: adjoint, autograd")


def logits_of(classifier: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """The logits [B, classes]; where several processes share the batch, batch-norm takes the statistics of all of it."""
    if not (shares_batch() and training_batch_norms(classifier)):
        logits: torch.Tensor = classifier(images)
        return logits
    program = _program(classifier, images, Context("frozen"))
    return program.forward(list(classifier.parameters()), list(classifier.buffers()), images)[0]


def _adjoint_input_gradients(
    classifier: nn.Module,
    images: torch.Tensor,
    class_indices: torch.Tensor,
    cotangents: "Cotangents",
    batch_norm: str,
    compiled: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    parameters, buffers = list(classifier.parameters()), list(classifier.buffers())
    images = images.detach()
    if compiled:
        compiled_function = _compiled(classifier, parameters, buffers, images, class_indices, cotangents, batch_norm)
        logits, gradients = compiled_function(parameters, buffers, images, class_indices)
    else:
        program = _program(classifier, images, Context(batch_norm))
        logits, steps = program.forward(parameters, buffers, images)
        gradients = program.back(steps, cotangents(logits, class_indices))
    return logits, gradients.transpose(0, 1)


@dataclass(frozen=True)
class Cotangents:
    """The cotangents of the logits for indices int64 [B, K]: of classes, or `with_loss` `-1 - y` of the loss of y."""

    output: str
    with_loss: bool = False

    def __call__(self, logits: torch.Tensor, class_indices: torch.Tensor) -> torch.Tensor:
        """[K, B, classes]."""
        if not self.with_loss:
            return logit_cotangents(logits, class_indices, self.output)
        is_loss = class_indices < 0
        labels = torch.where(is_loss, -1 - class_indices, class_indices)
        of_classes, of_log_probabilities = (
            logit_cotangents(logits, labels, output) for output in (self.output, "log_softmax")
        )
        return torch.where(is_loss.T[..., None], -of_log_probabilities, of_classes)


def logit_cotangents(logits: torch.Tensor, class_indices: torch.Tensor, output: str) -> torch.Tensor:
    """d value_c / d logits for the classes int64 [B, K]: [K, B, classes], e_c for a logit, e_c - p for a log-probability.

    All entries have the digits of their dtype, however near to 1 the probability of a class is.
    """
    chosen = F.one_hot(class_indices.T, logits.shape[1])
    match output:
        case "logit":
            return chosen.to(logits.dtype)
        case "log_softmax":
            # the dtype is named and not left to a cast of the logits, which a trace of float32 logits would leave out
            dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
            probabilities = F.softmax(logits, dim=1, dtype=dtype)
            # 1 - p cancels where the network is confident, the sum of the other probabilities does not
            own = chosen.bool()
            others = torch.where(own, 0.0, probabilities).sum(2, keepdim=True)
            return torch.where(own, others, -probabilities).to(logits.dtype)
        case _:
            raise ValueError(f"output {output!r} is not one of: logit, log_softmax")


def _cached(classifier: nn.Module, images: torch.Tensor, key: Any, make: Callable[[], Any], values: Any = None) -> Any:
    """What `make` gives for images of this shape and layers in their present mode, kept with the network.

    It is made anew where `values` are no longer those that it was made with.
    """
    layers = tuple((id(layer), layer.training) for layer in classifier.modules())
    whole = (key, tuple(images.shape), images.dtype, images.device, layers)
    known = _programs.setdefault(classifier, {})
    if whole not in known or known[whole][0] != values:
        known[whole] = (values, make())
    return known[whole][1]


def _once(check: Callable[..., None], classifier: nn.Module, images: torch.Tensor, batch_norm: str) -> None:
    """Run a check of the network for this meaning of batch-norm and its layers' present modes, whatever the batch's size."""
    if isinstance(images, FakeTensor):  # has no values to compare
        return
    learns = any(parameter.requires_grad for parameter in classifier.parameters())
    key = (check, batch_norm, learns)
    _cached(classifier, images[:0], key, lambda: check(classifier, images, Cotangents("logit"), batch_norm))


def _program(classifier: nn.Module, images: torch.Tensor, context: Context) -> AdjointProgram:
    def make() -> AdjointProgram:
        if len(images):
            _once(require_agreement, classifier, images, context.batch_norm)
        traced = trace(classifier, images)
        if traced.general and context.general:
            names = ", ".join(traced.general)
            print(f"Operations without an adjoint rule are differentiated one by one: {names}", flush=True)
        return AdjointProgram(traced, context)

    program: AdjointProgram = _cached(classifier, images, context, make, plain_values(classifier))
    return program


def _compiled(
    classifier: nn.Module, parameters: Sequence[torch.Tensor], buffers: Sequence[torch.Tensor],
    images: torch.Tensor, class_indices: torch.Tensor, cotangents: "Cotangents", batch_norm: str,
) -> Compiled:  # fmt: skip
    def make() -> Compiled:
        program = _program(classifier, images, Context(batch_norm, general=False))
        return compiled_program(
            program,
            parameters,
            buffers,
            images,
            class_indices,
            cotangents,
        )

    key = ("compiled", cotangents, batch_norm, class_indices.shape[1])
    compiled: Compiled = _cached(classifier, images, key, make, plain_values(classifier))
    return compiled
