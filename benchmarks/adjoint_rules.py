"""Whether the adjoint's hand-written rules earn their lines: groups of them against `torch.func.vjp` under `vmap`."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from benchmarks.interleaved import Rounds, prepare
from benchmarks.measurement import Measurement, report
from benchmarks.pag_step import CHEAPEST, SEED, StepSize, TrainingStep, Variant, build_batch, pag_loss
from pag_core.classifiers.building import build_classifier
from pag_core.objective.adjoint import elementwise, pooling, program, shape
from pag_core.objective.adjoint.cotangent import Call, Pullback, applied
from pag_core.pipeline.stage import run

HAND_WRITTEN = "hand_written"
GROUPS = {module.__name__.split(".")[-1]: module.__name__ for module in (shape, pooling, elementwise)}
# images of a step that takes seconds on one core; each network has operations of other groups
IMAGES = {"resnet18": 16, "vgg11": 16, "vit": 4}


def by_vjp(call: Call) -> tuple[Any, Pullback]:
    """u J of any operation, by autograd of the single operation batched over the classes."""
    places = [position for position, active in enumerate(call.active) if active]

    def operation(*given: Any) -> Any:
        arguments = list(call.arguments)
        for position, value in zip(places, given, strict=True):
            arguments[position] = value
        output = call.operation(*arguments, **call.keywords)
        return tuple(output) if isinstance(output, list) else output

    output, back = torch.func.vjp(operation, *(call.arguments[position] for position in places))[:2]

    def pullback(cotangent: Any) -> list[Any]:
        shares = dict(zip(places, torch.func.vmap(back)(_whole(cotangent, output)), strict=True))
        return [shares.get(position) for position in range(len(call.arguments))]

    return output, pullback


def _whole(cotangent: Any, output: Any) -> Any:
    """The cotangent of an operation as `vjp` takes it: of several outputs, with zeros where nothing arrives."""
    if not isinstance(cotangent, list):
        return applied(cotangent)
    known = next(applied(part) for part in cotangent if part is not None)
    return tuple(
        known.new_zeros(known.shape[0], *value.shape) if part is None else applied(part)
        for part, value in zip(cotangent, output, strict=True)
    )


@contextlib.contextmanager
def replaced(groups: Sequence[str]) -> Iterator[None]:
    """Inside the body `by_vjp` stands for all rules of the groups."""
    modules = {GROUPS[group] for group in groups}
    kept = dict(program.RULES)
    program.RULES.update({name: by_vjp for name, rule in kept.items() if rule.__module__ in modules})
    try:
        yield
    finally:
        program.RULES.update(kept)


def build_step(arch: str, size: StepSize, groups: Sequence[str], meaning: str, *, double: bool = False) -> TrainingStep:
    """A PAG step of a new network, the same weights for all groups, in which `by_vjp` stands for the rules of some."""
    prepare(size.device, 1)
    torch.manual_seed(SEED)
    classifier = build_classifier(
        arch, width=None, activation=None, image_shape=(3, size.side, size.side), classes=size.classes
    )
    batch, loss = build_batch(size), pag_loss(Variant(meaning))
    if double:
        classifier = classifier.double()
        batch = replace(batch, images=batch.images.double(), targets=batch.targets.double())

    def with_replaced(*given: Any) -> torch.Tensor:
        with replaced(groups):
            return loss(*given)

    return TrainingStep(classifier.train(), batch, with_replaced)


def parameter_gradient(step: TrainingStep) -> torch.Tensor:
    """The gradient of the step's loss in all parameters, as one vector."""
    step.loss(step.classifier, step.batch).backward()
    return torch.cat([p.grad.flatten() for p in step.classifier.parameters() if p.grad is not None])


def timed_in_turns(steps: dict[str, Callable[[], None]], rounds: int) -> Rounds:
    """Processor seconds of each step, round by round: the few per cent in question are less than others' work adds."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds):
        for name in list(steps) if number % 2 == 0 else list(steps)[::-1]:
            start = time.process_time()
            steps[name]()
            seconds[name].append(time.process_time() - start)
    return Rounds(seconds)


def measure(arch: str, size: StepSize, meaning: str, rounds: int) -> dict[str, Measurement]:
    """Speed and exactness of a network's step with `by_vjp` in place of each group, and of all of them."""
    choices = {HAND_WRITTEN: [], **{group: [group] for group in GROUPS}, "all": list(GROUPS)}
    exact = {
        name: parameter_gradient(build_step(arch, replace(size, batch=2), groups, meaning, double=True))
        for name, groups in choices.items()
    }
    steps = {name: build_step(arch, size, groups, meaning) for name, groups in choices.items()}
    for step in steps.values():
        step()  # lists the network's operations
    timed = timed_in_turns(dict(steps), rounds)
    found = {}
    against = f"the hand-written rules, {meaning}, float32, one CPU thread, {size.batch} images, {size.classes} classes"
    for name in list(choices)[1:]:
        found[f"{arch}.{name}.speedup"] = timed.speedup(name, HAND_WRITTEN, f"{against}, by processor time")
        difference = float((exact[name] - exact[HAND_WRITTEN]).norm() / exact[HAND_WRITTEN].norm())
        found[f"{arch}.{name}.gradient_difference"] = Measurement(
            difference, "relative", "parameter gradients of the hand-written rules, float64"
        )
    return found


def main(
    arch: Annotated[list[str] | None, typer.Option(help="resnet18, vgg11, vit; all of them.")] = None,
    meaning: Annotated[str, typer.Option(help="The meaning of batch-norm.")] = CHEAPEST,
    rounds: Annotated[int, typer.Option(help="Timed steps of each variant.")] = 5,
    smallest: Annotated[bool, typer.Option("--smallest", help="2 images, 1 round: a trial.")] = False,
    output: Annotated[Path | None, typer.Option(help="Write the measurements as JSON.")] = None,
) -> None:
    """Compare the adjoint's rules for shapes, pooling and elementwise operations with autograd of each operation."""
    found: dict[str, Measurement] = {}
    for name in arch or list(IMAGES):
        size = StepSize(2 if smallest else IMAGES[name], 32, 10, 10, "cpu")
        found |= measure(name, size, meaning, 1 if smallest else rounds)
    report("adjoint_rules", found, output, device="cpu", arguments=sys.argv[1:])


if __name__ == "__main__":
    run(main)
