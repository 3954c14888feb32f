"""The page: one HTML file with everything inside it, so that it opens offline and can be sent as it is."""

import base64
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pag_core.errors import ArtifactError
from pag_core.evaluation.attacks import (
    AUTOATTACK_NAMES,
    AUTOATTACK_SEQUENCES,
    FOOLBOX_NAMES,
    norm_and_radius,
    norm_label,
    setting_label,
    settings_by_norm,
)
from pag_core.figures.labels import METHODS, baseline_label, label_of
from pag_core.gradients.sources import SOURCES, known_as, source_of
from pag_core.params.yaml_text import written_yaml
from pag_core.pipeline.paths import details_path
from pag_core.report.results import FIGURES, Results
from pag_core.report.templates import rendered
from pag_core.report.verdict import MASKING_CHECKS, alarms, autoattack_settings, percent, points, verdict

WHO = ("model", "baseline")
TRAINING_NAMES = {"clean": "clean accuracy", "cross_entropy": "cross-entropy", "alignment": "alignment loss of Eq. 5"}


def render_page(results: Results) -> str:
    """The page as HTML: no script, one link (to the page of all experiments), and names from the data are escaped."""
    params = results.params
    return rendered(
        Path(__file__).with_name("page.html"),
        params=params,
        beside=baseline_label(params.baseline_method),
        method=METHODS[params.method].title,
        source=known_as(source_of(params)).title,
        model=label_of(params),
        imported=results.card.get("imported"),
        arch=results.card.get("arch", params.arch),
        class_names=results.card["class_names"],
        verdict=verdict(results),
        alarms=alarms(results),
        attack=results.autoattack["attack"],
        attacked_images=results.autoattack["images"],
        accuracies=accuracy_rows(results),
        settings=[setting_label(setting) for setting in autoattack_settings(results)],
        steps=per_attack_rows(results),
        foolbox_images=results.foolbox["images"],
        foolbox_clean={who: percent(results.foolbox[who]["clean"]) for who in WHO},
        foolbox=foolbox_tables(results.foolbox),
        masking=results.masking,
        checks=[
            (MASKING_CHECKS.get(name, (name,))[0], results.masking["verdict"][name])
            for name in _in_order(MASKING_CHECKS, set(results.masking["verdict"]))
        ],
        masking_rows=masking_rows(results.masking),
        score_images=results.pag_score["images"],
        scores=score_rows(results.pag_score),
        judged=judged_line(results.pag_score["judged"]),
        training=training_rows(results.training),
        label_effect=results.label_effect,
        figures=[
            (name, caption, base64.b64encode(results.figures[name]).decode("ascii"))
            for name, caption in FIGURES.items()
        ],
        # where it ran is not part of the experiment, and the card below names the device of training
        parameters=written_yaml(
            params.model_dump(
                mode="json", by_alias=True, exclude={"device", "processes", "threads", "checkpoint_seconds"}
            ),
            in_rows=True,
        ),
        origins=origin_rows(results),
        classifier_card=written_yaml(results.card, in_rows=True),
        store_manifest=results.manifest
        and written_yaml({key: value for key, value in results.manifest.items() if key != "files"}, in_rows=True),
    )


def accuracy_rows(results: Results) -> list[tuple[str, str, str, str]]:
    """Rows (setting, model, baseline, difference in points): clean, then AutoAttack at each norm and radius."""
    model, baseline = results.autoattack["model"], results.autoattack["baseline"]
    rows = [("clean", "Clean")] + [
        (setting, f"AutoAttack {setting_label(setting)}") for setting in autoattack_settings(results)
    ]
    return [
        (name, percent(model[key]), percent(baseline[key]), points(model[key] - baseline[key])) for key, name in rows
    ]


def per_attack_rows(results: Results) -> list[tuple[str, list[tuple[str, str]]]]:
    """Rows (attack, a pair model and baseline per setting): accuracy left after each attack of the sequence."""
    by_setting = [
        [results.autoattack[who]["per_attack"][setting] for who in WHO] for setting in autoattack_settings(results)
    ]
    version = results.params.autoattack.version
    names = _in_order(
        AUTOATTACK_SEQUENCES[version], {name for pair in by_setting for counts in pair for name in counts}
    )
    return [
        (
            AUTOATTACK_NAMES.get(name, name),
            [(_cell(model, name), _cell(baseline, name)) for model, baseline in by_setting],
        )
        for name in names
    ]


def foolbox_tables(foolbox: dict[str, Any]) -> list[dict[str, Any]]:
    """A table per norm: `norm`, `radii`, and `rows` (attack, model's cells, baseline's cells).

    Cells are the accuracy at each radius and at any distance, and the median distance (`never` if it is null: half
    of the images or more are never fooled).
    """
    tables: dict[str, dict[str, Any]] = {}
    attacks = _in_order(FOOLBOX_NAMES, set(foolbox["model"]) - {"clean"})
    for attack in attacks:
        keys = [key for key in foolbox["model"][attack] if key not in ("None", "median_distance")]
        ((norm, settings),) = settings_by_norm(keys).items()
        table = tables.setdefault(norm, {"norm": norm_label(norm), "radii": [], "rows": []})
        table["radii"] = [norm_and_radius(setting)[1] for setting in settings]
        cells = [[percent(foolbox[who][attack][key]) for key in (*settings, "None")] for who in WHO]
        for who, row in zip(WHO, cells, strict=True):
            row.append(_distance(foolbox[who][attack]["median_distance"]))
        table["rows"].append((FOOLBOX_NAMES.get(attack, attack), *cells))
    return list(tables.values())


def masking_rows(masking: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """Rows (setting, white-box APGD, transfer from the baseline, Square): accuracies of the model."""
    return [
        (
            setting_label(setting),
            percent(masking["white_box"][setting]),
            percent(masking["transfer"][setting]),
            percent(masking["square"][setting]),
        )
        for settings in settings_by_norm(list(masking["white_box"])).values()
        for setting in settings
    ]


def score_rows(scores: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Rows (target gradients, model, baseline): mean cosines."""
    model, baseline = scores["model"], scores["baseline"]
    return [(_source_title(name), _cosine(model[name]), _cosine(baseline[name])) for name in model]


def judged_line(judged: dict[str, Any]) -> str:
    """How often the judge sees the target class in adversarial examples, and how good the judge is."""
    judge = judged["judge"]
    if "clean_images" not in judged:
        raise ArtifactError(
            f"{details_path('pag_score')} is of an earlier version (no `clean_images`); run python stages/pag_score.py again"
        )
    return (
        f"An independent judge, a support vector machine on pixels, sees the target class in {percent(judged['model'])} of "
        f"{judged['images']} test images that the classifier's gradients push towards every other class "
        f"({setting_label(judged['attack'])}, {judged['steps']} steps), and in {percent(judged['baseline'])} for the "
        f"baseline; had nobody attacked them, its mistakes would make that {percent(judged['clean_images'])}. "
        f"It has learnt {judge['training_images']} training images, and is right for {percent(judge['accuracy'])} of "
        f"{judge['test_images']} test images."
    )


def training_rows(training: dict[str, Any]) -> list[tuple[str, str]]:
    """Rows (quantity, value) of metrics/training.json; mappings inside are flattened."""
    rows = []
    for part, title in (("validation", "Validation"), ("train", "Training")):
        for name, value in sorted(training[part].items(), key=lambda item: isinstance(item[1], dict)):
            label = f"{title}, {TRAINING_NAMES.get(name, name)}"
            if isinstance(value, dict):
                ordered = [setting for group in settings_by_norm(list(value)).values() for setting in group]
                rows += [(f"{label}, {setting_label(setting)}", percent(value[setting])) for setting in ordered]
            else:
                rows.append((label, percent(value) if name in ("clean", "accuracy") else f"{value:.4f}"))
    return rows


def origin_rows(results: Results) -> list[tuple[str, str]]:
    """Rows (what, value) of where the classifier came from: fingerprints, device and library versions."""
    origin = results.card["provenance"]
    return [
        ("Classifier, SHA-256", results.card["sha256"]),
        *((f"Made from: {name}, SHA-256", digest) for name, digest in origin["inputs"].items()),
        *(
            (f"Gradients made from: {name}, SHA-256", digest)
            for name, digest in (results.manifest["provenance"]["inputs"] if results.manifest else {}).items()
            if name not in origin["inputs"]
        ),
        ("Seed", str(origin["seed"])),
        ("Device of the import" if "imported" in results.card else "Device of training", origin["device"]),
        ("Versions", ", ".join(f"{name} {version}" for name, version in origin["versions"].items())),
    ]


def _source_title(name: str) -> str:
    return next((source.title for known, source in SOURCES.items() if known == name), name)


def _in_order(names: Iterable[str], found: set[str]) -> list[str]:
    known = [name for name in names if name in found]
    return known + sorted(found - set(known))


def _cell(counts: dict[str, float], name: str) -> str:
    return percent(counts[name]) if name in counts else "not run"


def _cosine(value: float) -> str:
    return f"{value:.3f}".replace("-", "\N{MINUS SIGN}")


def _distance(median: float | None) -> str:
    return "never" if median is None else f"{median:.3g}"
