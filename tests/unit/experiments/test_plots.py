"""Figures over the runs of experiments, on made-up results: marks, ranks and lines by another way, gaps and refusals."""

from typing import get_args

import matplotlib as mpl
import numpy as np
import pytest
import torch
import typer
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex

from experiments import figure
from experiments.description.experiment import read_experiment
from experiments.figures.models import Finished, different_models, models_of
from experiments.figures.plots import draw_correlation, draw_curves
from pag_core.figures.correlation import ScoredModel, correlations, rank_correlation
from pag_core.figures.labels import METHODS
from pag_core.figures.model_marks import Kind, legend_marks
from pag_core.figures.palette import save_figure
from pag_core.figures.targeted_blocks import targeted_blocks
from pag_core.params.values import MethodName, Source
from pag_core.params.yaml_text import written_yaml
from pag_core.pipeline.artifacts import digest
from tests.fixtures.samples import ROOT
from tests.unit.figures.test_figures import overlapping_texts, pictures, texts

DESCRIPTION = {
    "stages": ["autoattack", "masking", "pag_score"],
    "seeds": [1, 2, 3],
    "params": {"pag_score": {"reference": "sbg"}},
    "sizes": {"full": {}},
    "classifiers": {
        "cm": {"source": "cm"},
        "weak": {"source": "cm", "lambda": 0.1},
        "sbg": {"source": "sbg"},
        "at": {"source": "none", "method": "at", "at": {"norm": "L2"}},
        "trades_sbg": {"source": "sbg", "method": "trades"},
        "vit": {"arch": "vit", "source": "cm", "classifier": {"patch_size": 2}},
    },
}
TRAINED = ("seed", "arch", "source", "lambda", "method", "at", "classifier", "train")
MODELS = 3 * 8  # of three seeds: six classifiers, and the vanilla ones of two architectures


def described(tmp_path, name="made_up", **changes):
    file = tmp_path / f"{name}.yaml"
    file.write_text(written_yaml({**DESCRIPTION, **changes}), encoding="utf-8")
    return read_experiment(file, "full", [])


def made_up(experiment, without=()):
    """Results with numbers that differ from run to run; the vanilla ones of a seed are the same in all its runs."""
    measured = {}
    for number, (run, plain) in enumerate(experiment.params.items()):
        if run in without:
            continue
        random, beside = np.random.default_rng(number), np.random.default_rng(1000 + plain["seed"])
        of = {"model": random, "baseline": beside}
        scores = {who: {"class means": draw.uniform(), "sbg": draw.uniform()} for who, draw in of.items()}
        seen = {who: draw.uniform() for who, draw in of.items()}
        # what a network was trained with; names and the stages that are wanted are none of it
        networks = {
            "model": {"classifier": digest({key: plain[key] for key in TRAINED if key in plain})},
            "baseline": {"baseline": f"{plain['seed']} {plain['arch']}"},
        }
        measured[run] = {
            "details/autoattack": {"provenance": {who: {"inputs": found} for who, found in networks.items()}},
            "autoattack": {
                "images": 200,
                **{
                    who: {"Linf 0.15": draw.uniform(), "L2 0.75": draw.uniform(), "clean": 0.9}
                    for who, draw in of.items()
                },
            },
            "details/masking": {
                "images": 40,
                "pgd_steps": 20,
                "clean": {who: draw.uniform() for who, draw in of.items()},
                "curve": {
                    who: {"L2 10": draw.uniform(), "L2 2": draw.uniform(), "Linf 0.1": 0.1} for who, draw in of.items()
                },
            },
            "details/pag_score": {
                "images": 100,
                **scores,
                "judged": {
                    "images": 20,
                    "attack": "L2 3.0",
                    "steps": 60,
                    "judge": {"accuracy": 0.98 + 0.01 * (plain["seed"] == 2), "training_images": 1, "test_images": 1},
                    **seen,
                },
            },
        }
    return Finished(experiment, measured, lambda run, path: None)


def marks(axes):
    return sorted((float(line.get_xdata()[0]), float(line.get_ydata()[0])) for line in axes.get_lines())


def test_every_model_is_a_mark_once(tmp_path):
    finished = made_up(described(tmp_path))
    figure = draw_correlation([finished], None).figure
    expected = {0: [], 1: []}
    vanilla = set()
    for run, found in finished.measured.items():
        for who in ("model", "baseline"):
            beside = (finished.experiment.params[run]["seed"], finished.experiment.params[run]["arch"])
            if who == "baseline" and beside in vanilla:
                continue
            vanilla |= {beside} if who == "baseline" else set()
            robust, score = found["autoattack"][who]["L2 0.75"], found["details/pag_score"]
            expected[0].append((score[who]["sbg"], robust))
            expected[1].append((score["judged"][who], robust))
    for panel, axes in enumerate(figure.axes):
        assert len(axes.get_lines()) == MODELS
        np.testing.assert_allclose(marks(axes), sorted(expected[panel]))
    assert "L₂ 0.75" in figure.axes[0].get_ylabel() and "score-based (SBG)" in figure.axes[0].get_xlabel()


def test_two_experiments_with_rows_in_common(tmp_path):
    """The lambda of one row differs; vanilla and all others are the same networks."""
    one = described(tmp_path)
    other = described(
        tmp_path, "other", classifiers={**DESCRIPTION["classifiers"], "weak": {"source": "cm", "lambda": 9}}
    )
    models = different_models([made_up(one), made_up(other)])
    assert len(models) == MODELS + 3 and sum(model.baseline for model in models) == 6
    assert {model.params.lambda_ for model in models if not model.baseline and model.kind.source == "cm"} == {
        1.5,
        0.1,
        9,
    }


def test_gaps_and_captions(tmp_path):
    experiment = described(tmp_path)
    finished = made_up(experiment, without=("sbg-seed2", "at-seed1"))
    assert finished.missing == ["at-seed1", "sbg-seed2"]
    drawn = draw_correlation([finished], "Linf 0.15")
    assert all(len(axes.get_lines()) == MODELS - 2 for axes in drawn.figure.axes)
    caption = " ".join(drawn.caption)
    for words in ("digits; small_resnet, vit; 22 models; seeds 1, 2, 3.", "Linf 0.15", "AutoAttack: 200 test images",
                  "score-based (SBG): 100 test images", "(L2 3.0, 60 steps)", "98.0 to 99.0 %", "(22 models)",
                  "(15 models)"):  # fmt: skip
        assert words in caption, caption
    with pytest.raises(typer.BadParameter, match=r"not attacked at L2 9; its settings are L2 0\.75, Linf 0\.15"):
        draw_correlation([finished], "L2 9")
    for draw in (lambda runs: draw_correlation(runs, None), draw_curves):
        with pytest.raises(typer.BadParameter, match="none of the runs has finished"):
            draw([made_up(experiment, without=experiment.params)])


@pytest.mark.parametrize("place", ["figures", "figures/deeper"])
def test_the_folder_of_the_stage_figures_is_refused(place):
    """DVC removes what its stage did not write there."""
    with pytest.raises(typer.BadParameter, match=r"belongs to the stage figures.*name another folder"):
        figure.main("correlation", [ROOT / "experiments/digits_rivals.yaml"], output=ROOT / place)


def test_without_a_common_reference_the_cosine_is_with_class_means(tmp_path):
    plain = made_up(described(tmp_path, params={}))
    drawn = draw_correlation([plain], None)
    assert drawn.figure.axes[0].get_xlabel().endswith("class means")
    first = next(iter(plain.measured.values()))
    assert first["details/pag_score"]["model"]["class means"] in {x for x, _ in marks(drawn.figure.axes[0])}


def scored(kind, values):
    return [ScoredModel(kind, cosine, judged, robust) for cosine, judged, robust in values]


def test_rank_correlation_by_its_closed_form():
    """1 - 6 sum d^2 / (n (n^2 - 1)) without ties; with ties, Pearson's of the mean ranks."""
    vanilla, sbg = Kind("none", "standard", "", "a"), Kind("sbg", "at", "L2", "a")
    models = scored(vanilla, [(0.1, 0.5, 0.0), (0.3, 0.5, 0.2), (0.2, 0.6, 0.4)]) + scored(
        sbg, [(0.9, 0.7, 0.3), (0.5, 0.6, 0.9)]
    )
    differences = np.array([1, 3, 2, 5, 4]) - np.array([1, 2, 4, 3, 5])
    assert rank_correlation(models, "cosine") == pytest.approx(1 - 6 * np.sum(differences**2) / (5 * 24))
    ranks = np.corrcoef([1.5, 1.5, 3.5, 5, 3.5], [1, 2, 4, 3, 5])[0, 1]
    assert rank_correlation(models, "judged") == pytest.approx(ranks)
    assert correlations(models, "cosine")[1] == "rho 0.50, without SBG, AT and TRADES (3 models)"
    assert rank_correlation(models[:2], "cosine") is None
    assert rank_correlation(scored(vanilla, [(0.1, 1.0, 0.0), (0.3, 1.0, 0.2), (0.2, 1.0, 0.4)]), "judged") is None


def test_a_colour_for_each_source_and_a_marker_for_each_method():
    methods = [(method, norm) for method in get_args(MethodName) for norm in METHODS[method].markers]
    sources = get_args(Source)
    kinds = [Kind(source, method, norm, "vgg16") for source in sources for method, norm in methods]
    marks = legend_marks(kinds)
    assert len({to_hex(mark.get_color()) for mark in marks}) == len(sources)
    assert len({mark.get_marker() for mark in marks}) == len(methods)
    assert len({mark.get_label() for mark in marks}) == len(kinds)
    assert [Kind("none", "standard", "", "vit").label, Kind("sbg", "at", "Linf", "vit").label] == [
        "vanilla",
        "AT L∞ + SBG",
    ]
    two = legend_marks([Kind("cm", "standard", "", "vit"), Kind("cm", "standard", "", "vgg16")])
    assert [mark.get_label() for mark in two] == ["CM, vit", "CM, vgg16"]
    assert len({mark.get_fillstyle() for mark in two}) == 2


def test_radii_of_adversarial_training_are_told_apart_where_they_differ():
    vanilla, small, large = (
        Kind("none", "standard", "", "vit"),
        *(Kind("none", "at", "L2", "vit", None, r) for r in ("0.25", "0.5")),
    )
    other, joined = Kind("none", "at", "Linf", "vit", None, "8/255"), Kind("sbg", "at", "L2", "vit", None, "0.25")
    marks = legend_marks([vanilla, small, large, other, joined, small])
    assert [mark.get_label() for mark in marks] == ["vanilla", "AT L₂ 0.25", "AT L₂ 0.5", "AT L∞", "AT L₂ 0.25 + SBG"]
    assert [mark.get_fillstyle() for mark in marks] == ["full", "full", "none", "full", "full"]
    # two networks with two radii each have four fills
    nets = [Kind("none", "at", "L2", arch, None, radius) for arch in ("vit", "vgg16") for radius in ("0.25", "0.5")]
    assert len({mark.get_fillstyle() for mark in legend_marks(nets)}) == 4


def test_what_was_trained_with_neither(tmp_path):
    models = different_models([made_up(described(tmp_path))])
    neither = {(model.kind.label, model.kind.arch) for model in models if model.kind.meets_neither}
    assert neither == {(label, arch) for label in ("vanilla", "CM") for arch in ("small_resnet", "vit")}


def test_a_curve_is_the_mean_over_seeds_within_their_range(tmp_path):
    finished = made_up(described(tmp_path), without=("cm-seed3",))
    drawn = draw_curves([finished])
    left, right = drawn.figure.axes
    assert (left.get_title(), right.get_title()) == ("L₂ attacks", "L∞ attacks")
    rows = finished.experiment.rows
    for row, line, band in zip(rows, left.get_lines(), left.collections, strict=True):
        found = [(model.measured["details/masking"], model.who) for model in models_of(finished, row)]
        assert len(found) == (2 if row.classifier == "cm" else 3)
        table = np.array([[d["clean"][who], d["curve"][who]["L2 2"], d["curve"][who]["L2 10"]] for d, who in found])
        np.testing.assert_allclose(line.get_xdata(), [0, 2, 10])
        np.testing.assert_allclose(line.get_ydata(), table.mean(0))
        corners = band.get_paths()[0].vertices
        for radius, lowest, highest in zip((0, 2, 10), table.min(0), table.max(0), strict=True):
            at = corners[corners[:, 0] == radius, 1]
            assert at.min() == pytest.approx(lowest) and at.max() == pytest.approx(highest)
    # two rows of the same source and method differ in their line
    assert len({(line.get_color(), line.get_marker(), line.get_linestyle(), line.get_fillstyle())
                for line in left.get_lines()}) == len(rows)  # fmt: skip
    assert "40 test images" in drawn.caption[2] and "mean of 3 seeds" in (said := " ".join(texts(drawn.figure)))
    # the row that lacks one says so
    assert "cm (2 seeds)" in said and "sbg (" not in said


def draw_blocks(dataset, classifiers=3, class_names=None, rows=None):
    test = dataset.splits["test"]
    inputs = test.pixels(slice(0, 4))
    adversarial = torch.stack([inputs * (label + 1) / dataset.classes for label in range(dataset.classes)], 1)
    return targeted_blocks(
        inputs, test.labels[:4], dict.fromkeys(rows or [f"classifier {number}" for number in range(classifiers)], adversarial),
        class_names=class_names or dataset.class_names, norm="L2", radius="3.0", steps=60,
    )  # fmt: skip


def test_class_names_wider_than_their_columns_slant_and_stay_whole(dataset):
    names = ("airplane", "automobile", "bird")
    figure = draw_blocks(dataset, classifiers=1, class_names=names)
    written = {text.get_text(): text for text in figure.texts}
    renderer = FigureCanvasAgg(figure).get_renderer()
    below = written["classifier 0"].get_window_extent(renderer).y0
    for name in names:
        extent = written[name].get_window_extent(renderer)
        assert written[name].get_rotation() == 35
        assert extent.y1 < below and extent.x1 < figure.bbox.x1
    assert all(text.get_rotation() == 0 for text in draw_blocks(dataset, class_names=("cat", "deer", "frog")).texts)


def test_blocks_show_every_pushed_image(dataset):
    figure = draw_blocks(dataset)
    assert len(pictures(figure)) == 3 * 4 * (1 + 3)
    shown = pictures(figure)[4 * 4 + 2].get_array()  # second block, first image, attacked towards class 1
    np.testing.assert_allclose(shown, dataset.splits["test"].pixels()[0, 0].numpy() * 2 / 3, rtol=1e-6)
    assert "L₂ radius 3.0, 60 steps" in " ".join(texts(figure))


@pytest.mark.parametrize("name", ["correlation", "curves", "blocks"])
def test_equal_bytes_and_no_label_on_another(name, tmp_path, dataset):
    finished = made_up(described(tmp_path))
    draw = {
        "correlation": lambda: draw_correlation([finished], None).figure,
        "curves": lambda: draw_curves([finished]).figure,
        "blocks": lambda: draw_blocks(dataset),
    }[name]
    first = draw()
    save_figure(first, tmp_path / "first.png")
    with mpl.rc_context({"font.size": 23, "axes.facecolor": "yellow", "lines.markersize": 30}):
        save_figure(draw(), tmp_path / "second.png")
    assert (tmp_path / "first.png").read_bytes() == (tmp_path / "second.png").read_bytes()
    assert overlapping_texts(first) == []
