"""Whether the adjoint of a network computes what automatic differentiation does, looked at when a network is first met.

Listing a network's operations loses what is not one: the backward pass of an `autograd.Function`, hooks, state that is kept
in Python. A wrong gradient would train a wrong network without a word.
"""

import contextlib
import functools
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import nn

from pag_core.compute.precision import products_in, rounded_products
from pag_core.compute.randomness import seed_global_streams
from pag_core.errors import AdjointUnavailable, NotTwiceDifferentiable
from pag_core.objective.adjoint.cotangent import Context
from pag_core.objective.adjoint.program import AdjointProgram
from pag_core.objective.adjoint.tracing import REMEDY, trace
from pag_core.objective.autograd_path import Cotangents, autograd_input_gradients
from pag_core.objective.batch_statistics import each_for_itself
from pag_core.objective.network_state import NetworkState, in_float64, state_kept

Result = TypeVar("Result")

IMAGES = 3  # batch-norm of two values has no gradient
CLASSES = 2
# of the norm of what is compared: far above what the order of sums changes, and below any derivative that is left out. Where
# float32 misses it, as batch-norm over few values multiplies rounding, float64 decides
TOLERANCE = 1e-2
# in a lower precision: of the norm, or this many times what that precision changes in autograd's own result
IN_PRECISION = 0.1
OF_ROUNDING = 4
# one parameter's gradient, or one buffer's move, may be zero but for rounding: each is held against at least this share of all
# of them together
SHARE = 1e-2


def require_agreement(classifier: nn.Module, images: torch.Tensor, cotangents: Cotangents, batch_norm: str) -> None:
    """Raise AdjointUnavailable unless adjoint and autograd agree on some of `images` [B, C, H, W], and state moves alike.

    Compared are logits, input-gradients in the meaning `batch_norm` and, where parameters learn, the parameter gradients of
    both; under autocast or in TF32 also the first two in that precision, as far as its rounding lets it be told. Buffers and
    attributes must be left as a forward pass leaves them. `cotangents` gives those of the logits. The network, its state and
    the random streams are afterwards as they were. Raises NotTwiceDifferentiable where parameters learn and an operation has
    no second derivative.
    """
    some = _some(images)
    with each_for_itself(), torch.enable_grad(), state_kept(classifier, images.device) as state:
        ways = _Ways(classifier, some, cotangents, state)
        with _full_precision(images.device):
            try:
                meaning, exact = ways.require_alike(batch_norm)
            except AdjointUnavailable:
                state.restore()
                decided = _in_float64(classifier, some, cotangents, batch_norm)
                if decided is None:
                    raise
                meaning, exact = decided
        if torch.is_autocast_enabled(images.device.type) or rounded_products(images.device):
            ways.require_near_in_this_precision(meaning, exact)


def _in_float64(
    classifier: nn.Module, some: torch.Tensor, cotangents: Cotangents, batch_norm: str
) -> "tuple[str, _Pass] | None":
    """As `_Ways.require_alike`, in float64; None for a network that does not take it."""
    with in_float64(classifier), state_kept(classifier, some.device) as state:
        ways = _Ways(classifier, some.double(), cotangents, state)
        return ways.require_alike(batch_norm) if ways.computes() else None


def require_second_derivative(
    classifier: nn.Module, images: torch.Tensor, cotangents: Cotangents, batch_norm: str
) -> None:
    """Raise NotTwiceDifferentiable where autograd cannot differentiate input-gradients by the parameters."""
    with each_for_itself(), torch.enable_grad(), state_kept(classifier, images.device) as state:
        ways = _Ways(classifier, _some(images), cotangents, state)
        ways.require_second_derivative(ways.by_autograd(batch_norm))


def _some(images: torch.Tensor) -> torch.Tensor:
    some = images.detach()
    return torch.cat([some, some.flip(-1), some.flip(-2)])[:IMAGES] if len(some) < IMAGES else some[:IMAGES]


@contextlib.contextmanager
def _full_precision(device: torch.device) -> Iterator[None]:
    with torch.autocast(device.type, enabled=False), products_in("float32", device):
        yield


@dataclass(frozen=True)
class _Pass:
    """What one way computes: logits [B, classes], input-gradients [B, K, C, H, W], and derivatives by each parameter.

    The derivatives are of a weighted sum of both, or of the logits alone where torch has none of the gradients, for the
    reason `missing`.
    """

    logits: torch.Tensor
    gradients: torch.Tensor
    of_parameters: list[torch.Tensor]
    missing: str


class _Ways:
    """The two ways through `classifier`, each from the same state and random draws, and the refusal where they differ."""

    def __init__(
        self, classifier: nn.Module, images: torch.Tensor, cotangents: Cotangents, state: NetworkState
    ) -> None:
        self.classifier, self.images, self.cotangents, self.state = classifier, images, cotangents, state
        self.drawn: set[str] = set()  # the random streams that a forward pass draws from, once one has run
        self.parameters = [parameter for parameter in classifier.parameters() if parameter.requires_grad]

    def computes(self) -> bool:
        """Whether the network takes images of this dtype."""
        try:
            return bool(torch.isfinite(self.plain[0]).all())
        except Exception:  # in whatever way a network refuses another dtype
            return False

    def require_alike(self, batch_norm: str) -> tuple[str, _Pass]:
        """Raise AdjointUnavailable unless values and state agree; the meaning that was compared, and autograd's values."""
        logits, after = self.plain
        if outside := sorted(self.drawn - {"torch"}):
            self._refuse(f"has no random numbers of {' and '.join(outside)}, from which each forward pass draws")
        self._require_no_state_in_python(after, logits)
        # of a random network each pass has draws of its own, so that only one pass can be compared
        meaning = "class" if self.drawn else batch_norm
        adjoint = self._adjoint(meaning)
        found = self._pass(adjoint)
        self._require_buffers(after.buffers)
        if self.drawn:
            other = self._begin(self._forward, "other draws")
            self._require_near("logits", [self._begin(adjoint, "other draws")[0]], [other])
        expected = self.by_autograd(meaning)
        self._require_near("logits", [found.logits], [expected.logits])
        self._require_near("input-gradients", [found.gradients], [expected.gradients])
        self.require_second_derivative(found)
        if expected.missing:
            found = self._pass(adjoint, second=False)
        self._require_near("parameter gradients", found.of_parameters, expected.of_parameters)
        return meaning, expected

    def require_near_in_this_precision(self, meaning: str, exact: _Pass) -> None:
        """Raise AdjointUnavailable where the adjoint is farther from autograd than rounding takes autograd from `exact`."""
        self.parameters = []  # their gradients are of the same operations
        found, expected = self._pass(self._adjoint(meaning)), self.by_autograd(meaning)
        for name, one, other, true in (
            ("logits", found.logits, expected.logits, exact.logits),
            ("input-gradients", found.gradients, expected.gradients, exact.gradients),
        ):
            rounding, _ = _farthest([other], [true])
            self._require_near(name, [one], [other], max(IN_PRECISION, OF_ROUNDING * rounding))

    def by_autograd(self, meaning: str) -> _Pass:
        """Autograd's values in the batch-norm meaning given."""
        classes = self.classes
        return self._pass(
            lambda: autograd_input_gradients(
                self.classifier, self.images, classes, self.cotangents, batch_norm=meaning, create_graph=True
            )
        )

    def _require_near(
        self, what: str, found: Sequence[torch.Tensor], expected: Sequence[torch.Tensor], tolerance: float = TOLERANCE
    ) -> None:
        """Raise AdjointUnavailable where a tensor of `found` is farther than `tolerance` from that of `expected`."""
        error, which = _farthest(found, expected)
        if error <= tolerance:
            return
        names = [name for name, parameter in self.classifier.named_parameters() if parameter.requires_grad]
        place = f" at {names[which]}" if what.startswith("parameter") else ""
        one, other = found[which].double().flatten(), expected[which].double().flatten()
        cosine, length = torch.cosine_similarity(one, other, dim=0), one.norm() / other.norm()
        self._refuse(f"has other {what} than autograd{place} (cosine {cosine:.3f}, {length:.3f} times the length)")

    def require_second_derivative(self, found: _Pass) -> None:
        """Raise NotTwiceDifferentiable where the input-gradients had no derivative by the parameters."""
        if found.missing:
            raise NotTwiceDifferentiable(
                f"{type(self.classifier).__name__} cannot learn from its input-gradients: torch cannot differentiate them by "
                f"the parameters ({found.missing}); put another operation in place of that one"
            )

    @functools.cached_property
    def plain(self) -> tuple[torch.Tensor, NetworkState]:
        """The logits of a forward pass, and the state that it leaves."""
        before = self._begin(lambda: _streams(self.images.device))
        logits = self._forward()
        self.drawn = {name for name, stream in _streams(self.images.device).items() if stream != before[name]}
        return logits, NetworkState(self.classifier)

    def _forward(self) -> torch.Tensor:
        logits: torch.Tensor = self.classifier(self.images)
        return logits

    def _begin(self, run: Callable[[], Result], draws: str = "draws") -> Result:
        """What `run` gives where state is as it was and the random streams begin at `draws`."""
        self.state.restore()
        seed_global_streams(0, draws)
        return run()

    @functools.cached_property
    def classes(self) -> torch.Tensor:
        """The classes that are differentiated: int64 [B, K]."""
        count = self.plain[0].shape[1]
        scores = torch.rand(len(self.images), count, generator=torch.Generator().manual_seed(0))
        return scores.topk(min(CLASSES, count), dim=1).indices.to(self.images.device)

    def _adjoint(self, meaning: str) -> Callable[[], tuple[torch.Tensor, torch.Tensor]]:
        """The adjoint pass: a function that gives logits and input-gradients."""
        program = AdjointProgram(trace(self.classifier, self.images), Context(meaning))
        network, classes = self.classifier, self.classes

        def run() -> tuple[torch.Tensor, torch.Tensor]:
            logits, steps = program.forward(list(network.parameters()), list(network.buffers()), self.images)
            return logits, program.back(steps, self.cotangents(logits, classes)).transpose(0, 1)

        return run

    def _pass(self, run: Callable[[], tuple[torch.Tensor, torch.Tensor]], *, second: bool = True) -> _Pass:
        """What `run` computes, and its derivatives by the parameters; `second` those of the gradients among them."""
        logits, gradients = self._begin(run)
        missing = ""
        if second:
            try:
                found = self._by_parameters(logits, gradients)
                return _Pass(logits.detach(), gradients.detach(), found, missing)
            except RuntimeError as error:  # what torch raises where a derivative is not implemented
                missing = str(error).splitlines()[0]
            logits, gradients = self._begin(run)
        return _Pass(logits.detach(), gradients.detach(), self._by_parameters(logits), missing)

    def _by_parameters(self, *values: torch.Tensor) -> list[torch.Tensor]:
        """The derivatives of a weighted sum in which each of `values` has the same say."""
        if not self.parameters:
            return []
        draws = torch.Generator().manual_seed(1)
        total = torch.zeros((), dtype=torch.float64, device=self.images.device)
        for value in values:
            weights = torch.randn(value.shape, generator=draws, dtype=torch.float64).to(value.device)
            length = value.detach().double().norm()
            total = total + (value.double() * weights).sum() / torch.where(length > 0, length, 1.0)
        if not total.requires_grad:
            return [torch.zeros_like(parameter) for parameter in self.parameters]
        return list(torch.autograd.grad(total, self.parameters, allow_unused=True, materialize_grads=True))

    def _require_no_state_in_python(self, after: NetworkState, logits: torch.Tensor) -> None:
        """Refuse what a second forward pass, from where the first ended, changes again: the first may fill caches."""
        seed_global_streams(0, "draws")
        self._forward()
        moved = NetworkState(self.classifier).attributes_changed_since(after)
        if kept := sorted(name for name in moved if self._is_read(name, logits)):
            self._refuse(f"leaves {', '.join(kept)} as it is, which each forward pass changes")

    def _is_read(self, attribute: str, logits: torch.Tensor) -> bool:
        """Whether a forward pass depends on the attribute, as far as can be told: a tensor is tried with NaN in it."""
        path, _, key = attribute.rpartition(".")
        attributes = vars(self.classifier.get_submodule(path))
        value = attributes.get(key)
        if not (isinstance(value, torch.Tensor) and value.is_floating_point()):
            return True

        def forward() -> torch.Tensor:
            attributes[key] = torch.full_like(value, torch.nan)
            return self._forward()

        return not torch.equal(self._begin(forward), logits)

    def _require_buffers(self, after: dict[str, torch.Tensor]) -> None:
        """Refuse a buffer that is not where a forward pass leaves it; a mean of centred features moves by rounding alone."""
        names = list(after)
        now = dict(self.classifier.named_buffers())
        before = self.state.buffers
        moved = [[values[name].double() - before[name].double() for name in names] for values in (now, after)]
        error, which = _farthest(*moved)
        if error > TOLERANCE:
            self._refuse(f"leaves the buffer {names[which]} other than a forward pass does")

    def _refuse(self, what: str) -> None:
        raise AdjointUnavailable(f"the adjoint of {type(self.classifier).__name__} {what}{self._suspects()}; {REMEDY}")

    def _suspects(self) -> str:
        found = [f"the autograd.Function {name}" for name in _custom_functions(self._begin(self._forward))]
        layers = self.classifier.named_modules()
        found += [
            f"a backward hook of {name}" for name, layer in layers if layer._backward_hooks or layer._backward_pre_hooks
        ]
        return f", which has {' and '.join(found)}" if found else ""


def _streams(device: torch.device) -> dict[str, object]:
    """Where the random streams stand, by the library that draws from them."""
    gpu = torch.cuda.get_rng_state(device).tolist() if device.type == "cuda" else []
    of_torch = (torch.get_rng_state().tolist(), gpu)
    return {"Python's random": random.getstate(), "numpy": repr(np.random.get_state(legacy=False)), "torch": of_torch}


def _farthest(found: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> tuple[float, int]:
    """The largest |found - expected| / |expected| and where it is: against SHARE of all `expected`, where that is more.

    Infinite where a value is not finite, or where all should be zero and are not.
    """
    lengths = [float(value.double().norm()) for value in expected]
    whole = math.hypot(*lengths)
    errors = []
    for one, other, length in zip(found, expected, lengths, strict=True):
        difference = float((one.double() - other.double()).norm())
        scale = max(length, SHARE * whole)
        error = 0.0 if difference == 0 else difference / scale if scale else math.inf
        errors.append(error if math.isfinite(error) else math.inf)
    return max(((error, which) for which, error in enumerate(errors)), default=(0.0, 0))


def _custom_functions(output: torch.Tensor) -> list[str]:
    """The names of the `autograd.Function`s that a result was computed by."""
    seen, waiting = set(), [output.grad_fn]
    names: set[str] = set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if isinstance(node, torch.autograd.function.BackwardCFunction):
            names.add(type(node)._forward_cls.__name__)
        waiting.extend(following for following, _ in node.next_functions)
    return sorted(names)
