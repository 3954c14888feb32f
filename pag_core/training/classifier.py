"""The classifier's training loop: Eq. 4 over shuffled epochs, resumable at any step."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pag_core.compute.precision import products_in
from pag_core.compute.randomness import global_state
from pag_core.compute.replicas import replicas
from pag_core.compute.weight_average import ExponentialAverage
from pag_core.datasets.prepared import Split
from pag_core.errors import ParamsError
from pag_core.objective.methods import STANDARD, Method
from pag_core.params.sections import ObjectiveParams, TrainParams
from pag_core.pipeline.checkpoint import RunFolder
from pag_core.pipeline.curves import Curves
from pag_core.pipeline.loop import CheckpointClock, LossWatch, progress_bar
from pag_core.training.batches import Batch, Batches
from pag_core.training.optimization import build_optimizer, build_schedule
from pag_core.training.smallest_batch import require_smallest_batch
from pag_core.training.step import AlignmentTerm, Objective

STEPS_BETWEEN_READS = 100  # at most this many steps run before their losses are brought back and checked


@dataclass
class Trainer:
    """Trains `classifier` in place on `train`; `method` is the classification part of the loss, `term` the alignment or None.

    With `params.ema_decay` the classifier holds the moving average of its weights in the end, while the losses and accuracies
    of an epoch are those of the weights that were trained.
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

    def __post_init__(self) -> None:
        require_smallest_batch(
            self.classifier,
            tuple(self.train.images.shape[1:]),
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

    def run(self, curves_folder: Path) -> list[dict[str, float]]:
        """Train to the end, from the checkpoint if there is one; returns and logs the means of each epoch."""
        with replicas(self.processes, self.device) as self.team:
            draws = self._resume()
            self.batches.start(self.step, draws, self.team.share)
            try:
                self._train(Curves(curves_folder, self.history) if self.team.leads else None)
            finally:
                self.batches.close()
        if self.average is not None:
            self.classifier.load_state_dict(self.average.module.state_dict())
        return self.history

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
                        bar.set_postfix(loss=f"{self.history[-1]['cross_entropy']:.4f}")
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
        self.history.append(row)
        if curves is not None:
            curves.log(row)

    def _snapshot(self) -> dict[str, Any]:
        return {
            "classifier": self.classifier.state_dict(), "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(), "draws": self.batches.draws_state(), "global": global_state(self.device),
            "step": self.step, "sums": self.sums, "history": self.history,
            "average": None if self.average is None else self.average.state_dict(),
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
        self.step, self.sums, self.history = state["step"], state["sums"], state["history"]
        draws: torch.Tensor = state["draws"]
        return draws


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
