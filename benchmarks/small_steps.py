"""What makes a step of small networks cheap: memory format, bfloat16 and torch.compile, for everything that an experiment runs.

The networks and batches are those of experiments/cifar10_16px.yaml, at `--side` pixels. Each variant
is what params.yaml offers.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from benchmarks.interleaved import interleaved, prepare
from benchmarks.measurement import Measurement, report
from pag_core.classifiers.building import build_classifier
from pag_core.compute.randomness import generator
from pag_core.compute.replicas import replicas
from pag_core.datasets.prepared import Split
from pag_core.diffusion.network import NoisePredictor, architecture, build_network
from pag_core.diffusion.training import DiffusionTrainer
from pag_core.gradient_store.targets import DenseGradients
from pag_core.gradients.distillation_precision import in_precision
from pag_core.gradients.score_based import ScoreBased
from pag_core.objective.inner_attack import adversarial_examples
from pag_core.objective.methods import build_method
from pag_core.objective.pag import AlignedBatch
from pag_core.params.reading import load_params, parse_params
from pag_core.params.sections import Params
from pag_core.params.values import MethodName
from pag_core.pipeline.stage import run
from pag_core.training.optimization import build_optimizer
from pag_core.training.step import AlignmentTerm, Objective

CLASSES, KEPT, BATCH = 10, 4, 64
ATTACKED = 125  # images of one batch of an attack
RECIPE: dict[str, dict[str, Any]] = {
    "classifier": {"width": 32, "depth": 3},
    "diffusion": {"channels": 32, "channel_multipliers": [1, 2], "timestep_window": [150, 450], "batch_size": BATCH},
    "objective": {"classes_per_step": 1},
    "at": {"norm": "L2", "radius": 0.5},
}
VARIANTS: dict[str, dict[str, Any]] = {
    "float32": {},
    "channels_last": {"channels_last": True},
    "bfloat16": {"precision": "bfloat16"},
    "compiled": {"compile": True},
    "compiled_channels_last": {"compile": True, "channels_last": True},
    "compiled_bfloat16": {"compile": True, "precision": "bfloat16"},
}
METHODS: dict[str, MethodName] = {
    "vanilla": "standard",
    "sbg": "standard",
    "gradient_norm": "gradient_norm",
    "at": "at",
    "trades": "trades",
}
Step = Callable[[], Any]


def params_with(section: str, changes: dict[str, Any]) -> Params:
    """Those of the repository with RECIPE, and with `changes` in `section`."""
    plain = load_params(Path(__file__).parents[1] / "params.yaml").model_dump(by_alias=True, mode="json")
    for name, values in [*RECIPE.items(), (section, changes)]:
        plain[name] |= values
    return parse_params(plain)


def classifier_step(subject: str, side: int, changes: dict[str, Any]) -> Step:
    """One training step with the method of `subject`, its target gradients at hand."""
    params, shape, cpu = params_with("train", changes), (3, side, side), torch.device("cpu")
    torch.manual_seed(0)
    classifier = build_classifier(
        params.arch, **params.classifier.model_dump(), image_shape=shape, classes=CLASSES
    ).train()
    images, labels = torch.rand(BATCH, *shape), torch.arange(BATCH) % CLASSES
    term = None
    if subject == "sbg":
        targets = DenseGradients(torch.randn(1, CLASSES, *shape), torch.ones(1, CLASSES))
        term = AlignmentTerm(targets, 0.5, params.objective)
    method = build_method(METHODS[subject], params)
    objective = Objective(
        classifier, term, classes=CLASSES, params=params.train, device=cpu, method=method, config=params.objective
    )
    start = method.start((BATCH, *shape), torch.Generator().manual_seed(1))
    aligned = AlignedBatch(images, labels, labels[:, None], torch.randn(BATCH, 1, *shape)) if term else None
    optimizer = build_optimizer(classifier.parameters(), params.train)

    def step() -> None:
        loss = objective(images, labels, aligned, start, 10)[0]
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step


def teacher_step(side: int, changes: dict[str, Any]) -> Step:
    """One training step of the diffusion model."""
    params, cpu = params_with("diffusion", changes).diffusion, torch.device("cpu")
    torch.manual_seed(0)
    card = architecture(params)
    data = Split(torch.randint(256, (512, 3, side, side), dtype=torch.uint8), torch.arange(512) % CLASSES)
    trainer = DiffusionTrainer(
        build_network(card, (3, side, side), CLASSES).train(), data, card, params, CLASSES, 1, cpu
    )
    with replicas(1, cpu) as team:
        trainer.begin(team)
    return trainer.step


def distillation_batch(side: int, changes: dict[str, Any]) -> Step:
    """Eq. 8 of a batch of images, KEPT classes each."""
    params, shape = params_with("sbg", changes), (3, side, side)
    torch.manual_seed(0)
    card = architecture(params.diffusion) | {"class_names": [str(label) for label in range(CLASSES)]}
    predictor = NoisePredictor(card, build_network(card, shape, CLASSES), torch.device("cpu"))
    compiled_for = shape if params.sbg.compile else None
    maker = ScoreBased(in_precision(predictor, precision=params.sbg.precision, compiled_for=compiled_for), params.sbg)
    images, labels = torch.rand(BATCH, *shape), torch.arange(BATCH) % CLASSES
    classes = torch.arange(KEPT).expand(BATCH, KEPT)
    return lambda: list(maker.batches(images, labels, classes, generator("cpu", 1, "benchmark")))


def attack_step(side: int, changes: dict[str, Any]) -> Step:
    """Two steps of PGD on a batch of images, as attacks on a finished network make them."""
    params, shape = params_with("at", {"steps": 2}), (3, side, side)
    torch.manual_seed(0)
    classifier = build_classifier(
        params.arch, **params.classifier.model_dump(), image_shape=shape, classes=CLASSES
    ).eval()
    classifier.requires_grad_(False)
    if changes.get("channels_last"):
        classifier.to(memory_format=torch.channels_last)
    forward = torch.compile(classifier) if changes.get("compile") else classifier
    images, labels = torch.rand(ATTACKED, *shape), torch.arange(ATTACKED) % CLASSES
    loss = torch.nn.CrossEntropyLoss(reduction="sum")
    return lambda: adversarial_examples(forward, images, images, lambda logits: loss(logits, labels), params.at)


def steps_of(subject: str, side: int, variants: dict[str, dict[str, Any]]) -> dict[str, Step]:
    """Those of `variants` that there are of a subject."""
    without = {
        "teacher": {"channels_last", "compiled_channels_last"},
        "distillation": {"channels_last", "compiled_channels_last"},
        # an attack is judged by float32
        "attack": {"bfloat16", "compiled_bfloat16"},
    }
    build = {"teacher": teacher_step, "distillation": distillation_batch, "attack": attack_step}.get(
        subject, lambda side, changes: classifier_step(subject, side, changes)
    )
    return {name: build(side, changes) for name, changes in variants.items() if name not in without.get(subject, set())}


def main(
    subjects: Annotated[list[str] | None, typer.Option("--subject", help="Once for each; all.")] = None,
    side: Annotated[int, typer.Option(help="Pixels.")] = 32,
    rounds: Annotated[int, typer.Option(help="Timed steps of each variant.")] = 7,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 1,
    smallest: Annotated[bool, typer.Option("--smallest", help="8 pixels, 1 round, nothing compiled: a trial.")] = False,
    output: Annotated[Path | None, typer.Option(help="Write the measurements as JSON.")] = None,
) -> None:
    """Compare the ways to compute a step, each against float32 as it is."""
    device = prepare("cpu", threads)
    if smallest:
        side, rounds = 8, 1
    # in building one the compiler may be tried
    chosen = {name: changes for name, changes in VARIANTS.items() if not (smallest and "compile" in changes)}
    found: dict[str, Measurement] = {}
    for subject in subjects or [*METHODS, "teacher", "distillation", "attack"]:
        variants = steps_of(subject, side, chosen)
        timed = interleaved(variants, rounds=rounds, warm_up=0 if smallest else 2, device=device)
        for name in variants:
            found[f"{subject}.{name}.seconds"] = Measurement(timed.median(name), "s", None)
            if name != "float32":
                found[f"{subject}.{name}.speedup"] = timed.speedup(name, "float32", f"the {subject} step in float32")
    report("small_steps", found, output, device="cpu", arguments=sys.argv[1:])


if __name__ == "__main__":
    run(main)
