"""The result in plain words, computed from the numbers: what the model gains, what it costs, and what to distrust."""

import math
from typing import Any

from scipy.stats import binomtest

from pag_core.evaluation.attacks import setting_label, settings_by_norm
from pag_core.figures.labels import CONTROLS, METHODS, baseline_label
from pag_core.gradients.sources import known_as, source_of
from pag_core.params.values import Control
from pag_core.report.results import Results

MASKING_CHECKS = {
    "reaches_zero": (
        "Accuracy under PGD falls to zero as the radius grows",
        "PGD does not bring the accuracy to zero even at the largest radius",
    ),
    "transfer_weaker": (
        "Images that fool the baseline fool the model no more than a white-box attack does",
        "images that fool the baseline fool the model more often than a white-box attack does",
    ),
    "square_weaker": (
        "The black-box Square attack is no stronger than a white-box attack",
        "the black-box Square attack is stronger than a white-box attack",
    ),
}


def percent(fraction: float) -> str:
    """A fraction as a percentage with one decimal, such as `48.3 %` (with a no-break space)."""
    return f"{100 * fraction:.1f}\N{NO-BREAK SPACE}%"


def points(difference: float) -> str:
    """A difference of fractions in signed percentage points with one decimal, such as `+45.0`; with a typeset minus."""
    rounded = round(100 * difference, 1)
    return f"{rounded:+.1f}".replace("-", "\N{MINUS SIGN}") if rounded else "0.0"


def gradients_phrase(source: str, control: Control | None) -> str:
    """What was aligned with, in words: `score-based gradients`, or as a control `score-based gradients of another class`."""
    phrase = known_as(source).phrase
    return phrase if control is None else f"{phrase} {CONTROLS[control].phrase}"


def autoattack_settings(results: Results) -> list[str]:
    """The attacked settings (`NORM RADIUS`), by norm and ascending radius."""
    grouped = settings_by_norm(list(results.autoattack["model"]["per_attack"]))
    return [setting for settings in grouped.values() for setting in settings]


def uncertainty(images: int) -> float:
    """The widest 95 % margin of an accuracy measured on `images` images, as a fraction."""
    return 1.96 * math.sqrt(0.25 / images)


def alarms(results: Results) -> list[str]:
    """Reasons to distrust the robustness shown: failed masking checks and AutoAttack's warnings; empty where none."""
    failed = [
        f"Sign of gradient masking: {MASKING_CHECKS[name][1] if name in MASKING_CHECKS else name}."
        for name, holds in results.masking["verdict"].items()
        if not holds
    ]
    warned = [
        f"AutoAttack warned about the {who}: {text}"
        for who in ("model", "baseline")
        for text in results.autoattack[who].get("warnings", [])
    ]
    return failed + warned


def verdict(results: Results) -> str:
    """One paragraph on clean and robust accuracy of model and baseline, their uncertainty, and gradient masking."""
    said = [_clean(results), _kept(results.card), _robust(results), _margin(results), _masking(results)]
    return " ".join(filter(None, said))


def _clean(results: Results) -> str:
    params = results.params
    if "imported" in results.card:
        return (
            f"The model was not trained here: it was imported from {results.card['imported']['file']} (SHA-256 "
            f"{results.card['provenance']['inputs']['checkpoint']}). Which images it was trained on is not known, and "
            f"test images may be among them. It classifies {_shares(results)}"
        )
    parts = [METHODS[params.method].phrase] if params.method != "standard" else []
    if params.source != "none" and params.lambda_ != 0:
        lambda_ = f"λ\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}{params.lambda_:g}"
        parts.append(f"{gradients_phrase(source_of(params), params.control)} ({lambda_})")
    how = f"The model, trained with {' and '.join(parts)}," if parts else "The model, trained without target gradients,"
    return f"{how} classifies {_shares(results)}"


def _kept(card: dict[str, Any]) -> str:
    return f"Its weights are those {kept_phrase(card['kept'])}." if "kept" in card else ""


def kept_phrase(kept: dict[str, Any]) -> str:
    """Of which epoch a classifier's weights are, and how it was chosen: what a card has as `kept`."""
    by = {"robust": "the mean accuracy under a short APGD", "clean": "the clean accuracy"}.get(
        kept["best_by"], f"the accuracy under a short APGD in {kept['best_by']}"
    )
    return f"after epoch {kept['epoch']} of {kept['epochs']}, the best on validation images by {by}"


def _shares(results: Results) -> str:
    attack = results.autoattack
    return (
        f"{percent(attack['model']['clean'])} of {attack['images']} unperturbed test images correctly, "
        f"the {baseline_label(results.params.baseline_method)} {percent(attack['baseline']['clean'])}."
    )


def _robust(results: Results) -> str:
    model, baseline = results.autoattack["model"], results.autoattack["baseline"]
    settings = autoattack_settings(results)
    parts = [
        f"{percent(model[setting])} against {percent(baseline[setting])} of the baseline ({setting_label(setting)})"
        for setting in settings
    ]
    listed = ", ".join(parts[:-1]) + (" and " if parts[1:] else "") + parts[-1]
    signs = {_clear_sign(model["verdicts"][setting], baseline["verdicts"][setting]) for setting in settings}
    match sorted(signs):
        case [1]:
            judged = "it is clearly more robust"
        case [-1]:
            judged = "it is clearly less robust"
        case [0]:
            judged = "that is no clear difference"
        case _:
            judged = "the settings do not agree, or not all differ clearly"
    return f"Under AutoAttack it keeps {listed}: {judged}."


def _clear_sign(model: str, baseline: str) -> int:
    """The sign of a difference that chance makes at most one time in twenty, else 0, of marks (1: it stands) by image.

    The exact sign test of the images that stand under one of the two alone: a margin from two percentages is zero where
    both are 0 or 100 %, however few the images.
    """
    pairs = list(zip(model, baseline, strict=True))
    gained, lost = pairs.count(("1", "0")), pairs.count(("0", "1"))
    if gained == lost or binomtest(gained, gained + lost).pvalue > 0.05:
        return 0
    return 1 if gained > lost else -1


def _margin(results: Results) -> str:
    images = results.autoattack["images"]
    return (
        f"On {images} images a percentage is uncertain by up to {100 * uncertainty(images):.1f} points (95 % interval)."
    )


def _masking(results: Results) -> str:
    checks = results.masking["verdict"]
    failed = [name for name, holds in checks.items() if not holds]
    if not failed:
        return f"None of the {len(checks)} checks found a sign of gradient masking."
    return f"{len(failed)} of {len(checks)} checks found a sign of gradient masking, so the robust accuracies may be too high."
