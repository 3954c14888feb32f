"""What was measured of a trained classifier, checked to be of this one."""

from typing import Any

from pag_core.compute.device import described_threads
from pag_core.evaluation.autoattack import attack_name, library_seed, shard_seed
from pag_core.evaluation.subject import baseline_place
from pag_core.params.radii import radius_value
from pag_core.pipeline.artifacts import read_json
from pag_core.pipeline.origins import require_of_now
from pag_core.pipeline.paths import details_path

Plain = dict[str, Any]


def measurements(who: str, fingerprint: str, dataset: str, classes: int) -> dict[str, Plain | None]:
    """`autoattack`, `foolbox` and `masking` of the network `who` (`classifier` or `baseline`); None is not measured.

    `fingerprint` and `dataset` are those of the network and of its images. AutoAttack comes with all that another run of it
    needs. Raises ArtifactError where a result is that of another network or of other images.
    """
    attacks = {name: _attack(name, who) for name in ("autoattack", "foolbox")}
    # the masking checks are of the classifier; the baseline is only what it is compared with
    attacks["masking"] = _masking() if who == "classifier" else None
    for name, found in attacks.items():
        if found is not None:
            remedy = f"measure this one (dvc repro, or stages/{name}.py), or remove the file to export without it"
            require_of_now(
                found["place"], found["provenance"], inputs={who: fingerprint, "dataset": dataset}, remedy=remedy
            )
    attack = attacks["autoattack"]
    return {**attacks, "autoattack": attack and _repeatable(attack, classes)}


def _attack(name: str, who: str) -> Plain | None:
    if who == "baseline":
        place = baseline_place(name)
        return {"place": str(place), **read_json(place)} if place.exists() else None
    place = details_path(name)
    if not place.exists():
        return None
    details = read_json(place)
    return {"place": str(place), "result": details["model"], "provenance": details.get("provenance", {}).get("model")}


def _masking() -> Plain | None:
    place = details_path("masking")
    if not place.exists():
        return None
    details = read_json(place)
    return {"place": str(place), "result": {"verdict": details["verdict"]}, "provenance": details.get("provenance")}


def _repeatable(found: Plain, classes: int) -> Plain:
    """The accuracies and counts of AutoAttack, and the seeds, rows and settings from which another run gives the same."""
    result, record = found["result"], found["provenance"]
    params, images = record["params"]["autoattack"], record["params"]["autoattack"]["images"]
    shards = {
        f"{norm} {label}": [
            {
                "norm": norm,
                "radius": radius_value(label),
                "start": start,
                "stop": min(start + params["images_per_shard"], images),
                "seed": library_seed(shard_seed(record["seed"], norm, label, start)),
            }
            for start in range(0, images, params["images_per_shard"])
        ]
        for norm, labels in params["radii"].items()
        for label in labels
    }
    shares = {setting: {"clean": result["clean"], **result["per_attack"][setting]} for setting in shards}
    return {
        **found,
        "attack": attack_name(params["version"], classes),
        "version": params["version"],
        "images": images,
        "batch_size": params["batch_size"],
        "shards": shards,
        "counts": {
            setting: {name: round(share * images) for name, share in found.items()} for setting, found in shares.items()
        },
        "threads": described_threads(record["device"]),
    }
