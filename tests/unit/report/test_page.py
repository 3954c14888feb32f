"""The page: its numbers are those of the metrics, it needs nothing outside itself, and it says what is wrong."""

import base64
import inspect
import math
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
import torch
from matplotlib.figure import Figure

from experiments import page as overview_page
from pag_core.errors import PagError
from pag_core.evaluation.attacks import AUTOATTACK_SEQUENCES
from pag_core.figures.palette import save_figure
from pag_core.gradient_store.manifest import read_manifest
from pag_core.gradient_store.store import SmallStore, write_small_store
from pag_core.pipeline.artifacts import digest, write_json
from pag_core.pipeline.saved_network import read_card, save_network
from pag_core.report.page import foolbox_tables, per_attack_rows, render_page
from pag_core.report.results import FIGURES, Results, read_results
from pag_core.report.verdict import alarms, percent, points, verdict

ATTACK = {"median_distance": 1.5, "None": 0.0}
LABEL_EFFECT = {
    "held_out_error_conditional": 0.06819,
    "held_out_error_unconditional": 0.10793,
    "held_out_error_wrong_class": 0.20069,
    "standard_error_over_images": 0.00431,
    "standard_error_over_classes": 0.01207,
    "draw_cosine": 0.725,
    "relative_difference": 0.202,
    "images": 194,
    "timestep": 300,
}


def autoattack(clean, robust, warnings=(), images=200):
    """The first images stand, where fewer stand than of another these among them."""
    stands = round(robust * images)
    return {
        "clean": clean,
        "verdicts": {"L2 0.75": "1" * stands + "0" * (images - stands)},
        "L2 0.75": robust,
        "per_attack": {"L2 0.75": {"apgd-ce": robust + 0.015, "apgd-t": robust, "fab-t": robust, "square": robust}},
        "warnings": list(warnings),
    }


def foolbox(accuracy, median):
    return {
        "clean": 0.98,
        "EADAttack": {"L1 1": accuracy, "L1 2": 0.1, **ATTACK},
        "L0FMNAttack": {"L0 1": accuracy, "L0 10": 0.0, "L0 5": 0.333, "None": 0.0, "median_distance": median},
        "GaussianBlurAttack": {"L2 0.5": accuracy, "L2 8/255": 0.9, **ATTACK},
    }


@pytest.fixture
def results(make_params):
    names = ["plain", '<b>bold</b> & "quoted"']
    origin = {
        "params": {},
        "seed": 3407,
        "inputs": {"dataset": "d" * 64, "gradient store": "e" * 64},
        "versions": {"torch": "2.15.0"},
        "device": "Some CPU, 1 thread",
    }
    settings = {"L2 0.75": 0.5}
    return Results(
        params=make_params({"lambda": 3.0}),
        autoattack={
            "attack": "standard",
            "images": 200,
            "model": autoattack(0.965, 0.4834),
            "baseline": autoattack(0.985, 0.0312),
        },
        foolbox={"images": 50, "model": foolbox(0.612, None), "baseline": foolbox(0.1, 2.0)},
        masking={
            "images": 100,
            "pgd_steps": 20,
            "square_queries": 1000,
            "curve": {},
            "white_box": settings,
            "transfer": {"L2 0.75": 0.777},
            "square": {"L2 0.75": 0.666},
            "verdict": {"reaches_zero": True, "square_weaker": True, "transfer_weaker": True},
        },
        pag_score={
            "images": 200,
            "model": {"class means": 0.6704, "sbg": 0.8187},
            "baseline": {"class means": 0.3432, "sbg": -0.0441},
            "judged": {
                "images": 20,
                "attack": "L2 3.0",
                "steps": 60,
                "judge": {"accuracy": 0.986, "training_images": 1101, "test_images": 504},
                "model": 0.8111,
                "baseline": 0.1222,
                "clean_images": 0.0222,
            },
        },
        training={
            "train": {"accuracy": 0.957, "alignment": 1.6586, "cross_entropy": 0.68806},
            "validation": {"clean": 0.974, "PGD-20 (fast proxy)": {"Linf 0.15": 0.593, "L2 0.75": 0.577}},
        },
        label_effect=LABEL_EFFECT,
        card={"class_names": names, "sha256": "c" * 64, "provenance": origin},
        manifest={
            "source": "sbg",
            "kind": "dense",
            "provenance": {"inputs": {"diffusion model": "f" * 64}},
            "files": {"x": 1},
        },
        figures={name: f"png of {name}".encode() for name in FIGURES},
    )


class Page(HTMLParser):
    """The cells of the page by table, its references, and the tags that were opened and closed."""

    def __init__(self, html):
        super().__init__()
        self.references, self.rows, self.open, self.alarm = [], [], [], []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.references += [value for name, value in attributes if name in ("src", "href", "srcset", "action")]
        assert not any(name.startswith("on") for name, _ in attributes)
        if tag not in ("meta", "img", "br", "link"):
            self.open.append((tag, dict(attributes)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        tags = [tag for tag, _ in self.open]
        if "style" in tags:
            return
        self.text += data
        if "td" in tags or "th" in tags:
            self.rows[-1][-1] += data.replace("\N{NO-BREAK SPACE}", " ")
        if any(attributes.get("role") == "alert" for _, attributes in self.open):
            self.alarm.append(data.strip())


def with_verdict(results, **changes):
    return replace(results, masking={**results.masking, "verdict": {**results.masking["verdict"], **changes}})


def with_warning(results, who, text):
    warned = {**results.autoattack[who], "warnings": [text]}
    return replace(results, autoattack={**results.autoattack, who: warned})


def test_the_numbers(results):
    page = Page(render_page(results))
    assert page.open == []
    for row in (
        ["Clean", "96.5 %", "98.5 %", "\N{MINUS SIGN}2.0"],
        ["AutoAttack L₂, radius 0.75", "48.3 %", "3.1 %", "+45.2"],
        ["APGD (cross-entropy)", "49.8 %", "4.6 %"],
        ["Square (black-box)", "48.3 %", "3.1 %"],
        ["L₂, radius 0.75", "50.0 %", "77.7 %", "66.6 %"],
        ["FMN, L₀", "model", "61.2 %", "33.3 %", "0.0 %", "0.0 %", "never"],
        ["baseline", "10.0 %", "33.3 %", "0.0 %", "0.0 %", "2"],
        ["class means", "0.670", "0.343"],
        ["score-based (SBG)", "0.819", "\N{MINUS SIGN}0.044"],
        ["Validation, clean accuracy", "97.4 %"],
        ["Validation, PGD-20 (fast proxy), L∞, radius 0.15", "59.3 %"],
        ["Training, cross-entropy", "0.6881"],
        ["Error with the right label", "0.06819"],
        [
            "Wrong less right label, and its standard errors over images and over classes",
            "0.13250, 0.00431, 0.01207",
        ],
        ["Device of training", "Some CPU, 1 thread"],
        ["Made from: gradient store, SHA-256", "e" * 64],
        ["Gradients made from: diffusion model, SHA-256", "f" * 64],
    ):
        assert row in page.rows, row
    assert "does not state the radii" in page.text
    said = page.text.replace("\N{NO-BREAK SPACE}", " ")
    assert "sees the target class in 81.1 % of 20 test images" in said and "would make that 2.2 %." in said
    for fact in ("small_resnet", "3407", "score-based (SBG)", "targeted_steps: 60", "timestep: 200"):
        assert fact in page.text


def test_the_page_needs_nothing_outside_itself(results):
    html = render_page(results)
    page = Page(html)
    # but for the page of all experiments beside it, to which it links
    overview, *pictures = page.references
    assert overview == inspect.signature(overview_page.main).parameters["output"].default.name
    assert [base64.b64decode(picture.split(",")[1]) for picture in pictures] == [
        f"png of {name}".encode() for name in FIGURES
    ]
    assert all(picture.startswith("data:image/png;base64,") for picture in pictures)
    assert not re.search(r"https?://|<script|<link|<iframe|@import|url\(", html)
    assert "Figure 2" in html and "Figure 7" in html and html == render_page(results)


def test_names_from_the_data_are_escaped(results):
    html = render_page(with_warning(results, "model", "<script>alert(1)</script>"))
    assert "<b>bold" not in html and "&lt;b&gt;bold&lt;/b&gt; &amp;" in html
    assert "<script" not in html and "&lt;script&gt;" in html


@pytest.mark.parametrize("check", ["reaches_zero", "square_weaker", "transfer_weaker"])
def test_a_failed_masking_check_raises_the_alarm(results, check):
    assert Page(render_page(results)).alarm == []
    failed = with_verdict(results, **{check: False})
    page = Page(render_page(failed))
    assert len(alarms(failed)) == 1 and alarms(failed)[0] in page.alarm
    assert "1 of 3 checks found a sign" in page.text and "this does not hold" in page.text


@pytest.mark.parametrize("who", ["model", "baseline"])
def test_a_warning_of_autoattack_raises_the_alarm(results, who):
    page = Page(render_page(with_warning(results, who, "L2 0.75: zero gradients")))
    assert f"AutoAttack warned about the {who}: L2 0.75: zero gradients" in page.alarm


def test_the_verdict_follows_the_numbers(results):
    text = verdict(results).replace("\N{NO-BREAK SPACE}", " ")
    assert "score-based gradients (λ = 3), classifies 96.5 % of 200" in text and "baseline 98.5 %" in text
    assert "48.3 % against 3.1 % of the baseline (L₂, radius 0.75): it is clearly more robust" in text
    assert "up to 6.9 points" in text and "None of the 3 checks" in text
    exchanged = {"model": results.autoattack["baseline"], "baseline": results.autoattack["model"]}
    assert "clearly less robust" in verdict(replace(results, autoattack={**results.autoattack, **exchanged}))
    few = {
        **results.autoattack,
        "images": 20,
        "model": autoattack(0.95, 0.6, images=20),
        "baseline": autoattack(0.95, 0.4, images=20),
    }
    assert "no clear difference" in verdict(replace(results, autoattack=few))


def judged_of(results, model, baseline):
    """The verdict where these images, a 1 or a 0 for each, stand."""
    marks = {"model": model, "baseline": baseline}
    parts = {
        who: autoattack(1.0, text.count("1") / len(text)) | {"verdicts": {"L2 0.75": text}}
        for who, text in marks.items()
    }
    return verdict(replace(results, autoattack={**results.autoattack, "images": len(model), **parts}))


@pytest.mark.parametrize(
    ("gained", "lost", "alike", "words"),
    [
        (2, 0, 0, "no clear difference"),  # two of two images against none: without a spread there was no margin
        (
            5,
            0,
            0,
            "no clear difference",
        ),  # of six changes in one direction chance makes three in a hundred, of five six
        (6, 0, 0, "clearly more robust"),
        (0, 6, 50, "clearly less robust"),
        (10, 0, 190, "clearly more robust"),  # image by image, where two percentages of 200 images could not tell
        (30, 21, 100, "no clear difference"),
        (0, 0, 20, "no clear difference"),
    ],
)
def test_a_difference_is_clear_if_chance_seldom_makes_it(results, gained, lost, alike, words):
    """By the exact sign test of the images on which the two differ, written out."""
    text = judged_of(
        results, "1" * gained + "0" * lost + "10" * (alike // 2), "0" * gained + "1" * lost + "10" * (alike // 2)
    )
    assert words in text
    tail = sum(math.comb(gained + lost, k) for k in range(min(gained, lost) + 1)) / 2 ** (gained + lost)
    assert (2 * tail <= 0.05) == ("no clear" not in words)


@pytest.mark.parametrize(
    ("control", "words"),
    [
        (None, "trained with score-based gradients (λ = 3)"),
        ("shuffled_pixels", "trained with score-based gradients in shuffled pixels (λ = 3)"),
        ("other_class", "trained with score-based gradients of another class (λ = 3)"),
    ],
)
def test_the_verdict_names_a_control(results, make_params, control, words):
    found = replace(results, params=make_params({"lambda": 3.0, "control": control}))
    assert f"The model, {words}, classifies" in verdict(found).replace("\N{NO-BREAK SPACE}", " ")


def test_a_vanilla_experiment_has_a_page(results, make_params):
    vanilla = replace(results, params=make_params({"source": "none"}), label_effect=None)
    page = Page(render_page(vanilla))
    assert "trained without target gradients" in page.text and "Error with the right label" not in str(page.rows)


def test_an_imported_model_has_no_training_to_show(results, make_params):
    """Its file with the SHA-256 that anybody can take, and what is not known of it; no method, source, lambda or store."""
    card = {**results.card, "arch": "vit", "imported": {"file": "theirs.pt"}}
    card["provenance"] = {**card["provenance"], "inputs": {"checkpoint": "5" * 64, "dataset": "d" * 64}}
    training = {"train": {}, "validation": results.training["validation"]}
    params = make_params({"classifier_checkpoint": "data/pretrained_classifier", "source": "sbg", "lambda": 3.0})
    text = render_page(replace(results, params=params, card=card, manifest=None, label_effect=None, training=training))
    page = Page(text)
    assert f"imported from theirs.pt (SHA-256 {'5' * 64})" in page.text and "test images may be among them" in page.text
    assert "model (imported)" in page.text and "architecture vit, of the baseline small_resnet" in page.text
    for word in (
        "λ",
        "source of target gradients",
        "Manifest of the gradient store",
        "Training, ",
        "Device of training",
    ):
        assert word not in page.text, word
    assert not page.open


def test_foolbox_tables_are_ordered_by_norm_and_radius(results):
    tables = foolbox_tables(results.foolbox)
    assert [(table["norm"], table["radii"]) for table in tables] == [
        ("L₂", ["8/255", "0.5"]),
        ("L₀", ["1", "5", "10"]),
        ("L₁", ["1", "2"]),
    ]


@pytest.mark.parametrize(("version", "sequence"), AUTOATTACK_SEQUENCES.items())
def test_attacks_stand_in_the_order_in_which_they_ran(results, make_params, version, sequence):
    after = {name: 0.9 - 0.1 * number for number, name in enumerate(sequence)}
    for who in ("model", "baseline"):
        results.autoattack[who]["per_attack"] = {"L2 0.75": dict(sorted(after.items()))}
    results = replace(results, params=make_params({"autoattack.version": version}))
    rows = per_attack_rows(results)
    assert [cells for _, cells in rows] == [[(percent(share), percent(share))] for share in after.values()]


def test_percent_and_points():
    assert percent(0.4834) == "48.3\N{NO-BREAK SPACE}%"
    assert [points(value) for value in (0.452, -0.02, 0.0, -0.0001)] == ["+45.2", "\N{MINUS SIGN}2.0", "0.0", "0.0"]


WHO = {"model": "classifier", "baseline": "baseline"}
CHOSEN = {"source": "none", "lambda": 3.0, "train.epochs": 20, "autoattack.version": "standard"}


def trained(root, who, params, inputs, weight=0.0):
    """A network's folder as training leaves it; its fingerprint."""
    params = {"lambda": params.lambda_, "train": params.section("train")["train"]} if who == "classifier" else {}
    record = {"params": params, "seed": 1, "inputs": inputs, "versions": {}, "device": "Some CPU"}
    card = {"kind": "classifier", "class_names": ["a", "b"], "provenance": record}
    save_network(root / "data" / who, {"weight": torch.tensor(weight)}, card)
    return read_card(root / "data" / who, "classifier")["checksum"]


@pytest.fixture
def folder(results, dataset, make_params, tmp_path):
    """A folder with the results of an experiment, all of the same networks; `folder(**other)` with some of others.

    Each of `other` is `dataset`, `classifier` or `baseline`, by the part of the results that is made from it.
    """
    params = make_params(CHOSEN)
    store = tmp_path / "data/gradients/none.zarr"
    origin = {"params": {}, "seed": 1, "inputs": {"dataset": dataset.fingerprint}, "versions": {}, "device": "Some CPU"}
    write_small_store(store, dataset, "none", SmallStore("none"), origin)
    of_data = {"dataset": dataset.fingerprint}
    networks = of_data | {
        "classifier": trained(
            tmp_path, "classifier", params, of_data | {"gradient store": read_manifest(store)["checksum"]}
        ),
        "baseline": trained(tmp_path, "baseline", params, of_data),
    }

    def write(**other):
        def record(part, *names):
            inputs = {name: networks[name] for name in ("dataset", *names)}
            changed = other.get(part, {})
            values = {"autoattack": params.section("autoattack")["autoattack"]} if part.startswith("autoattack") else {}
            return {"params": values | changed.get("params", {}), "inputs": inputs | changed.get("inputs", {})}

        provenances = {
            name: {who: record(f"{name} {who}", network) for who, network in WHO.items()}
            for name in ("autoattack", "foolbox")
        }
        provenances |= {name: record(name, "classifier", "baseline") for name in ("masking", "pag_score")}
        provenances |= {"training": record("training", "classifier")}
        details = {name: {**getattr(results, name), "provenance": found} for name, found in provenances.items()}
        for name, content in details.items():
            write_json(tmp_path / f"metrics/details/{name}.json", content)
        drawn = record("figures", "classifier", "baseline")
        drawn["inputs"] |= {name: digest(details[name]) for name in ("masking", "autoattack")}
        drawn["inputs"] |= other.get("figures", {}).get("inputs", {})
        for name in FIGURES:
            (tmp_path / "figures").mkdir(exist_ok=True)
            save_figure(Figure(figsize=(1, 1)), tmp_path / "figures" / f"{name}.png", drawn)
        return params

    return write


def test_results_are_read_from_the_folder(results, folder, tmp_path):
    params = folder()
    found = read_results(params, tmp_path)
    assert {key: found.autoattack[key] for key in results.autoattack} == results.autoattack
    assert found.figures == {name: (tmp_path / f"figures/{name}.png").read_bytes() for name in FIGURES}
    assert found.label_effect is None and "96.5" in render_page(found)
    (tmp_path / "metrics/details/masking.json").write_text("{", encoding="utf-8")
    with pytest.raises(PagError, match=r"masking\.json is damaged"):
        read_results(params, tmp_path)
    (tmp_path / "metrics/details/masking.json").unlink()
    with pytest.raises(PagError, match=r"masking\.json does not exist"):
        read_results(params, tmp_path)


@pytest.mark.parametrize(
    ("part", "network", "command"),
    [
        ("autoattack model", "classifier", "autoattack.py again"),
        ("autoattack baseline", "baseline", "autoattack.py --baseline, and python stages/autoattack.py again"),
        ("foolbox model", "dataset", "foolbox.py again"),
        ("foolbox baseline", "baseline", "foolbox.py --baseline, and python stages/foolbox.py again"),
        ("masking", "classifier", "masking.py again"),
        ("masking", "baseline", "masking.py again"),
        ("pag_score", "classifier", "pag_score.py again"),
        ("training", "classifier", "validation.py again"),
        ("figures", "classifier", "figures.py again"),
        ("figures", "baseline", "figures.py again"),
        ("figures", "masking", "figures.py again"),
        ("figures", "autoattack", "figures.py again"),
    ],
)
def test_what_is_of_another_network_or_result_is_refused_with_the_command(folder, tmp_path, part, network, command):
    params = folder(**{part: {"inputs": {network: "9" * 64}}})
    with pytest.raises(PagError, match=rf"another {network} \(fingerprint 9{{12}}\).*; run python stages/{command}$"):
        read_results(params, tmp_path)


def test_networks_that_were_trained_anew_after_the_attacks_are_refused(folder, dataset, tmp_path):
    params = folder()
    manifest = read_manifest(tmp_path / "data/gradients/none.zarr")
    inputs = {"dataset": dataset.fingerprint, "gradient store": manifest["checksum"]}
    trained(tmp_path, "classifier", params, inputs, weight=1.0)
    with pytest.raises(
        PagError, match=r"training.json was made with another classifier .*run python stages/validation.py"
    ):
        read_results(params, tmp_path)
    trained(tmp_path, "classifier", params, inputs)
    read_results(params, tmp_path)
    trained(tmp_path, "baseline", params, {"dataset": "7" * 64})
    with pytest.raises(
        PagError, match=r"data/baseline was .*another dataset .*run python stages/train.py --baseline again"
    ):
        read_results(params, tmp_path)
    trained(tmp_path, "classifier", params, {**inputs, "gradient store": "7" * 64})
    with pytest.raises(
        PagError, match=r"data/classifier was .*another gradient store .*run python stages/train.py again"
    ):
        read_results(params, tmp_path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"lambda": 1.0},
            r"data/classifier was made with lambda 3.0, and params.yaml has 1.0; run python stages/train.py",
        ),
        ({"train.epochs": 3}, r"data/classifier was made with train.epochs 20, and params.yaml has 3"),
        ({"autoattack.version": "plus"}, r"autoattack.json was made with autoattack.version standard, and .* has plus"),
    ],
)
def test_a_page_is_not_captioned_with_other_parameters(folder, make_params, tmp_path, changes, words):
    folder()
    with pytest.raises(PagError, match=words):
        read_results(make_params({**CHOSEN, **changes}), tmp_path)


@pytest.mark.parametrize("content", [b"", b"not a PNG"])
def test_a_figure_that_does_not_say_what_it_is_of_is_refused(folder, tmp_path, content):
    params = folder()
    (tmp_path / "figures/targeted_pgd.png").write_bytes(content)
    with pytest.raises(PagError, match=r"targeted_pgd.png was .*\(fingerprint unknown\).*figures.py again"):
        read_results(params, tmp_path)
