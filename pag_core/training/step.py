"""The loss of one training step: Eq. 4 as one module around the classifier, in the precision and form that params.yaml says."""

from dataclasses import dataclass
from typing import cast

import torch
from torch import nn

from pag_core.compute.compiler import require_compiler, require_one_process
from pag_core.compute.precision import computing_in, require_precision
from pag_core.errors import ParamsError
from pag_core.gradient_store.targets import TargetGradients
from pag_core.gradients.online import OnlineGradients
from pag_core.objective.autograd_path import training_batch_norms
from pag_core.objective.batch_statistics import shares_batch
from pag_core.objective.methods import STANDARD, Method
from pag_core.objective.pag import AlignedBatch, pag_objective, plain_objective
from pag_core.params.sections import ObjectiveParams, TrainParams


@dataclass(frozen=True)
class AlignmentTerm:
    """The second term of Eq. 4: target gradients, lambda (`lambda_`), and the form in which it is computed."""

    targets: TargetGradients | OnlineGradients
    lambda_: float
    config: ObjectiveParams

    def lambda_in(self, epoch: int) -> float:
        """Lambda in `epoch`, counted from 0: `lambda_`, times the warm-up's factor in its first epochs."""
        warmup = self.config.weight_warmup
        return self.lambda_ * warmup.factor if warmup is not None and epoch < warmup.epochs else self.lambda_


class Objective(nn.Module):
    """Eq. 4 as a module around the classifier, so that what replicates a module's `forward` covers all of the loss.

    Raises ParamsError for a precision that `device` lacks and for what several processes cannot do, CompilerMissing where
    nothing can compile.
    """

    def __init__(
        self,
        classifier: nn.Module,
        term: AlignmentTerm | None,
        *,
        classes: int,
        params: TrainParams,
        device: torch.device,
        method: Method = STANDARD,
        config: ObjectiveParams | None = None,
    ) -> None:
        """`config` is how the method's own input-gradient is computed; a method without one needs none."""
        super().__init__()
        require_precision(params.precision, device, "train.precision")
        require_config(
            classifier, term.config if term else None, params, method=method, config=config, several=shares_batch()
        )
        self.method = method
        self.config = config
        self.classifier = classifier
        self.term = term
        self.classes = classes
        self.params = params
        self.device = device
        # what needs an input-gradient compiles forward and adjoint together, all else goes through this one
        self.compiled: nn.Module | None = None
        if params.channels_last:
            # features take the format of the weights, whatever that of the images
            classifier.to(memory_format=torch.channels_last)
        if params.compile:
            require_compiler(device)
            self.compiled = cast(nn.Module, torch.compile(classifier))

    def forward(
        self,
        images: torch.Tensor,
        labels: torch.Tensor,
        aligned: AlignedBatch | None,
        start: torch.Tensor | None,
        epoch: int,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Total, classification part and alignment as scalars, and the logits [B, classes] (see `ObjectiveTerms`)."""
        with computing_in(self.params.precision, self.device):
            if self.term is None or aligned is None:
                terms = plain_objective(
                    self.classifier,
                    images,
                    labels,
                    self.config,
                    method=self.method,
                    start=start,
                    epoch=epoch,
                    compiled=self.compiled,
                )
            else:
                terms = pag_objective(
                    self.classifier,
                    aligned,
                    self.term.config,
                    lambda_=self.term.lambda_in(epoch),
                    classes=self.classes,
                    method=self.method,
                    start=start,
                    epoch=epoch,
                    compiled=self.compiled,
                )
        # wrappers look for tensors in plain containers
        return terms.total, terms.classification, terms.alignment, terms.logits


def require_config(
    classifier: nn.Module,
    aligned: ObjectiveParams | None,
    params: TrainParams,
    *,
    method: Method,
    config: ObjectiveParams | None,
    several: bool,
) -> None:
    """Raise ParamsError for what torch.compile, or `several` processes that share a batch, cannot do.

    `aligned` is the form of the alignment term, None without one, `config` that of the method's own input-gradient.
    """
    if not several:
        return
    if params.compile:
        require_one_process("train.compile", several=several)
    configs = [aligned] if aligned else []
    if method.wants_gradient and config is not None:
        configs.append(config)
    if any(used.differentiation == "autograd" for used in configs) and training_batch_norms(classifier):
        raise ParamsError(
            "params.yaml: objective.differentiation autograd takes batch-norm's statistics from one process's images only; "
            "set it to adjoint, or processes: 1"
        )
