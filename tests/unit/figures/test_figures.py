"""The figures: the right panels and pictures, equal bytes in every rendering, and names that cannot break them."""

import matplotlib as mpl
import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex

from pag_core.datasets.prepared import Dataset
from pag_core.evaluation.attacks import settings_by_norm
from pag_core.figures.contact_sheet import INPUT, MARGIN
from pag_core.figures.gradient_sources import gradient_sources, signed_picture
from pag_core.figures.labels import CONTROLS, METHODS, baseline_label, model_label
from pag_core.figures.palette import BASELINE_COLOUR, MODEL_COLOUR, OWN_CLASS_COLOUR, save_figure, short_name
from pag_core.figures.robustness_radius import robustness_radius
from pag_core.figures.targeted_pgd import targeted_pgd
from pag_core.figures.training_curves import training_curves
from pag_core.gradient_store.store import RepresentativeGradients
from pag_core.gradients.class_mean import class_mean_representatives
from pag_core.toy.decision_boundary import Panel, decision_boundary
from pag_core.toy.experiment import toy_mlp
from pag_core.toy.points import toy_points

MASKING = {
    "images": 40,
    "pgd_steps": 20,
    "clean": {"model": 0.9, "baseline": 0.95},
    "curve": {
        "model": {"L2 0.25": 0.8, "L2 10": 0.0, "L2 2": 0.5, "Linf 8/255": 0.4},
        "baseline": {"L2 0.25": 0.3, "L2 10": 0.0, "L2 2": 0.1, "Linf 8/255": 0.05},
    },
}
AUTOATTACK = {
    "images": 20,
    "model": {"clean": 0.9, "L2 2": 0.45, "L1 12": 0.2, "per_attack": {"L2 2": {}, "L1 12": {}}},
    "baseline": {"clean": 0.95, "L2 2": 0.05, "L1 12": 0.0, "per_attack": {"L2 2": {}, "L1 12": {}}},
}


def curve(start, end, epochs=8):
    return list(zip(range(1, epochs + 1), np.linspace(start, end, epochs).tolist(), strict=True))


CLASSIFIER = {"cross_entropy": curve(2.3, 0.6), "accuracy": curve(0.1, 0.9), "alignment": curve(8, 2)}
BASELINE = {"cross_entropy": curve(2.3, 0.1), "accuracy": curve(0.1, 1)}


def pictures(figure):
    return [axes.images[0] for axes in figure.axes if axes.images]


def texts(figure):
    figure.draw_without_rendering()
    return [text.get_text() for text in figure.findobj(mpl.text.Text) if text.get_text()]


def overlapping_texts(figure):
    """Pairs of texts whose boxes meet, in the whole figure."""
    figure.draw_without_rendering()
    hidden = set()  # matplotlib keeps the labels of ticks beyond an axis' ends, undrawn
    for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)):
        low, high = sorted(axis.get_view_interval())
        hidden |= {tick.label1 for tick in axis.get_major_ticks() if not low <= tick.get_loc() <= high}
    texts = [text for text in figure.findobj(mpl.text.Text) if text.get_text().strip() and text.get_visible()]
    shown = [text for text in texts if text not in hidden]
    boxes = [(text.get_text(), text.get_window_extent()) for text in shown]
    return [(a, b) for i, (a, one) in enumerate(boxes) for b, two in boxes[i + 1 :] if one.overlaps(two)]


def draw_sources(dataset, images=2):
    test = dataset.splits["test"]
    means = class_mean_representatives(dataset.splits["train"], dataset.classes, factor=1.0)
    sources = {name: RepresentativeGradients(factor * means, test) for name, factor in (("one", 1.0), ("two", 0.5))}
    return gradient_sources(dataset, sources, images=images)


def draw_targeted(dataset, images=2, columns=None, model="model (SBG, λ 3)"):
    test = dataset.splits["test"]
    inputs = test.pixels(slice(0, images))
    adversarial = inputs[:, None].repeat(1, columns or dataset.classes, 1, 1, 1)
    return targeted_pgd(
        inputs,
        test.labels[:images],
        {"vanilla baseline": adversarial, model: 1 - adversarial},
        class_names=dataset.class_names,
        norm="L2",
        radius="3.0",
        steps=60,
    )


def draw_decision_boundary(dataset):
    torch.manual_seed(3)
    networks = [toy_mlp().requires_grad_(False) for _ in range(2)]
    # a border between the modes
    networks[1][3].weight[:, :] = 0
    networks[1][1].weight[0] = torch.tensor([1.0, 2.0])
    networks[1][1].bias[0] = 0.0
    networks[1][3].weight[1, 0], networks[1][3].bias[:] = 1.0, torch.tensor([55.0, 0.0])
    accuracy = {"clean": 1.0, "pgd": 0.755, "exact": 0.5}
    panels = [Panel(name, network, accuracy) for name, network in zip(("vanilla", "aligned"), networks, strict=True)]
    return decision_boundary(panels, toy_points(20, seed=1, split="test"), radius=15.0, steps=10)


def renamed(dataset, names):
    return Dataset(tuple(names), dataset.fingerprint, dataset.splits)


DRAWINGS = {
    "training_curves": lambda dataset: training_curves(
        CLASSIFIER, BASELINE, model="model (SBG, λ 3)", beside="vanilla baseline"
    ),
    "gradient_sources": draw_sources,
    "targeted_pgd": draw_targeted,
    "robustness_radius": lambda dataset: robustness_radius(
        MASKING, AUTOATTACK, model="model (SBG, λ 3)", beside="vanilla baseline"
    ),
    "decision_boundary": draw_decision_boundary,
}


@pytest.mark.parametrize("name", DRAWINGS)
def test_equal_bytes_in_every_rendering(name, dataset, tmp_path):
    save_figure(DRAWINGS[name](dataset), tmp_path / "first.png")
    with mpl.rc_context({"font.size": 23, "axes.facecolor": "yellow", "savefig.dpi": 30}):
        save_figure(DRAWINGS[name](dataset), tmp_path / "second.png")
    first = (tmp_path / "first.png").read_bytes()
    assert first == (tmp_path / "second.png").read_bytes()
    assert first.startswith(b"\x89PNG") and b"tEXt" not in first and b"tIME" not in first


@pytest.mark.parametrize("name", DRAWINGS)
def test_no_label_meets_another(name, dataset):
    assert overlapping_texts(DRAWINGS[name](dataset)) == []


def test_long_class_names_do_not_meet(make_dataset):
    dataset = make_dataset(classes=10, train=2, test=2)
    long = renamed(dataset, [f"a rather long class name {label}" for label in range(10)])
    names = [text for text in overlapping_texts(draw_targeted(long)) if "rather" not in text[0] + text[1]]
    assert names == []
    cifar = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    assert overlapping_texts(draw_targeted(renamed(dataset, cifar))) == []
    assert overlapping_texts(draw_sources(renamed(dataset, cifar))) == []


def test_training_curves_have_a_panel_for_each_curve():
    figure = training_curves(CLASSIFIER, BASELINE, model="the model", beside="vanilla baseline")
    assert [axes.get_title() for axes in figure.axes] == [
        "Cross-entropy",
        "Training accuracy",
        "Alignment loss (Eq. 5)",
    ]
    alignment = figure.axes[2].get_lines()
    assert len(alignment) == 1 and to_hex(alignment[0].get_color()) == MODEL_COLOUR.lower()
    assert list(zip(*alignment[0].get_data(), strict=True)) == CLASSIFIER["alignment"]
    assert len(training_curves(BASELINE, BASELINE, model="the model", beside="vanilla baseline").axes) == 2


def test_curves_on_validation_images_have_rows_of_panels_and_the_kept_epochs():
    validated = {name: curve(0.1, 0.5) for name in ("validation_clean", "validation_robust", "validation_Linf")}
    kept = {"the model": 7, "vanilla baseline": 3}
    figure = training_curves(
        CLASSIFIER | validated, BASELINE | validated, model="the model", beside="vanilla baseline", kept=kept
    )
    titles = [axes.get_title() for axes in figure.axes if axes.axison]
    assert titles[3:] == ["Validation accuracy", "Validation, APGD in L∞"] and overlapping_texts(figure) == []
    for axes in figure.axes:
        dotted = [line for line in axes.get_lines() if line.get_linestyle() == ":"]
        at = {to_hex(line.get_color()).upper(): line.get_xdata()[0] for line in dotted}
        assert at == ({MODEL_COLOUR: 7, BASELINE_COLOUR: 3} if axes.get_title().startswith("Validation") else {})


def test_gradient_sources_show_the_gradients(dataset):
    figure = draw_sources(dataset)
    # an input for each image, a picture for each image, source and class, and the colour scale
    assert len(pictures(figure)) == 2 + 2 * 2 * 3
    signed = [image for image in pictures(figure) if image.get_clim() == (-1, 1)]
    test = dataset.splits["test"]
    means = class_mean_representatives(dataset.splits["train"], 3, factor=1.0)
    expected = (means[0] - test.pixels()[0])[0].numpy()
    np.testing.assert_allclose(signed[0].get_array(), expected / np.abs(expected).max(), rtol=1e-6)
    assert all(image.get_interpolation() == "nearest" for image in pictures(figure))


def test_the_own_class_is_framed(dataset):
    figure = draw_targeted(dataset)
    framed = [axes for axes in figure.axes if to_hex(axes.spines["left"].get_edgecolor()) == OWN_CLASS_COLOUR.lower()]
    assert len(framed) == 2 * 2


def test_signed_picture():
    grey = torch.tensor([[[0.0, -2.0], [1.0, 0.5]]])
    assert torch.equal(signed_picture(grey), torch.tensor([[[0.0, -1.0], [0.5, 0.25]]]))
    rgb = grey.repeat(3, 1, 1)
    assert torch.equal(signed_picture(rgb)[1], torch.tensor([[0.5, 0.0], [0.75, 0.625]]))
    assert (signed_picture(torch.zeros(3, 2, 2)) == 0.5).all() and (signed_picture(torch.zeros(1, 2, 2)) == 0).all()


def test_colour_images_are_drawn(make_dataset, tmp_path):
    dataset = make_dataset(shape=(3, 8, 8))
    for figure in (draw_sources(dataset), draw_targeted(dataset)):
        save_figure(figure, tmp_path / "colour.png")
        assert all(image.get_array().shape == (8, 8, 3) for image in pictures(figure))


@pytest.mark.parametrize("classes", [12, 200])
def test_more_than_ten_classes_are_cut_and_said(make_dataset, classes):
    dataset = make_dataset(classes=classes, train=2, test=2)
    sizes = set()
    for figure in (draw_sources(dataset), draw_targeted(dataset, columns=10)):
        assert any(f"the first 10 of {classes} classes" in text for text in texts(figure))
        assert "class 9" in texts(figure) and len(pictures(figure)) == 2 + 2 * 2 * 10
        assert overlapping_texts(figure) == []
        sizes.add(tuple(figure.get_size_inches()))
    ten = make_dataset(classes=10, train=2, test=2)
    assert sizes == {tuple(draw_sources(ten).get_size_inches()), tuple(draw_targeted(ten).get_size_inches())}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("control", [None, *CONTROLS])
def test_a_models_name_stays_beside_its_row(dataset, method, control):
    """Also the longest, in lines, and not over the input to the left of it."""
    label = model_label("sbg", 0.25, method, control)
    figure = draw_targeted(dataset, model=label)
    figure.draw_without_rendering()
    names = [text for text in figure.texts if " ".join(text.get_text().split()) == label]
    edge = (MARGIN + INPUT) * figure.dpi
    assert len(names) == 2 and all(text.get_window_extent().x0 > edge for text in names)
    assert overlapping_texts(figure) == []


def test_targeted_pgd_names_its_setting(dataset):
    shown = " ".join(texts(draw_targeted(dataset)))
    assert "L₂ radius 3.0, 60 steps" in shown and "vanilla baseline" in shown and "model (SBG, λ 3)" in shown


def test_a_long_name_is_cut():
    assert short_name("a" * 40, 12) == "a" * 11 + "…" and short_name("a" * 12, 12) == "a" * 12
    # as wide as two letters each, and an accent that stays with its letter
    assert short_name("猫" * 7, 12) == "猫" * 5 + "…" and short_name("猫" * 6, 12) == "猫" * 6
    assert short_name("e\u0301" * 13, 12) == "e\u0301" * 11 + "…"


def test_robustness_panels_and_points():
    figure = robustness_radius(MASKING, AUTOATTACK, model="the model", beside="vanilla baseline")
    assert [axes.get_title() for axes in figure.axes] == ["L₁ attacks", "L₂ attacks", "L∞ attacks"]
    curves = [line for line in figure.axes[1].get_lines() if line.get_marker() == "o"]
    stars = [line for line in figure.axes[1].get_lines() if line.get_marker() == "*"]
    assert list(curves[1].get_xdata()) == [0, 0.25, 2, 10] and list(curves[1].get_ydata()) == [0.9, 0.8, 0.5, 0.0]
    assert [list(star.get_ydata()) for star in stars] == [[0.05], [0.45]]
    assert figure.axes[2].get_lines()[1].get_xdata()[1] == pytest.approx(8 / 255)


def test_decision_regions_and_border_are_the_networks(dataset):
    """The second network answers 1 where x1 + 2 x2 > 55."""
    axes = draw_decision_boundary(dataset).axes[1]
    (image,) = axes.images
    left, right, bottom, top = image.get_extent()
    classes = np.asarray(image.get_array())
    rows, columns = classes.shape
    x1 = left + (right - left) * (np.arange(columns) + 0.5) / columns
    x2 = bottom + (top - bottom) * (np.arange(rows)[:, None] + 0.5) / rows
    assert image.origin == "lower" and (x1[0], x2[0, 0]) < (-60, -110) and (x1[-1], x2[-1, 0]) > (60, 110)
    np.testing.assert_array_equal(classes, x1 + 2 * x2 > 55)
    ends = np.concatenate(axes.collections[0].get_segments())
    assert len(ends) >= 2
    np.testing.assert_allclose(ends @ [1, 2], 55, atol=1e-4)
    # 20 points of each mode, on the line
    for label, line in enumerate(axes.get_lines()):
        np.testing.assert_allclose(line.get_ydata(), 2 * line.get_xdata())
        assert len(line.get_xdata()) == 60 and abs(np.mean(line.get_xdata()) - (-10, 10)[label]) < 1


def test_settings_are_ordered_by_radius_and_not_as_text():
    assert settings_by_norm(["L0 10", "Linf 8/255", "L0 5", "Linf 0.01"]) == {
        "L0": ["L0 5", "L0 10"],
        "Linf": ["Linf 0.01", "Linf 8/255"],
    }


def test_model_label():
    assert model_label("sbg", 3.0) == "model (SBG, λ 3)" and model_label("cm", 0.25) == "model (CM, λ 0.25)"
    assert model_label("none", 3.0) == model_label("sbg", 0.0) == "model (no alignment)"
    assert baseline_label("standard") == "vanilla baseline" and baseline_label("at") == "AT baseline"
    assert model_label("none", 0.0, "at") == "model (AT)" and model_label("sbg", 0.0, "trades") == "model (TRADES)"
    assert model_label("sbg", 2.0, "gradient_norm") == "model (gradient norm + SBG, λ 2)"
