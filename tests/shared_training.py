"""A training run in miniature as a command of its own, which tests start in one process, in several or by torchrun.

    python tests/shared_training.py '{"kind": "classifier", "processes": 2, ...}' ...

With the repository in PYTHONPATH. It writes what came out to result.pt in the folder it is run in, or in `folder`.
Several trainings are led by one process, one after another until one fails: each start costs seconds of imports.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import nn

from pag_core.classifiers.building import build_classifier
from pag_core.compute.processes import this_process
from pag_core.datasets.prepared import Split
from pag_core.diffusion.network import NoisePredictor, architecture, build_network
from pag_core.diffusion.training import train_diffusion
from pag_core.gradient_store.store import RepresentativeGradients
from pag_core.gradients.online import OnlineGradients
from pag_core.objective.methods import build_method
from pag_core.params.reading import parse_params
from pag_core.pipeline.checkpoint import RunFolder, run_folder
from pag_core.pipeline.stage import stage
from pag_core.training import classifier as classifier_module
from pag_core.training.classifier import Trainer
from pag_core.training.step import AlignmentTerm
from tests.samples import changed, make_labelled, plain_params, sbg_params


def _die_at_checkpoint(folder: RunFolder, survive: int, rank: int) -> None:
    """Have process `rank` end by SIGKILL in place of the checkpoint after `survive`; rank 0 alone saves them."""
    original, saved = folder.save_checkpoint, []

    def save(state):
        if len(saved) == survive:
            os.kill(os.getpid() if rank == 0 else _process_of(rank), 9)
        saved.append(state["step"] if "step" in state else state["done"])
        original(state)

    folder.save_checkpoint = save


def _process_of(rank: int) -> int:
    return int(Path(f"pid-{rank}").read_text())


def _classifier(options, params, split, folder):
    torch.manual_seed(0)
    arch, width, depth = ("wrn_34_10", 1, 10) if options.get("batch_norm") else ("small_resnet", 4, None)
    classifier = build_classifier(arch, width=width, depth=depth, activation="silu", image_shape=(1, 8, 8), classes=3)
    if options.get("dropout"):
        classifier = nn.Sequential(nn.Dropout(0.3), classifier)
    term = None
    if options.get("aligned", True):
        targets = RepresentativeGradients(torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(1)), split)
        if options.get("asks_teacher"):
            targets = OnlineGradients(_teacher(params), sbg_params(timestep=[200, 300], draws=2))
        term = AlignmentTerm(targets, 2.0, params.objective)
    # several reads, and so checkpoints, in an epoch
    classifier_module.STEPS_BETWEEN_READS = 2
    trainer = Trainer(
        classifier=classifier, train=split, classes=3, params=params.train, term=term, seed=5,
        device=torch.device("cpu"), folder=folder, processes=options["processes"],
        method=build_method(params.method, params), config=params.objective,
    )  # fmt: skip
    history = trainer.run(Path("curves"))
    return {"weights": classifier.state_dict(), "history": history}


def _teacher(params):
    card = architecture(params.diffusion.model_copy(update={"timestep_window": None}))
    network = build_network(card, (1, 8, 8), 3)
    with torch.no_grad():  # a new network predicts zero
        for parameter in network.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))
    return NoisePredictor({**card, "class_names": ["a", "b", "c"]}, network, torch.device("cpu"))


def _diffusion(options, params, split, folder):
    card = architecture(params.diffusion)
    # Adam makes whole steps of gradients that are nothing but rounding, such as those of a bias before a norm
    with mock.patch.object(torch.optim, "AdamW", lambda parameters, lr, **_: torch.optim.SGD(parameters, lr=lr)):
        weights, curve = train_diffusion(
            lambda: build_network(card, (1, 8, 8), 3), split, card=card, params=params.diffusion, classes=3, seed=5,
            device=torch.device("cpu"), folder=folder, processes=options["processes"],
        )  # fmt: skip
    return {"weights": weights, "history": curve}


def _train(options: dict[str, Any]) -> None:
    os.chdir(options.get("folder", "."))
    torch.set_num_threads(1)
    Path(f"pid-{this_process().rank}").write_text(str(os.getpid()))
    params = parse_params(changed(plain_params(), options.get("params", {})))
    made = make_labelled(3, 12, (1, 8, 8), 1)
    split = Split(torch.from_numpy(made.images), torch.from_numpy(made.labels))
    with stage("miniature", shared=True), run_folder("miniature", {}, torch.device("cpu")) as folder:
        if "survive" in options and this_process().leads:
            _die_at_checkpoint(folder, options["survive"], options["victim"])
        work = {"classifier": _classifier, "diffusion": _diffusion}[options["kind"]]
        result = work(options, params, split, folder)
        torch.save({**result, "fabric_loaded": "lightning_fabric" in sys.modules}, "result.pt")


def main() -> None:
    for training in sys.argv[1:]:
        sys.argv[1:] = [training]  # the command that the ranks it starts run
        _train(json.loads(training))


if __name__ == "__main__":
    main()
