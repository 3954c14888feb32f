"""Class names and rows' names in figures: any script, or a number that a legend explains; never a box, and no mathematics."""

import random
import warnings

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager
from matplotlib.backends.backend_agg import FigureCanvasAgg

from pag_core.figures import fonts
from pag_core.figures.model_marks import Kind
from pag_core.figures.palette import save_figure
from pag_core.figures.radius_curves import RadiusCurve, radius_curves
from tests.unit.experiments.test_plots import draw_blocks
from tests.unit.figures.test_figures import draw_sources, draw_targeted, overlapping_texts, pictures, renamed, texts

pytestmark = pytest.mark.slow

SHEETS = {
    "sources": draw_sources,
    "targeted": draw_targeted,
    "blocks": lambda dataset: draw_blocks(dataset, class_names=dataset.class_names),
}
each_sheet = pytest.mark.parametrize("sheet", SHEETS)
CAT, DOG = "猫", "犬"


@pytest.fixture
def only_own_fonts(monkeypatch):
    """A machine with no font but those of matplotlib."""
    own = [entry for entry in font_manager.fontManager.ttflist if "mpl-data" in entry.fname]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", own)
    fonts.families_for.cache_clear()
    yield
    fonts.families_for.cache_clear()


@pytest.fixture
def install(only_own_fonts, tmp_path):
    """`install("Name", "猫犬")` makes a font of triangles that grow from character to character; those of `empty` are blank."""

    def make(family, characters, empty=""):
        names = [".notdef", *(f"u{ord(character):X}" for character in characters)]
        builder = FontBuilder(1000, isTTF=True)
        builder.setupGlyphOrder(names)
        builder.setupCharacterMap(dict(zip(map(ord, characters), names[1:], strict=True)))
        glyphs = {}
        for number, name in enumerate(names):
            pen = TTGlyphPen(None)
            if number == 0 or characters[number - 1] not in empty:
                pen.moveTo((100, 0))
                pen.lineTo((100, 700))
                pen.lineTo((200 + 200 * number, 700))
                pen.closePath()
            glyphs[name] = pen.glyph()
        builder.setupGlyf(glyphs)
        builder.setupHorizontalMetrics(dict.fromkeys(names, (1000, 0)))
        builder.setupHorizontalHeader(ascent=800, descent=-200)
        builder.setupNameTable({"familyName": family, "styleName": "Regular"})
        builder.setupOS2(sTypoAscender=800, usWinAscent=800, usWinDescent=200)
        builder.setupPost()
        path = tmp_path / f"{family}.ttf"
        builder.save(path)
        font_manager.fontManager.addfont(path)
        fonts.families_for.cache_clear()

    return make


def written(figure, path):
    """All texts of a figure, which is drawn to a file without any warning, as of a glyph that is missing."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save_figure(figure, path)
        return texts(figure)


def named(dataset, *names):
    return renamed(dataset, (*names, "third")[:3])


@each_sheet
def test_names_that_no_font_has_are_numbers_that_a_legend_explains(dataset, only_own_fonts, tmp_path, sheet):
    figure = SHEETS[sheet](named(dataset, CAT, DOG, "кот"))
    said = written(figure, tmp_path / "figure.png")
    assert {"class 0", "class 1", "кот"} <= set(said)
    assert not any(CAT in text or DOG in text for text in said)
    (legend,) = (text for text in said if "\\u732b" in text)
    assert " ".join(legend.split()) == r"class 0: \u732b; class 1: \u72ac"
    assert overlapping_texts(figure) == []


USUAL_NAMES = [
    ("кот", "γάτα", "قط"), ("חתול", "🐱", "chat é"), ("cha\u0302t", "a$b$c", "$5"), ("$x$", "a\\$b$", "_a"),
    ("<b>&'\"", "$\\frac{", "a_b^c$$"),
]  # fmt: skip


# all of them in one sheet, and in the others some that are no formula in it
@pytest.mark.parametrize(
    ("sheet", "names"),
    [*(("targeted", names) for names in USUAL_NAMES), *((sheet, USUAL_NAMES[2]) for sheet in ("sources", "blocks"))],
)
def test_names_that_the_usual_font_has_are_written_as_they_are(dataset, only_own_fonts, tmp_path, sheet, names):
    figure = SHEETS[sheet](renamed(dataset, names))
    assert set(names) <= set(written(figure, tmp_path / "figure.png"))
    assert not any(text.get_parse_math() for text in figure.texts)


@each_sheet
def test_installed_fonts_are_used(dataset, install, tmp_path, sheet):
    install("Far Sans", CAT + DOG)
    figure = SHEETS[sheet](named(dataset, CAT, f"{DOG} a"))
    assert {CAT, f"{DOG} a"} <= set(written(figure, tmp_path / "figure.png"))
    assert overlapping_texts(figure) == []


def ink(figure, wanted):
    """The pixels of the first text `wanted`."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    text = next(text for text in figure.texts if text.get_text() == wanted)
    box = text.get_window_extent(canvas.get_renderer())
    whole = np.asarray(canvas.buffer_rgba())[..., 0]
    rows = slice(round(whole.shape[0] - box.y1) - 2, round(whole.shape[0] - box.y0) + 2)
    return whole[rows, round(box.x0) - 2 : round(box.x1) + 2]


def test_two_classes_look_different_where_a_font_has_them(dataset, install):
    install("Far Sans", CAT + DOG)
    figure = draw_targeted(named(dataset, CAT, DOG))
    first, second = ink(figure, CAT), ink(figure, DOG)
    # the triangle of the second is twice as wide as that of the first
    assert 0 < (first < 200).sum() < 0.8 * (second < 200).sum()


def test_fonts_are_chosen_in_one_order_whatever_the_systems(dataset, install, tmp_path, monkeypatch):
    for family in ("Far Serif", "Far Sans", "Another Sans", "Cat Sans"):
        install(family, CAT if family == "Cat Sans" else CAT + DOG)
    made = []
    for seed in range(3):
        entries = list(font_manager.fontManager.ttflist)
        random.Random(seed).shuffle(entries)
        monkeypatch.setattr(font_manager.fontManager, "ttflist", entries)
        fonts.families_for.cache_clear()
        assert fonts.families_for(frozenset(CAT + DOG)) == ("Another Sans",)
        save_figure(draw_targeted(named(dataset, CAT, DOG)), tmp_path / f"{seed}.png")
        made.append((tmp_path / f"{seed}.png").read_bytes())
    assert made[0] == made[1] == made[2]


def test_a_second_font_is_used_for_what_the_first_lacks(dataset, install, tmp_path):
    install("A Sans", CAT + "中")
    install("B Sans", DOG)
    said = written(draw_targeted(named(dataset, CAT + "中", DOG)), tmp_path / "figure.png")
    assert {CAT + "中", DOG} <= set(said)


@pytest.mark.parametrize("family", ["Blank Sans", "Last Resort", ".LastResort"])
def test_a_font_that_draws_nothing_or_boxes_does_not_count(dataset, install, tmp_path, family):
    """Fonts of coloured bitmaps have characters without an outline; one of a last resort has a box for each."""
    install(family, CAT + DOG, empty=CAT + DOG if family == "Blank Sans" else "")
    said = written(draw_targeted(named(dataset, CAT, DOG)), tmp_path / "figure.png")
    assert {"class 0", "class 1"} <= set(said)


def test_a_damaged_font_does_not_matter(dataset, install, tmp_path):
    install("Far Sans", CAT)
    (tmp_path / "Far Sans.ttf").write_bytes(b"no font")
    font_manager._get_font.cache_clear()
    assert "class 0" in written(draw_targeted(named(dataset, CAT, "dog")), tmp_path / "figure.png")


@pytest.mark.parametrize("name", ["two\nlines", "a\ttab", "zero\u200bwidth", "a\u00a0b", "\u202eevil", "\u3164"])
def test_what_cannot_be_seen_is_explained(dataset, only_own_fonts, tmp_path, name):
    said = written(draw_targeted(named(dataset, name, "dog")), tmp_path / "figure.png")
    assert "class 0" in said and any(text.startswith("class\u00a00:\u00a0") and "\\" in text for text in said)


def test_a_number_is_never_the_name_of_another_class(dataset, only_own_fonts, tmp_path):
    said = written(draw_targeted(named(dataset, "class 1", CAT)), tmp_path / "figure.png")
    assert {"class 0", "class 1", "class 2"} <= set(said)
    (legend,) = (text for text in said if "732b" in text)
    assert " ".join(legend.split()) == r"class 0: class 1; class 1: \u732b; class 2: third"


@each_sheet
def test_names_that_are_alike_when_cut_are_numbers(dataset, tmp_path, sheet):
    twins = ["a rather long name of one kind", "a rather long name of another kind"]
    figure = SHEETS[sheet](named(dataset, *twins))
    said = written(figure, tmp_path / "figure.png")
    assert {"class 0", "class 1", "third"} <= set(said) and overlapping_texts(figure) == []
    (legend,) = (text for text in said if "another kind" in " ".join(text.split()))
    assert " ".join(legend.split()) == f"class 0: {twins[0]}; class 1: {twins[1]}"


@each_sheet
def test_a_legend_is_written_in_installed_fonts(dataset, install, tmp_path, sheet):
    install("Far Sans", CAT + DOG)
    said = written(SHEETS[sheet](named(dataset, CAT * 20, CAT * 20 + DOG)), tmp_path / "figure.png")
    (legend,) = (text for text in said if text.startswith("class\u00a00:"))
    assert "".join(legend.split()) == f"class0:{CAT * 20};class1:{CAT * 20}{DOG}"


@pytest.mark.parametrize("sheet", ["sources", "targeted"])
def test_a_caption_calls_a_class_as_its_column_does(dataset, only_own_fonts, sheet):
    own = int(dataset.splits["test"].labels[0])
    names = [f"{CAT if label == own else 'dog'}{label}" for label in range(3)]
    said = texts(SHEETS[sheet](renamed(dataset, names)))
    assert said.count(f"class {own}") >= 2 and f"class dog{own}" not in said


@each_sheet
def test_wide_characters_stay_in_their_columns(make_dataset, install, sheet):
    """A Chinese character is as wide as two letters."""
    alphabet = "".join(map(chr, range(0x4E00, 0x4E20)))
    install("Far Sans", alphabet)
    names = [alphabet[label : label + length] for label, length in enumerate((3, 6, 9, 12, 15, 2))]
    figure = SHEETS[sheet](renamed(make_dataset(classes=6, train=2, test=2), names))
    canvas = FigureCanvasAgg(figure)
    for text in figure.texts:
        box = text.get_window_extent(canvas.get_renderer())
        assert box.x0 >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1, text.get_text()


def test_many_and_very_long_names_fit_below_the_pictures(make_dataset, only_own_fonts, tmp_path):
    dataset = renamed(make_dataset(classes=10, train=2, test=2), [CAT * 60 + DOG * label for label in range(10)])
    for draw in SHEETS.values():
        figure = draw(dataset)
        said = written(figure, tmp_path / "figure.png")
        assert {f"class {label}" for label in range(10)} <= set(said) and overlapping_texts(figure) == []
        box = next(text for text in figure.texts if "732b" in text.get_text()).get_window_extent()
        lowest = min(axes.get_window_extent().y0 for axes in figure.axes if axes.images)
        assert box.x0 >= 0 and box.x1 <= figure.bbox.x1 and box.y0 >= 0 and box.y1 < lowest


def test_a_figure_of_plain_names_is_as_it_was(dataset, make_dataset):
    """No room for a legend that is not there."""
    plain, numbered = draw_targeted(dataset), draw_targeted(named(dataset, "a\nb", "c"))
    assert plain.get_figheight() < numbered.get_figheight() and len(pictures(plain)) == len(pictures(numbered))


# --- names of rows


def test_rows_of_an_experiment_may_be_called_anything(dataset, only_own_fonts, tmp_path):
    figure = draw_targeted(dataset, model=f"{CAT} $5 and $6")
    said = {" ".join(text.split()) for text in written(figure, tmp_path / "figure.png")}
    assert r"\u732b $5 and $6" in said
    for line in ("x" * 60, "кот " * 20):
        assert overlapping_texts(draw_targeted(dataset, model=line)) == []
    figure = draw_blocks(dataset, rows=[CAT, DOG, "a$b$c"])
    assert {r"\u732b", r"\u72ac", "a$b$c"} <= set(written(figure, tmp_path / "figure.png"))


def test_curves_may_be_called_anything(only_own_fonts, tmp_path):
    names = ["_hidden", "a$b$c", CAT, "кот"]
    kind = Kind("none", "standard", "", "vit")
    curves = [RadiusCurve(name, kind, {"clean": (0.9,), "L2 1": (0.5,)}) for name in names]
    figure = radius_curves(curves, steps=10)
    written(figure, tmp_path / "figure.png")
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["_hidden", "a$b$c", r"\u732b", "кот"]
    assert len(legend.legend_handles) == 4
