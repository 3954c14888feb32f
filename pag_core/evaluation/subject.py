"""What every attacking stage does around its attack: open networks and test images, keep the results."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import nn

from pag_core.classifiers.building import KIND, load_classifier
from pag_core.compute.processes import process_count
from pag_core.datasets.counts import count
from pag_core.datasets.prepared import read_dataset
from pag_core.errors import ArtifactError
from pag_core.pipeline.artifacts import read_json, write_json
from pag_core.pipeline.checkpoint import RunFolder, run_folder
from pag_core.pipeline.origins import require_of_now
from pag_core.pipeline.paths import DATA, classifier_path, dataset_path, measured_path, write_metrics
from pag_core.pipeline.saved_network import read_card
from pag_core.pipeline.stage import OpenStage

BaselineOption = Annotated[bool, typer.Option("--baseline", help="Attack the vanilla baseline.")]


@dataclass(frozen=True)
class Subject:
    """Networks in eval mode by name, and the images that they are attacked on, with where finished work is kept.

    `images` float32 [B, C, H, W] in [0, 1], `labels` int64 [B]. `processes` share the work in `folder`. `provenance` goes
    with the results; it leaves out the number of processes: that of their threads, which it has, is what changes results.
    """

    networks: dict[str, nn.Module]
    images: torch.Tensor
    labels: torch.Tensor
    classes: int
    folder: RunFolder
    processes: int
    provenance: dict[str, Any]


@contextlib.contextmanager
def open_subject(opened: OpenStage, name: str, who: tuple[str, ...]) -> Iterator[Subject]:
    """The networks `who` (`classifier`, `baseline`) and as many test images for the attack `name` as its section says.

    Raises ParamsError if there are fewer images, ArtifactError before an attack on the classifier unless the baseline that
    there is now was attacked in the same way.
    """
    dataset = read_dataset(dataset_path(opened.params.dataset))
    params = count(opened, dataset)
    test = dataset.splits["test"]
    rows = test.first(getattr(params, name).images, f"{name}.images")
    loaded = {
        network: load_classifier(measured_path(network, params.classifier_checkpoint), dataset, opened.device)
        for network in who
    }
    inputs = {"dataset": dataset.fingerprint} | {network: saved.fingerprint for network, (_, saved) in loaded.items()}
    processes = process_count(params.processes, opened.device)
    opened.divide_cores(processes)
    record = opened.provenance(inputs=inputs)
    if who == ("classifier",):
        # before an attack of hours, not after it
        _of_baseline(name, record)
    shared = opened.provenance(inputs=inputs, processes=processes)
    networks: dict[str, nn.Module] = {network: module for network, (module, _) in loaded.items()}
    with run_folder("_".join((name, *who)), shared, opened.device) as folder:
        images, labels = test.pixels(rows).to(opened.device), test.labels[rows].to(opened.device)
        yield Subject(networks, images, labels, dataset.classes, folder, processes, record)


def baseline_place(name: str) -> Path:
    """What the attack `name` on the baseline found, until the metrics of the same attack on the classifier take it in."""
    return DATA / "attacks" / f"baseline_{name}.json"


def keep_result(
    name: str,
    who: str,
    found: dict[str, Any],
    *,
    provenance: dict[str, Any],
    head: dict[str, Any],
    headline: Callable[[dict[str, Any]], dict[str, Any]],
) -> None:
    """Keep the results of an attack on the baseline; for one on the classifier write the metrics, both results in them.

    The details also hold the `provenance` of both, which says whose results they are. `head` describes the attack itself.
    `headline` picks what experiments are compared by from everything: `head`, `model` and `baseline`. Raises ArtifactError if
    the attacked baseline is not the one that there is now, or was attacked on other images or in another way.
    """
    place = baseline_place(name)
    if who == "baseline":
        write_json(place, {"result": found, "provenance": provenance})
        return
    baseline = _of_baseline(name, provenance)
    measured = {**head, "model": found, "baseline": baseline["result"]}
    records = {"model": provenance, "baseline": baseline["provenance"]}
    write_metrics(name, {**measured, "provenance": records}, headline(measured))


def _of_baseline(name: str, provenance: dict[str, Any]) -> dict[str, Any]:
    """What the same attack found about the baseline of now, on the same images; raises ArtifactError where there is no such."""
    place = baseline_place(name)
    baseline = read_json(place)
    again = f"run python stages/{name}.py --baseline again"
    for what in ("params", "seed", "dataset"):
        theirs, ours = ({**record, **record["inputs"]}[what] for record in (baseline["provenance"], provenance))
        if theirs != ours:
            raise ArtifactError(
                f"{place} is of an attack with {what} {theirs}, that on the classifier has {ours}; {again}"
            )
    present = {"baseline": read_card(classifier_path("baseline"), KIND)["checksum"]}
    require_of_now(place, baseline["provenance"], inputs=present, remedy=again)
    return baseline
