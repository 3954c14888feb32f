"""Training of the diffusion model (Appendix G.2; on a window of noise levels, Appendix H)."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from pag_core.checkpoint import RunFolder
from pag_core.datasets.prepared import Split
from pag_core.diffusion.network import build_process, to_diffusion_range
from pag_core.loop import CheckpointClock, LossWatch, progress_bar
from pag_core.params import DiffusionParams
from pag_core.randomness import generator, global_state, restore_global_state, seed_global_streams

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
) -> tuple[dict[str, torch.Tensor], list[dict[str, float]]]:
    """Train on `split`; return the EMA weights by name, and the curve: step and mean loss of each 50 steps.

    Goes on from the checkpoint in `folder` where there is one, to the same result as an unbroken run.
    Raises TrainingDiverged at a loss that is not finite.
    """
    seed_global_streams(seed, "diffusion")
    network = build().to(device).train()
    average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(params.ema_decay))
    optimizer = torch.optim.AdamW(network.parameters(), lr=params.learning_rate, weight_decay=0.0, fused=True)
    process = build_process(card)
    draws = generator(device, seed, "diffusion draws")
    data = split.to(device)
    low, high = params.timestep_window or (0, params.timesteps - 1)
    done, curve = 0, list[dict[str, float]]()
    if state := folder.load_checkpoint(device):
        network.load_state_dict(state["network"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        draws.set_state(state["draws"].cpu())
        restore_global_state(state["global"])
        done, curve = state["step"], state["curve"]

    def snapshot() -> dict[str, Any]:
        return {
            "network": network.state_dict(), "average": average.state_dict(), "optimizer": optimizer.state_dict(),
            "draws": draws.get_state(), "global": global_state(), "step": done, "curve": curve,
        }  # fmt: skip

    watch, clock = LossWatch("diffusion"), CheckpointClock(folder, params.checkpoint_seconds)
    with progress_bar("diffusion", params.steps, done, "step") as bar:
        while done < params.steps:
            indices = torch.randint(len(data), (params.batch_size,), generator=draws, device=device)
            images = to_diffusion_range(data.pixels(indices))
            labels = diffusion_labels(data.labels[indices], classes, draws)
            timesteps = torch.randint(low, high + 1, (len(images),), generator=draws, device=device)
            noise = torch.randn(images.shape, generator=draws, device=device)
            losses = process.training_losses(network, images, timesteps, model_kwargs={"y": labels}, noise=noise)
            loss = losses["loss"].mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            average.update_parameters(network)
            done += 1
            watch.add(done, loss)
            bar.update()
            if done % REPORT_EVERY == 0 or done == params.steps:
                window = [loss for (loss,) in watch.flush()]
                curve.append({"step": done, "loss": sum(window) / len(window)})
                bar.set_postfix(loss=f"{curve[-1]['loss']:.4f}")
                clock.tick(snapshot)
    weights = {name: tensor.detach() for name, tensor in average.module.state_dict().items()}
    return weights, curve
