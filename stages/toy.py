"""The toy experiment of Section 5.1: points of the plane, a vanilla network and one aligned with nearest neighbors."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # import from this checkout, or DVC's copy of it

import statistics
from typing import Any

import torch

from pag_core.figures.palette import save_figure
from pag_core.params.measurements import ToyParams
from pag_core.pipeline.artifacts import replacing_folder, write_json
from pag_core.pipeline.checkpoint import RunFolder, run_folder
from pag_core.pipeline.paths import METRICS, TOY
from pag_core.pipeline.stage import run, stage
from pag_core.toy.decision_boundary import Panel, decision_boundary
from pag_core.toy.experiment import METHODS, PUBLISHED, accuracies, held_out_points, toy_mlp, trained_network

Found = dict[str, Any]


def _unit(
    params: ToyParams, method: str, seed: int, device: torch.device, folder: RunFolder, checkpoint_seconds: float
) -> Found:
    """Accuracies and weights of one network; a killed run keeps those of the networks that it finished."""
    name = f"{method}-{seed}"
    unit = folder.load_unit(name)
    if unit is None:
        network = trained_network(
            params,
            method,
            seed=seed,
            device=device,
            folder=RunFolder(folder.path / name),
            checkpoint_seconds=checkpoint_seconds,
        )
        weights = {key: tensor.tolist() for key, tensor in network.state_dict().items()}
        unit = {"accuracy": accuracies(params, network, seed=seed, device=device), "weights": weights}
        folder.save_unit(name, unit)
    shown = ", ".join(f"{kind} {100 * value:.1f} %" for kind, value in unit["accuracy"].items())
    print(f"seed {seed}, {METHODS[method]}: {shown}", flush=True)
    return unit


def _panel(method: str, unit: Found) -> Panel:
    network = toy_mlp()
    network.load_state_dict({key: torch.tensor(values) for key, values in unit["weights"].items()})
    return Panel(METHODS[method], network.requires_grad_(False), unit["accuracy"])


def _over_seeds(found: list[dict[str, float]]) -> Found:
    """Mean, lowest and highest of each kind of accuracy."""
    columns = {kind: [accuracy[kind] for accuracy in found] for kind in found[0]}
    return {
        kind: {"mean": round(statistics.mean(column), 6), "lowest": min(column), "highest": max(column)}
        for kind, column in columns.items()
    }


def main() -> None:
    """Write metrics/toy.json and data/toy: the decision boundaries of the first seed (Fig. 4), and every seed's accuracies."""
    with stage("toy", reads=("seed", "toy"), memory="toy.batch_size") as opened:
        params, device = opened.params, opened.device
        seeds = [params.seed + number for number in range(params.toy.seeds)]
        record = opened.provenance(inputs={})
        with run_folder("toy", record, device) as folder:
            seconds = params.checkpoint_seconds
            units = {
                seed: {method: _unit(params.toy, method, seed, device, folder, seconds) for method in METHODS}
                for seed in seeds
            }
            found = {method: {seed: units[seed][method]["accuracy"] for seed in seeds} for method in METHODS}
            figure = decision_boundary(
                [_panel(method, unit) for method, unit in units[seeds[0]].items()],
                held_out_points(seeds[0]),
                radius=params.toy.radius,
                steps=params.toy.steps,
            )
            with replacing_folder(TOY) as partial:
                save_figure(figure, partial / "decision_boundary.png")
                write_json(partial / "results.json", {"accuracy": found, "provenance": record})
            headline = {method: _over_seeds(list(by_seed.values())) for method, by_seed in found.items()}
            write_json(METRICS / "toy.json", {**headline, "published": PUBLISHED})


if __name__ == "__main__":
    run(main)
