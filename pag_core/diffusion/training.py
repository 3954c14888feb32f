"""Training of the diffusion model (Appendix G.2; on a window of noise levels, Appendix H)."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from pag_core.compute.compiler import require_compiler, require_one_process
from pag_core.compute.precision import computing_in, products_in, require_precision
from pag_core.compute.randomness import generator, global_state, seed_global_streams
from pag_core.compute.replicas import Replicas, replicas
from pag_core.compute.weight_average import ExponentialAverage
from pag_core.datasets.prepared import Split
from pag_core.diffusion.network import build_noising, to_diffusion_range
from pag_core.params.sections import DiffusionParams
from pag_core.pipeline.checkpoint import RunFolder
from pag_core.pipeline.loop import CheckpointClock, LossWatch, progress_bar

REPORT_EVERY = 50  # steps; also how often losses are brought back from the device and checked


def diffusion_labels(labels: torch.Tensor, classes: int, draws: torch.Generator) -> torch.Tensor:
    """Labels int64 [B] of which each has become the extra label C with probability 1/C (Appendix G.2)."""
    dropped = torch.rand(len(labels), generator=draws, device=labels.device) < 1 / classes
    return torch.where(dropped, classes, labels)


def train_diffusion(
    build: Callable[[], nn.Module],
    split: Split,
    *,
    card: dict[str, Any],
    params: DiffusionParams,
    classes: int,
    seed: int,
    device: torch.device,
    folder: RunFolder,
    processes: int = 1,
    checkpoint_seconds: float = 0.0,
) -> tuple[dict[str, torch.Tensor], list[dict[str, float]]]:
    """Train on `split`; return the EMA weights by name, and the curve: step and mean loss of each 50 steps.

    Resumes from the checkpoint in `folder` if there is one, with the same result as an unbroken run; checkpoints are at least
    `checkpoint_seconds` apart. Several `processes` share each batch; rank 0 alone returns. Raises TrainingDiverged at a loss
    that is not finite, and RankLost where another process failed.
    """
    seed_global_streams(seed, "diffusion")
    trainer = DiffusionTrainer(build().to(device).train(), split.to(device), card, params, classes, seed, device)
    with replicas(processes, device) as team:
        _resume(trainer, team, folder)
        trainer.begin(team)
        watch, clock = LossWatch("diffusion", team.total), CheckpointClock(folder, checkpoint_seconds)
        with progress_bar("diffusion", params.steps, trainer.done, "step") as bar, clock:
            while trainer.done < params.steps:
                loss = trainer.step()
                watch.add(trainer.done, loss)
                bar.update()
                report = trainer.done % REPORT_EVERY == 0 or trainer.done == params.steps
                # several processes bring losses back together
                if report or (clock.interrupted and team.process.count == 1):
                    trainer.losses += [row[0] for row in watch.flush()]
                    if report:
                        trainer.close_report()
                        bar.set_postfix(loss=f"{trainer.curve[-1]['loss']:.4f}")
                    if team.leads:
                        clock.tick(trainer.snapshot)
    weights = {name: tensor.detach() for name, tensor in trainer.average.module.state_dict().items()}
    return weights, trainer.curve


def _resume(trainer: "DiffusionTrainer", team: Replicas, folder: RunFolder) -> None:
    # in a function of its own, so that the loaded state (three copies of the network) does not outlive it
    if state := team.load_checkpoint(folder.load_checkpoint, trainer.draws.device):
        trainer.restore(state, team)


class DiffusionTrainer:
    """The state of a training run, and one step of it; everything lives on the device."""

    def __init__(
        self,
        network: nn.Module,
        data: Split,
        card: dict[str, Any],
        params: DiffusionParams,
        classes: int,
        seed: int,
        device: torch.device,
    ) -> None:
        require_precision(params.precision, device, "diffusion.precision")
        self.precision, self.compile = params.precision, params.compile
        self.network = network
        self.data = data
        self.batch_size = params.batch_size
        self.classes = classes
        self.noising = build_noising(card)
        self.window = params.timestep_window or (0, params.timesteps - 1)
        self.average = ExponentialAverage(network, params.ema_decay)
        self.optimizer = torch.optim.AdamW(network.parameters(), lr=params.learning_rate, weight_decay=0.0, fused=True)
        self.seed = seed
        self.draws = generator(device, seed, "diffusion draws")
        self.done = 0
        self.orders: dict[int, torch.Tensor] = {}
        self.losses: list[float] = []
        self.curve: list[dict[str, float]] = []

    def begin(self, team: Replicas) -> None:
        """Train as one of `team` from here on."""
        self.team = team
        self.share = team.share(self.batch_size)
        if self.compile:
            require_one_process("diffusion.compile", several=team.process.count > 1)
            require_compiler(self.draws.device, "diffusion.compile")
        self.replica = torch.compile(self.network) if self.compile else team.replicate(self.network)

    def step(self) -> torch.Tensor:
        """One step on images drawn with replacement, or where they come in windows on the next, each at a noise level.

        Returns what this process's images add to the mean loss.
        """
        draws, device, rows = self.draws, self.draws.device, self.share.rows
        self.team.begin_step(self.seed, self.done)
        indices = self._drawn()
        images = to_diffusion_range(self.data.pixels(indices[rows]))
        labels = diffusion_labels(self.data.labels[indices], self.classes, draws)[rows]
        low, high = self.window
        timesteps = torch.randint(low, high + 1, (self.batch_size,), generator=draws, device=device)[rows]
        noise = torch.randn((self.batch_size, *images.shape[1:]), generator=draws, device=device)[rows]
        with products_in(self.precision, device):
            with computing_in(self.precision, device):
                terms = self.noising.training_losses(
                    self.replica, images, timesteps, model_kwargs={"y": labels}, noise=noise
                )
            loss: torch.Tensor = terms["loss"].mean()
            self.optimizer.zero_grad(set_to_none=True)
            self.team.backward(loss, self.share)
        self.optimizer.step()
        self.average.update_parameters(self.network)
        self.done += 1
        return self.team.part_of_mean(loss, self.share)

    def _drawn(self) -> torch.Tensor:
        """The images of a step: int64 [B] on the device."""
        count, device = len(self.data), self.draws.device
        if not self.data.window:
            return torch.randint(count, (self.batch_size,), generator=self.draws, device=device)
        places = self.done * self.batch_size + torch.arange(self.batch_size)
        first, last = int(places[0]) // count, int(places[-1]) // count
        for epoch in range(first, last + 1):
            if epoch not in self.orders:
                self.orders[epoch] = self.data.epoch_order(seed=self.seed, epoch=epoch)
        self.orders = {epoch: order for epoch, order in self.orders.items() if epoch >= first}
        return torch.cat(list(self.orders.values()))[places - first * count].to(device)

    def close_report(self) -> None:
        """Add the mean of the losses since the last report to the curve."""
        self.curve.append({"step": self.done, "loss": sum(self.losses) / len(self.losses)})
        self.losses = []

    def snapshot(self) -> dict[str, Any]:
        """All that a later run needs to resume."""
        return {
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "draws": self.draws.get_state(),
            "global": global_state(self.draws.device),
            "done": self.done,
            "losses": self.losses,
            "curve": self.curve,
        }

    def restore(self, state: dict[str, Any], team: Replicas) -> None:
        """Restore what `snapshot` returned."""
        self.network.load_state_dict(state["network"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.draws.set_state(state["draws"].cpu())
        team.restore_global_state(state["global"], self.draws.device)
        self.done, self.losses, self.curve = state["done"], state["losses"], state["curve"]
