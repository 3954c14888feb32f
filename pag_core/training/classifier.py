"""The classifier's training loop: Eq. 4 over shuffled epochs, resumable at any step."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pag_core.checkpoint import RunFolder
from pag_core.datasets.prepared import Split
from pag_core.errors import ParamsError
from pag_core.gradients.store import TargetGradients
from pag_core.loop import CheckpointClock, LossWatch, progress_bar
from pag_core.objective.pag import drawn_classes, pag_objective, vanilla_objective
from pag_core.params import ObjectiveParams, TrainParams
from pag_core.randomness import generator, global_state
from pag_core.replicas import Share, replicas
from pag_core.training.augmentation import crop_and_flip
from pag_core.training.curves import Curves
from pag_core.training.optimization import build_optimizer, build_schedule

STEPS_BETWEEN_READS = 100  # at most so many steps run before their losses are brought back and checked


@dataclass(frozen=True)
class Alignment:
    """What turns plain training into training with Eq. 4: the target gradients, lambda and how the term is computed."""

    targets: TargetGradients
    weight: float
    objective: ObjectiveParams


class Objective(nn.Module):
    """Eq. 4 as a module around the classifier, so that what replicates a module's `forward` covers all of the loss."""

    def __init__(self, classifier: nn.Module, alignment: Alignment | None, classes: int) -> None:
        super().__init__()
        self.classifier = classifier
        self.alignment = alignment
        self.classes = classes

    def forward(
        self,
        images: torch.Tensor,
        labels: torch.Tensor,
        class_indices: torch.Tensor | None = None,
        target_gradients: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Total, cross-entropy and alignment as scalars, and the logits [B, classes] (see `ObjectiveTerms`)."""
        if self.alignment is None or class_indices is None or target_gradients is None:
            terms = vanilla_objective(self.classifier, images, labels)
        else:
            terms = pag_objective(
                self.classifier,
                images,
                labels,
                class_indices,
                target_gradients,
                weight=self.alignment.weight,
                classes=self.classes,
                output=self.alignment.objective.output,
                scaling=self.alignment.objective.scaling,
                differentiation=self.alignment.objective.differentiation,
            )
        # wrappers look for tensors in plain containers
        return terms.total, terms.cross_entropy, terms.alignment, terms.logits


@dataclass
class Trainer:
    """Trains `classifier` in place on `train`; `alignment` None is vanilla training.

    Data, targets and all random draws live on the classifier's device. Several `processes` share each batch of
    `params.batch_size`, and rank 0 alone returns from `run`. Raises ParamsError where the parameters do not fit the
    data, TrainingDiverged at a loss that is not finite and CompanionLost where another process failed.
    """

    classifier: nn.Module
    train: Split
    classes: int
    params: TrainParams
    alignment: Alignment | None
    seed: int
    device: torch.device
    folder: RunFolder
    processes: int = 1

    def __post_init__(self) -> None:
        drawn = self.alignment.objective.classes_per_step if self.alignment else None
        if drawn is not None and drawn > self.classes:
            raise ParamsError(
                f"params.yaml: objective.classes_per_step is {drawn}, the dataset has {self.classes} classes (null: all)"
            )
        self.steps_per_epoch = math.ceil(len(self.train) / self.params.batch_size)
        self.data = self.train.to(self.device)
        self.optimizer = build_optimizer(self.classifier.parameters(), self.params)
        self.schedule = build_schedule(self.optimizer, self.params, self.params.epochs * self.steps_per_epoch)
        self.draws = generator(self.device, self.seed, "training draws")
        self.step = 0
        self.order_epoch = -1
        self.sums: dict[str, float] = {}
        self.history: list[dict[str, float]] = []

    def run(self, curves_folder: Path) -> list[dict[str, float]]:
        """Train to the end, from the checkpoint where there is one; returns and logs the means of each epoch."""
        with replicas(self.processes, self.device) as self.team:
            self._resume()
            self._train(Curves(curves_folder, self.history) if self.team.leads else None)
        return self.history

    def _train(self, curves: Curves | None) -> None:
        objective = self.team.replicate(Objective(self.classifier, self.alignment, self.classes))
        watch = LossWatch("classifier", self.team.total)
        clock = CheckpointClock(self.folder, self.params.checkpoint_seconds)
        total = self.params.epochs * self.steps_per_epoch
        self.classifier.train()
        with progress_bar("classifier", total, self.step, "step") as bar:
            while self.step < total:
                watch.add(self.step + 1, *self._step(objective, self._batch(self.step)))
                self.step += 1
                bar.update()
                epoch_ends = self.step % self.steps_per_epoch == 0
                if epoch_ends or len(watch.rows) == STEPS_BETWEEN_READS:
                    self._accumulate(watch)
                    if epoch_ends:
                        self._close_epoch(curves)
                        bar.set_postfix(loss=f"{self.history[-1]['cross_entropy']:.4f}")
                    if self.team.leads:
                        clock.tick(self._snapshot)
        if curves is not None:
            curves.close()

    def _batch(self, step: int) -> torch.Tensor:
        """The image indices of `step`; the order of an epoch has a random stream of its own."""
        epoch, batch = divmod(step, self.steps_per_epoch)
        if epoch != self.order_epoch:
            stream = generator(self.device, self.seed, "order", epoch)
            self.order = torch.randperm(len(self.data), generator=stream, device=self.device)
            self.order_epoch = epoch
        return self.order[batch * self.params.batch_size : (batch + 1) * self.params.batch_size]

    def _step(self, objective: nn.Module, batch: torch.Tensor) -> list[torch.Tensor]:
        """One step on the images `batch`; what this process adds to its total, cross-entropy, alignment and hits."""
        share = self.team.share(len(batch))
        self.team.begin_step(self.seed, self.step)
        images, labels, class_indices, targets = self._inputs(batch, share)
        loss, cross_entropy, alignment, logits = objective(images, labels, class_indices, targets)
        self.optimizer.zero_grad(set_to_none=True)
        self.team.backward(loss, share)
        self.optimizer.step()
        self.schedule.step()
        correct = (logits.argmax(1) == labels).sum()
        means = [self.team.part_of_mean(mean, share) for mean in (loss, cross_entropy, alignment)]
        return [*means, self.team.part_of_sum(correct, share)]

    def _inputs(
        self, batch: torch.Tensor, share: Share
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Images, labels, drawn classes and targets of this process's rows; the draws are those of the whole batch."""
        indices, class_indices, targets = batch[share.rows], None, None
        images, labels = self.data.pixels(indices), self.data.labels[indices]
        if self.alignment is not None:
            drawn = self.alignment.objective.classes_per_step or self.classes
            class_indices = drawn_classes(share.whole, self.classes, drawn, self.draws)[share.rows]
            targets = self.alignment.targets(indices, class_indices)
        if self.params.augmentation == "crop_flip":
            images, targets = crop_and_flip(images, targets, self.draws, share=(share.rows, share.whole))
        return images, labels, class_indices, targets

    def _accumulate(self, watch: LossWatch) -> None:
        """Add the steps since the last call to the sums of the epoch; `watch` refuses non-finite losses first."""
        first = watch.first_step
        for step, (_, cross_entropy, alignment, correct) in enumerate(watch.flush(), start=first):
            images = len(self._batch(step - 1))
            added = {"images": images, "correct": correct, "cross_entropy": cross_entropy * images}
            if self.alignment is not None:
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
            "schedule": self.schedule.state_dict(), "draws": self.draws.get_state(), "global": global_state(),
            "step": self.step, "sums": self.sums, "history": self.history,
        }  # fmt: skip

    def _resume(self) -> None:
        state = self.team.load_checkpoint(self.folder, self.device)
        if state is None:
            return
        self.classifier.load_state_dict(state["classifier"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.draws.set_state(state["draws"].cpu())
        self.team.restore_global_state(state["global"])
        self.step, self.sums, self.history = state["step"], state["sums"], state["history"]
