"""The card of an exported classifier in words: what it is, how to load it, what was measured, how to attack it again."""

import re
from typing import Any

from pag_core.datasets.labelled_images import listed_classes
from pag_core.evaluation.attacks import settings_by_norm
from pag_core.exchange.travelling_code import packages_needed
from pag_core.report.verdict import MASKING_CHECKS, gradients_phrase, kept_phrase, percent

Plain = dict[str, Any]
ORIGIN = ("arch", "source", "control", "lambda", "method", "baseline_method")


def model_card(
    name: str, who: str, dataset: str, card: Plain, measured: dict[str, Plain | None], *, parameters: int
) -> str:
    """Markdown for the folder `name` that holds the network `who`; `card` is its own, `measured` from `measurements`."""
    parts = [
        _title(name, who, dataset, card, parameters),
        _loading(name, dataset, card),
        _autoattack(measured["autoattack"]),
        _foolbox(measured["foolbox"]),
        _masking(who, measured["masking"]),
        _again(name, measured["autoattack"]),
        _origin(card),
    ]
    return "\n\n".join(parts) + "\n"


def _title(name: str, who: str, dataset: str, card: Plain, parameters: int) -> str:
    channels, height, width = card["image_shape"]
    classes = listed_classes([_as_text(name) for name in card["class_names"]])
    return (
        f"# {name}\n\nAn image classifier, {_how_trained(card)} (the {who} of a run of PAG: *Do Perceptually Aligned "
        f"Gradients Imply Robustness?*, Ganz, Kawar and Elad, ICML 2023).\n\n"
        f"- Architecture: `{card['arch']}`, {parameters:,} parameters, options "
        f"{', '.join(f'{key} {value}' for key, value in card['options'].items() if value is not None) or 'as by default'}\n"
        f"- Takes images float32 [B, {channels}, {height}, {width}] in [0, 1]; normalisation is inside. Returns logits\n"
        f"- Classes, in the order of the logits: {classes}; `card.json` names all\n"
        + (f"- Weights {kept_phrase(card['kept'])}\n" if "kept" in card else "")
        + f"- Data: {dataset}"
        + (f", fingerprint `{card['dataset']}`" if card["dataset"] else ", of its training unknown")
    )


def _as_text(name: str) -> str:
    """A name in Markdown, in one line: nothing in it is a mark or HTML."""
    return re.sub(r"([\\`*<>&\[\]|~]|(?<!\w)_|_(?!\w))", r"\\\1", " ".join(name.split()))


def _how_trained(card: Plain) -> str:
    if "imported" in card:
        return f"imported from {_as_text(card['imported']['file'])}, its training images unknown"
    params = card["provenance"]["params"]
    if params.get("source", "none") == "none" or params["lambda"] == 0:
        return "trained without alignment"
    # cards from before there were controls name none
    if (control := params.get("control")) is not None:
        source = params["own"]["function"] if params["source"] == "own" else params["source"]
        return f"trained as a control, with {gradients_phrase(source, control)}"
    return "trained so that its input-gradients are perceptually aligned"


def _loading(name: str, dataset: str, card: Plain) -> str:
    packages = ["torch", "safetensors", *packages_needed(card["arch"])]
    versions = card["provenance"]["versions"]
    known = ", ".join(f"{package} {versions[package]}" for package in packages if package in versions)
    text = (
        f'## Load it\n\n```python\nimport sys; sys.path.append("{name}")  # the path of this folder\n'
        f'from pag_classifier import load\nclassifier = load("{name}")\n```\n\n'
        f"Needs {', '.join(packages)} (it was trained with {known}). Nothing is unpickled. The same object is a model for "
        "Foolbox, `PyTorchModel(classifier, bounds=(0, 1))`"
    )
    if dataset == "cifar10" and card["image_shape"] == [3, 32, 32]:
        text += ', and for RobustBench, `benchmark(classifier, dataset="cifar10", threat_model="Linf", eps=8 / 255)`'
    return text + "."


def _autoattack(found: Plain | None) -> str:
    title = "## Accuracy under AutoAttack\n\n"
    if found is None:
        return title + "Not measured."
    result, record = found["result"], found["provenance"]
    steps = list(next(iter(result["per_attack"].values())))
    rows = [
        f"| {setting} | {percent(result['clean'])} | "
        + " | ".join(percent(after[step]) for step in steps)
        + f" | **{percent(result[setting])}** |"
        for setting, after in result["per_attack"].items()
    ]
    lines = [
        f"{found['images']} test images. Attack: {found['attack']}, by pyautoattack {record['versions']['pyautoattack']}, "
        f"torch {record['versions']['torch']}, on {record['device']}. Accuracy after each attack of the sequence; `robust` "
        "counts only images that are classified correctly again afterwards.",
        "",
        f"| norm and radius | clean | {' | '.join(f'after {step}' for step in steps)} | robust |",
        "|" + "---|" * (len(steps) + 3),
        *rows,
    ]
    warned = [f"\nAutoAttack warned: {text}" for text in result["warnings"]]
    return title + "\n".join(lines + warned)


def _foolbox(found: Plain | None) -> str:
    title = "## Accuracy under Foolbox\n\n"
    if found is None:
        return title + "Not measured."
    record, result = found["provenance"], found["result"]
    lines = [
        f"{record['params']['foolbox']['images']} test images, of which {percent(result['clean'])} are classified correctly. "
        f"Foolbox {record['versions']['foolbox']}; at each radius of an attack's norm, and at any distance.",
        "",
    ]
    for attack, cells in result.items():
        if attack != "clean":
            grid = settings_by_norm([key for key in cells if " " in key])
            shares = ", ".join(f"{key} {percent(cells[key])}" for settings in grid.values() for key in settings)
            lines.append(f"- {attack}: {shares}, any distance {percent(cells['None'])}")
    return title + "\n".join(lines)


def _masking(who: str, found: Plain | None) -> str:
    title = "## Masked gradients\n\n"
    if found is None:
        return title + (
            "Not measured." if who == "classifier" else "Not measured: these checks are of the classifier alone."
        )
    failed = [name for name, holds in found["result"]["verdict"].items() if not holds]
    if not failed:
        return title + f"None of the {len(found['result']['verdict'])} checks found a sign of masked gradients."
    signs = "\n".join(f"- {MASKING_CHECKS[name][1]}" for name in failed)
    return f"{title}**Warning: the accuracies under attack may be too high.** Signs of masked gradients:\n\n{signs}"


def _again(name: str, found: Plain | None) -> str:
    if found is None:
        return "## Attack it\n\nAutoAttack has not been run, so this folder holds neither images nor seeds of it."
    lines = f"""## Attack it again

`attacked_images.safetensors` holds the test images that were attacked, `measured.json` the numbers above with the seeds. This
needs pyautoattack and numpy as well, and compares the count of images after every attack with the measured one:

```
python attack.py                 # --device cuda for a GPU
```

Counts are equal where sums run in the same order: on the same kind of device, with {_threads(found)}the same batch size
and the same version of torch. Elsewhere single images near the decision boundary may differ."""
    return f"{lines}\n\n{_by_hand(name, found)}"


def _threads(found: Plain) -> str:
    return "" if found["threads"] is None else f"`torch.set_num_threads({found['threads']})`, "


def _by_hand(name: str, found: Plain) -> str:
    if found["attack"] != found["version"]:
        return "The attack assumes ten classes: `attack_shard` in `attack.py` shows what is set for fewer."
    setting, (shard, *_) = next(iter(found["shards"].items()))
    return f"""The same by hand, for the first images at {setting}:

```python
from pag_classifier import attacked_images
from pyautoattack.autoattack import AutoAttack

images, labels = attacked_images("{name}")
attack = AutoAttack(
    classifier, norm="{shard["norm"]}", eps={shard["radius"]!r}, seed={shard["seed"]}, version="{found["version"]}"
)
attack.run_standard_evaluation(images[:{shard["stop"]}], labels[:{shard["stop"]}], batch_size={found["batch_size"]})
```"""


def _origin(card: Plain) -> str:
    record = card["provenance"]
    chosen = [f"{key} {record['params'][key]}" for key in ORIGIN if record["params"].get(key) is not None]
    inputs = [f"{what} `{fingerprint}`" for what, fingerprint in record["inputs"].items()]
    return (
        f"## Where it comes from\n\n- {', '.join(chosen) or 'arch ' + card['arch']}, seed {record['seed']}\n"
        f"- Made from: {', '.join(inputs)}\n"
        f"- {'Imported' if 'imported' in card else 'Trained'} on {record['device']}\n"
        f"- Weights: SHA-256 `{card['sha256']}`; this classifier: `{card['checksum']}`\n\n"
        "`card.json` has every parameter and version. The code here is under the MIT licence (`LICENSE`)."
    )
