"""The classifier's training loop: Eq. 4 over shuffled epochs, resumable at any step."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pag_core.compute.precision import products_in
from pag_core.compute.randomness import global_state, streams_kept
from pag_core.compute.replicas import replicas
from pag_core.compute.weight_average import ExponentialAverage
from pag_core.datasets.prepared import Split
from pag_core.errors import EvaluationRefused, ParamsError
from pag_core.objective.methods import STANDARD, Method
from pag_core.params.sections import ObjectiveParams, TrainParams
from pag_core.pipeline.checkpoint import RunFolder
from pag_core.pipeline.curves import VALIDATION, Curves
from pag_core.pipeline.loop import CheckpointClock, LossWatch, progress_bar
from pag_core.training.batches import Batch, Batches
from pag_core.training.optimization import build_optimizer, build_schedule
from pag_core.training.smallest_batch import require_smallest_batch
from pag_core.training.step import AlignmentTerm, Objective

STEPS_BETWEEN_READS = 100  # at most this many steps run before their losses are brought back and checked

# a network in eval mode: its accuracies (fractions) on validation images, by name
Validate = Callable[[nn.Module], dict[str, float]]


@dataclass
class Trainer:
    """Trains `classifier` in place on `train`; `method` is the classification part of the loss, `term` the alignment or None.

    With `params.ema_decay` the classifier holds the moving average of its weights in the end, while the losses and accuracies
    of an epoch are those of the weights that were trained.
    Every `params.validate_every` epochs, and after the last, `validate` measures what would be kept; with `params.keep` best
    the classifier holds in the end what did best by `params.best_by` (where equal, by the clean accuracy, then the later).
    Several `processes` share each batch of `params.batch_size`, and rank 0 alone returns from `run`. Raises ParamsError
    where the parameters do not fit the data, TrainingDiverged at a loss that is not finite and RankLost where
    another process failed. Checkpoints are at least `checkpoint_seconds` apart.
    """

    classifier: nn.Module
    train: Split
    classes: int
    params: TrainParams
    term: AlignmentTerm | None
    seed: int
    device: torch.device
    folder: RunFolder
    processes: int = 1
    checkpoint_seconds: float = 0.0
    method: Method = STANDARD
    config: ObjectiveParams | None = None
    validate: Validate | None = None

    def __post_init__(self) -> None:
        require_smallest_batch(
            self.classifier,
            self.train.image_shape,
            images=len(self.train),
            batch_size=self.params.batch_size,
            processes=self.processes,
        )
        self.batches = Batches(
            self.train,
            classes=self.classes,
            params=self.params,
            targets=self.term.targets if self.term else None,
            drawn=None if self.term is None else _drawn(self.term, self.classes),
            seed=self.seed,
            device=self.device,
            start=self.method.start,
        )
        self.steps_per_epoch = self.batches.steps_per_epoch
        self.optimizer = build_optimizer(self.classifier.parameters(), self.params)
        self.schedule = build_schedule(self.optimizer, self.params, self.batches.steps)
        decay = self.params.ema_decay
        self.average = None if decay is None else ExponentialAverage(self.classifier, decay, warm_up=True)
        self.step = 0
        self.sums: dict[str, float] = {}
        self.history: list[dict[str, float]] = []
        self.best: dict[str, Any] = {}

    def run(self, curves_folder: Path) -> list[dict[str, float]]:
        """Train to the end, from the checkpoint if there is one; returns and logs the means of each epoch."""
        with replicas(self.processes, self.device) as self.team:
            draws = self._resume()
            self.batches.start(self.step, draws, self.team.share)
            try:
                self._train(Curves(curves_folder, self.history) if self.team.leads else None)
            finally:
                self.batches.close()
        self.classifier.load_state_dict(self.best["weights"] if self.best else self._kept().state_dict())
        return self.history

    @property
    def kept_epoch(self) -> int:
        """The epoch, counted from 1, whose weights the classifier holds after `run`."""
        return int(self.best["epoch"]) if self.best else self.params.epochs

    def _kept(self) -> nn.Module:
        """The network with the weights that would be kept now."""
        return self.classifier if self.average is None else self.average.module

    def _train(self, curves: Curves | None) -> None:
        objective = self.team.replicate(
            Objective(
                self.classifier,
                self.term,
                classes=self.classes,
                params=self.params,
                device=self.device,
                method=self.method,
                config=self.config,
            )
        )
        watch = LossWatch("classifier", self.team.total)
        clock = CheckpointClock(self.folder, self.checkpoint_seconds)
        self.classifier.train()
        with progress_bar("classifier", self.batches.steps, self.step, "step") as bar, clock:
            while self.step < self.batches.steps:
                watch.add(self.step + 1, *self._step(objective, self.batches.take()))
                self.step += 1
                bar.update()
                epoch_ends = self.step % self.steps_per_epoch == 0
                # several processes bring losses back together
                ends_here = clock.interrupted and self.team.process.count == 1
                if epoch_ends or len(watch.rows) == STEPS_BETWEEN_READS or ends_here:
                    self._accumulate(watch)
                    if epoch_ends:
                        self._close_epoch(curves)
                        bar.set_postfix(_shown(self.history[-1]))
                    if self.team.leads:
                        clock.tick(self._snapshot)
        if curves is not None:
            curves.close()

    def _step(self, objective: nn.Module, batch: Batch) -> list[torch.Tensor]:
        """One step; what this process adds to the batch's total, cross-entropy, alignment and hits."""
        self.team.begin_step(self.seed, self.step)
        with products_in(self.params.precision, self.device):
            epoch = self.step // self.steps_per_epoch
            loss, cross_entropy, alignment, logits = objective(
                batch.images, batch.labels, batch.aligned, batch.start, epoch
            )
            self.optimizer.zero_grad(set_to_none=True)
            self.team.backward(loss, batch.share)
        self.optimizer.step()
        self.schedule.step()
        if self.average is not None:
            self.average.update_parameters(self.classifier)
        correct = (logits.argmax(1) == batch.labels).sum()
        means = [self.team.part_of_mean(mean, batch.share) for mean in (loss, cross_entropy, alignment)]
        return [*means, self.team.part_of_sum(correct, batch.share)]

    def _accumulate(self, watch: LossWatch) -> None:
        """Add the steps since the last call to the sums of the epoch; `watch` refuses non-finite losses first."""
        first = watch.first_step
        for step, (_, cross_entropy, alignment, correct) in enumerate(watch.flush(), start=first):
            images = self.batches.size(step - 1)
            added = {"images": images, "correct": correct, "cross_entropy": cross_entropy * images}
            if self.term is not None:
                added["alignment"] = alignment * images
            for name, value in added.items():
                self.sums[name] = self.sums.get(name, 0.0) + value

    def _close_epoch(self, curves: Curves | None) -> None:
        images = self.sums["images"]
        row = {"step": float(self.step // self.steps_per_epoch), "accuracy": self.sums["correct"] / images}
        row |= {name: self.sums[name] / images for name in ("cross_entropy", "alignment") if name in self.sums}
        self.sums = {}
        if self.validate is not None and (
            self.step == self.batches.steps or row["step"] % self.params.validate_every == 0
        ):
            if self.team.leads:
                row |= self._validated(self.validate, int(row["step"]))
            self.team.wait_for_leader()
        self.history.append(row)
        if curves is not None:
            curves.log(row)

    def _validated(self, validate: Validate, epoch: int) -> dict[str, float]:
        """What is measured of what would be kept now, and kept if it is the best so far; nothing else changes by it."""
        network = self._kept()
        mode = network.training
        with streams_kept(self.device):
            try:
                found = validate(network.eval())
            except EvaluationRefused as error:
                raise EvaluationRefused(
                    f"validation after epoch {epoch}: {error}; or set train.validate_every to 0, to train without"
                ) from error
        network.train(mode)
        if self.params.keep == "best":
            score = [found[self.params.best_by], found["clean"]]
            if not self.best or score >= self.best["score"]:
                weights = {name: tensor.to("cpu", copy=True) for name, tensor in network.state_dict().items()}
                self.best = {"epoch": epoch, "score": score, "weights": weights}
        return {f"{VALIDATION}{name}": value for name, value in found.items()}

    def _snapshot(self) -> dict[str, Any]:
        return {
            "classifier": self.classifier.state_dict(), "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(), "draws": self.batches.draws_state(), "global": global_state(self.device),
            "step": self.step, "sums": self.sums, "history": self.history,
            "average": None if self.average is None else self.average.state_dict(), "best": self.best,
        }  # fmt: skip

    def _resume(self) -> torch.Tensor | None:
        """Resume from the checkpoint if there is one; returns the state of the random draws."""
        state = self.team.load_checkpoint(self.folder.load_checkpoint, self.device)
        if state is None:
            return None
        self.classifier.load_state_dict(state["classifier"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.team.restore_global_state(state["global"], self.device)
        self.step, self.sums, self.history, self.best = state["step"], state["sums"], state["history"], state["best"]
        draws: torch.Tensor = state["draws"]
        return draws


def _shown(row: dict[str, float]) -> dict[str, str]:
    """The end of the progress bar's line."""
    validated = {name: f"{row[key]:.1%}" for name in ("clean", "robust") if (key := f"{VALIDATION}{name}") in row}
    return {"loss": f"{row['cross_entropy']:.4f}", **validated}


def _drawn(term: AlignmentTerm, classes: int) -> int | None:
    """How many of an image's target gradients a step draws; None is all."""
    require_drawn_classes(term.config, classes=classes, slots=term.targets.slots(classes))
    return None if term.config.classes_per_step == "all" else term.config.classes_per_step


def require_drawn_classes(config: ObjectiveParams, *, classes: int, slots: int) -> None:
    """Raise ParamsError where a step draws more target gradients than the `slots` that there are of an image."""
    if config.classes_per_step != "all" and config.classes_per_step > slots:
        held = f"the dataset has {classes} classes"
        if slots < classes:
            held = f"the store keeps {slots} classes of an image (gradient_store.classes_per_image)"
        raise ParamsError(
            f"params.yaml: objective.classes_per_step is {config.classes_per_step}, {held}; set it to at most {slots}, or all"
        )
