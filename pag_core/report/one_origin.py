"""Whether all that a page shows belongs together: networks, what was measured of them, figures and parameters."""

from typing import Any

from pag_core.figures.png_record import record_of
from pag_core.params.sections import Params
from pag_core.pipeline.artifacts import digest
from pag_core.pipeline.origins import require_of_now
from pag_core.pipeline.paths import FIGURES, classifier_path, details_path

Plain = dict[str, Any]


def require_one_origin(
    params: Params,
    cards: dict[str, Plain],
    manifest: Plain | None,
    details: dict[str, Plain],
    figures: dict[str, bytes],
) -> None:
    """Raise ArtifactError, with the command to run, for what is of other networks, data or parameters than the rest.

    `cards` are those of `classifier` and `baseline`, `manifest` that of the gradient store (None for a classifier that was not
    trained here), `details` all that was measured by kind, `figures` the PNGs by name.
    """
    dataset = cards["baseline"]["dataset"] if manifest is None else manifest["dataset"]
    trained = [("baseline", "train.py --baseline", {"dataset": dataset})]
    if manifest is not None:
        trained.insert(0, ("classifier", "train.py", {"dataset": dataset, "gradient store": manifest["checksum"]}))
    for who, command, inputs in trained:
        remedy = f"run python stages/{command} again"
        require_of_now(classifier_path(who), cards[who]["provenance"], inputs=inputs, params=params, remedy=remedy)
    networks = {who: card["checksum"] for who, card in cards.items()} | {"dataset": dataset}
    for name, part, command, inputs in _measured(networks):
        record = details[name].get("provenance", {})
        stated = (record.get(part) if part else record) or None
        remedy = f"run {command} again"
        require_of_now(details_path(name), stated, inputs=inputs, params=params, remedy=remedy)
    shown = {name: digest(details[name]) for name in ("autoattack", "masking")}
    for name, png in figures.items():
        drawn, remedy = networks | shown, "run python stages/figures.py again"
        require_of_now(FIGURES / f"{name}.png", record_of(png), inputs=drawn, params=params, remedy=remedy)


def _measured(networks: dict[str, str]) -> list[tuple[str, str, str, dict[str, str]]]:
    """For each record in the details: their name, its place in them, the command that makes it, and what it was made from."""
    of_model, of_baseline = ({what: networks[what] for what in ("dataset", who)} for who in ("classifier", "baseline"))
    found = [
        ("training", "", "python stages/validation.py", of_model),
        ("masking", "", "python stages/masking.py", networks),
        ("pag_score", "", "python stages/pag_score.py", networks),
    ]
    for name in ("autoattack", "foolbox"):
        program = f"python stages/{name}.py"
        found += [
            (name, "baseline", f"{program} --baseline, and {program}", of_baseline),
            (name, "model", program, of_model),
        ]
    return found
