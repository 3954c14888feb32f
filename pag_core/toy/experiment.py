"""A network trained on points of the plane (Section 5.1, Appendix G.1), and how robust it is."""

import torch
from foolbox.attacks import L2ProjectedGradientDescentAttack
from foolbox.models import PyTorchModel
from torch import nn

from pag_core.compute.randomness import seed_global_streams
from pag_core.evaluation.preconditions import correct
from pag_core.gradient_store.targets import NeighborGradients
from pag_core.gradients.nearest_neighbor import class_samples, nearest_neighbor_indices
from pag_core.params.measurements import ToyParams
from pag_core.params.sections import ObjectiveParams, TrainParams
from pag_core.pipeline.checkpoint import RunFolder
from pag_core.toy.exact_robustness import withstand_all
from pag_core.toy.points import CLASSES, Points, toy_points
from pag_core.training.classifier import Trainer
from pag_core.training.step import AlignmentTerm

METHODS = {"vanilla": "vanilla", "nn": "nearest neighbor"}
# accuracies of Section 5.1, as fractions
PUBLISHED = {"vanilla": {"clean": 1.0, "pgd": 0.0}, "nn": {"clean": 1.0, "pgd": 0.755}}
TRAIN_PER_MODE, TEST_PER_MODE = 1000, 100
HIDDEN = 32


def toy_mlp() -> nn.Sequential:
    """A new network 2 -> 32 -> 2 with a ReLU for points float [B, 2, 1, 1] as they are.

    Dividing them by their scale would be another experiment.
    """
    return nn.Sequential(nn.Flatten(), nn.Linear(2, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 2))


def held_out_points(seed: int) -> Points:
    """The 600 test points of `seed`."""
    return toy_points(TEST_PER_MODE, seed=seed, split="test")


def trained_network(
    params: ToyParams,
    method: str,
    *,
    seed: int,
    device: torch.device,
    folder: RunFolder,
    checkpoint_seconds: float = 0.0,
) -> nn.Sequential:
    """A network trained on the 6,000 points of `seed`: `vanilla`, or `nn` with Eq. 4 towards the neighbors of Eq. 6.

    Both methods begin with the same weights and see the same batches. `folder` keeps checkpoints and curves. Raises as
    `Trainer` does.
    """
    train = toy_points(TRAIN_PER_MODE, seed=seed, split="train").to(device)
    seed_global_streams(seed, "classifier")
    network = toy_mlp().to(device)
    trainer = Trainer(
        classifier=network,
        train=train,
        classes=CLASSES,
        params=_recipe(params),
        term=_alignment_term(params, train, seed) if method == "nn" else None,
        seed=seed,
        device=device,
        folder=folder,
        checkpoint_seconds=checkpoint_seconds,
    )
    trainer.run(folder.path / "curves")
    return network.eval().requires_grad_(False)


def accuracies(params: ToyParams, network: nn.Sequential, *, seed: int, device: torch.device) -> dict[str, float]:
    """Fractions of the test points of `seed`: `clean`, under PGD (`pgd`), and that no attack can fool (`exact`)."""
    test = held_out_points(seed).to(device)
    points, labels = test.pixels(), test.labels
    kept = {
        "clean": correct(network, points, labels, batch_size=len(labels)),
        "pgd": withstand_pgd(
            network, points, labels, radius=params.radius, steps=params.steps, step_size=params.step_size
        ),
        "exact": withstand_all(network, points, labels, radius=params.radius),
    }
    return {name: int(each.sum()) / len(labels) for name, each in kept.items()}


def withstand_pgd(
    network: nn.Module, points: torch.Tensor, labels: torch.Tensor, *, radius: float, steps: int, step_size: float
) -> torch.Tensor:
    """Which points [N, 2, 1, 1] keep their labels int64 [N] under L2 PGD from the point itself: bool [N].

    No point is clipped to a range of values.
    """
    reach = float(points.abs().max()) + radius
    attack = L2ProjectedGradientDescentAttack(abs_stepsize=step_size, steps=steps, random_start=False)
    model = PyTorchModel(network, bounds=(-reach, reach), device=points.device)
    _, adversarial, _ = attack(model, points, labels, epsilons=radius)
    return correct(network, adversarial.detach(), labels, batch_size=len(labels))


def _recipe(params: ToyParams) -> TrainParams:
    """Appendix G.1; AdamW without weight decay is Adam."""
    return TrainParams(
        epochs=params.epochs, batch_size=params.batch_size, learning_rate=params.learning_rate, optimizer="adamw",
        momentum=0.0, weight_decay=0.0, ema_decay=None,
            validate_every=0,
            keep="last",
            best_by="robust", schedule="constant", augmentation="none", precision="float32",
        compile=False, channels_last=False,
    )  # fmt: skip


def _alignment_term(params: ToyParams, train: Points, seed: int) -> AlignmentTerm | None:
    """The second term of Eq. 4, for both classes of every point; None with lambda 0."""
    if params.lambda_ == 0:
        return None
    samples = class_samples(train, CLASSES, samples_per_class=params.samples_per_class, seed=seed)
    neighbors = nearest_neighbor_indices(train, train, samples)
    config = ObjectiveParams(
        output=params.output, classes_per_step="all", scaling="all", differentiation="adjoint", batch_norm="frozen",
        weight_warmup=None,
    )  # fmt: skip
    return AlignmentTerm(NeighborGradients(neighbors, train, train), params.lambda_, config)
