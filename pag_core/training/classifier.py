"""The classifier's training loop: Eq. 4 over shuffled epochs, resumable at any step."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pag_core.checkpoint import RunFolder
from pag_core.datasets.prepared import Split
from pag_core.errors import ParamsError
from pag_core.gradients.targets import TargetGradients
from pag_core.loop import CheckpointClock, LossWatch, progress_bar
from pag_core.objective.pag import ObjectiveTerms, pag_objective, vanilla_objective
from pag_core.params import ObjectiveParams, TrainParams
from pag_core.randomness import global_state, restore_global_state
from pag_core.training.batches import Batch, Batches
from pag_core.training.curves import Curves
from pag_core.training.optimization import build_optimizer, build_schedule

STEPS_BETWEEN_READS = 100  # at most so many steps run before their losses are brought back and checked


@dataclass(frozen=True)
class Alignment:
    """What turns plain training into training with Eq. 4: the target gradients, lambda and how the term is computed."""

    targets: TargetGradients
    weight: float
    objective: ObjectiveParams

    def weight_in(self, epoch: int) -> float:
        """Lambda in `epoch`, counted from 0: `weight`, times the warm-up's factor in its first epochs."""
        warmup = self.objective.weight_warmup
        return self.weight * warmup.factor if warmup is not None and epoch < warmup.epochs else self.weight


@dataclass
class Trainer:
    """Trains `classifier` in place on `train`; `alignment` None is vanilla training.

    Raises ParamsError where the parameters do not fit the data and TrainingDiverged at a loss that is not finite.
    """

    classifier: nn.Module
    train: Split
    classes: int
    params: TrainParams
    alignment: Alignment | None
    seed: int
    device: torch.device
    folder: RunFolder

    def __post_init__(self) -> None:
        drawn = self.alignment.objective.classes_per_step if self.alignment else None
        if drawn is not None and drawn > self.classes:
            raise ParamsError(
                f"params.yaml: objective.classes_per_step is {drawn}, the dataset has {self.classes} classes (null: all)"
            )
        self.batches = Batches(
            self.train,
            classes=self.classes,
            params=self.params,
            targets=self.alignment.targets if self.alignment else None,
            drawn=drawn or self.classes,
            seed=self.seed,
            device=self.device,
        )
        self.steps_per_epoch = self.batches.steps_per_epoch
        self.optimizer = build_optimizer(self.classifier.parameters(), self.params)
        self.schedule = build_schedule(self.optimizer, self.params, self.batches.steps)
        self.step = 0
        self.sums: dict[str, float] = {}
        self.history: list[dict[str, float]] = []

    def run(self, curves_folder: Path) -> list[dict[str, float]]:
        """Train to the end, from the checkpoint where there is one; returns and logs the means of each epoch."""
        draws = self._resume()
        self.batches.start(self.step, draws)
        try:
            return self._run(curves_folder)
        finally:
            self.batches.close()

    def _run(self, curves_folder: Path) -> list[dict[str, float]]:
        curves = Curves(curves_folder, self.history)
        watch = LossWatch("classifier")
        clock = CheckpointClock(self.folder, self.params.checkpoint_seconds)
        self.classifier.train()
        with progress_bar("classifier", self.batches.steps, self.step, "step") as bar:
            while self.step < self.batches.steps:
                batch = self.batches.take()
                terms = self._step(batch)
                self.step += 1
                correct = (terms.logits.argmax(1) == batch.labels).sum()
                watch.add(self.step, terms.total, terms.cross_entropy, terms.alignment, correct)
                bar.update()
                epoch_ends = self.step % self.steps_per_epoch == 0
                if epoch_ends or len(watch.rows) == STEPS_BETWEEN_READS:
                    self._accumulate(watch)
                    if epoch_ends:
                        self._close_epoch(curves)
                        bar.set_postfix(loss=f"{self.history[-1]['cross_entropy']:.4f}")
                    clock.tick(self._snapshot)
        curves.close()
        return self.history

    def _step(self, batch: Batch) -> ObjectiveTerms:
        if self.alignment is None or batch.class_indices is None or batch.targets is None:
            terms = vanilla_objective(self.classifier, batch.images, batch.labels)
        else:
            terms = pag_objective(
                self.classifier,
                batch.images,
                batch.labels,
                batch.class_indices,
                batch.targets,
                weight=self.alignment.weight_in(self.step // self.steps_per_epoch),
                classes=self.classes,
                output=self.alignment.objective.output,
                scaling=self.alignment.objective.scaling,
                differentiation=self.alignment.objective.differentiation,
                batch_norm=self.alignment.objective.batch_norm,
                mask=batch.mask,
                target_norm=batch.target_norm,
            )
        self.optimizer.zero_grad(set_to_none=True)
        terms.total.backward()
        self.optimizer.step()
        self.schedule.step()
        return terms

    def _accumulate(self, watch: LossWatch) -> None:
        """Add the steps since the last call to the sums of the epoch; `watch` refuses non-finite losses first."""
        first = watch.first_step
        for step, (_, cross_entropy, alignment, correct) in enumerate(watch.flush(), start=first):
            images = self.batches.size(step - 1)
            added = {"images": images, "correct": correct, "cross_entropy": cross_entropy * images}
            if self.alignment is not None:
                added["alignment"] = alignment * images
            for name, value in added.items():
                self.sums[name] = self.sums.get(name, 0.0) + value

    def _close_epoch(self, curves: Curves) -> None:
        images = self.sums["images"]
        row = {"step": float(self.step // self.steps_per_epoch), "accuracy": self.sums["correct"] / images}
        row |= {name: self.sums[name] / images for name in ("cross_entropy", "alignment") if name in self.sums}
        self.sums = {}
        self.history.append(row)
        curves.log(row)

    def _snapshot(self) -> dict[str, Any]:
        return {
            "classifier": self.classifier.state_dict(), "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(), "draws": self.batches.draws_state(), "global": global_state(),
            "step": self.step, "sums": self.sums, "history": self.history,
        }  # fmt: skip

    def _resume(self) -> torch.Tensor | None:
        """Take up the checkpoint where there is one; returns the state of the random draws."""
        state = self.folder.load_checkpoint(self.device)
        if state is None:
            return None
        self.classifier.load_state_dict(state["classifier"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        restore_global_state(state["global"])
        self.step, self.sums, self.history = state["step"], state["sums"], state["history"]
        draws: torch.Tensor = state["draws"]
        return draws
