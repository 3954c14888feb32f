"""The chart of the page of experiments in a headless Chromium: points, lines, the best, CSV, and the address."""

import csv
import io
import re

import pytest

from experiments.overview.page import render_overview
from tests.fixtures.browser import CHROMIUM, browsing
from tests.fixtures.results_folders import autoattack, listed_in, write_results

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed (on Debian: apt install chromium)"),
]

# robust accuracy on validation images by source, lambda and seed; that on test images is in the other order
ROBUST = {
    ("cm", 0.5, 1): 0.10, ("cm", 0.5, 2): 0.20, ("cm", 2.0, 1): 0.30, ("cm", 2.0, 2): 0.36,
    ("sbg", 0.5, 1): 0.40, ("sbg", 0.5, 2): 0.30, ("sbg", 1.0, 1): 0.55, ("sbg", 1.0, 2): 0.45, ("sbg", 2.0, 1): 0.45,
    ("sbg", 2.0, 2): 0.50,
}  # fmt: skip
PROXY = "training.proxy.L2 1"
POINTS = """[...document.querySelectorAll("#drawn .point")].map((point) => [point.querySelector("title").textContent,
    ...[...point.querySelectorAll("path")].map((path) => path.getAttribute("transform") ?? path.getAttribute("d"))])"""
LEGEND = "[...document.querySelectorAll('#legend li')].map((line) => line.textContent)"
STARRED = """[...document.querySelectorAll("#experiments th.best")].map((cell) => cell.textContent.trim())"""
SAID = "document.getElementById('charted').textContent"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    folder = tmp_path_factory.mktemp("browser")
    plain = {
        "seed": 1, "dataset": "digits", "source": "sbg", "lambda": 0.5, "train": {"epochs": 20}, "at": {"radius": "8/255"},
        "method": "at", "validation": {"images": 10},
    }  # fmt: skip

    def write(name, changes, robust, **metrics):
        training = {"validation": {"clean": 0.9}, "proxy": {"L2 1": robust, "Linf 8/255": robust}}
        measured = {"training": training, "autoattack": autoattack(0.9, 1 - robust), **metrics}
        write_results(folder, name, plain, changes, measured)

    for (source, weight, seed), robust in ROBUST.items():
        write(f"sweep-{source}-{weight}-seed{seed}", {"source": source, "lambda": weight, "seed": seed}, robust)
    write("twice-same", {"source": "cm", "lambda": 2.0, "seed": 2}, 0.36)
    write("twice-other", {"source": "cm", "lambda": 2.0, "seed": 2}, 0.30)
    write("long", {"source": "cm", "lambda": 2.0, "seed": 1, "train.epochs": 40, "at.radius": "16/255"}, 0.7)
    write("far", {"source": "cm", "lambda": 500.0, "seed": 1, "validation.images": 20}, 0.8)
    page = folder / "experiments.html"
    page.write_text(render_overview(listed_in(folder)), encoding="utf-8")
    (folder / "profile").mkdir()
    with browsing(page, folder / "profile") as opened:
        yield opened


def choose(browser, **asked):
    """Choose what the chart is of (by key), and the filter, as a user does: with the events of a form."""
    for name, value in asked.items():
        kind = "input" if name == "filter" else "change"
        wanted = f"[...field.options].find((option) => option.textContent === {value!r}).value"
        browser.value(
            f"{{const field = document.getElementById({name!r}); field.value = "
            f"{repr(value) if name == 'filter' else wanted}; field.dispatchEvent(new Event({kind!r}))}}"
        )


def points(browser):
    """Of each point: its title, its middle, and the ends of its range (the middle itself where there is none)."""
    found = []
    for title, *paths in browser.value(POINTS):
        x, y = map(float, re.fullmatch(r"translate\((\S+) (\S+)\)", paths[-1]).groups())
        ends = re.match(r"M\S+ (\S+?)V(\S+?)M", paths[0]).groups() if len(paths) > 1 else (y, y)
        found.append((title, x, y, *map(float, ends)))
    return found


def saved(browser, button):
    """What a click on a button writes, as rows."""
    browser.value("window.Blob = class { constructor(parts) { window.written = parts.join('') } }")
    browser.value("URL.createObjectURL = () => 'blob:nothing'; HTMLAnchorElement.prototype.click = () => {}")
    browser.value(f"document.getElementById({button!r}).click()")
    return list(csv.reader(io.StringIO(browser.value("window.written"))))


def test_points_are_means_with_ranges_over_seeds(browser):
    choose(browser, filter="sweep", metric=PROXY, parameter="lambda", series="source")
    assert browser.value(LEGEND) == ["source cm", "source sbg"]
    assert browser.value("document.querySelectorAll('#drawn .line').length") == 2
    by_place = {}
    for (source, weight, _), robust in ROBUST.items():
        by_place.setdefault((source, weight), []).append(robust)
    wanted = [(sum(runs) / 2, min(runs), max(runs)) for runs in by_place.values()]
    drawn = points(browser)
    said = [
        f"source {source}; lambda {weight:g}: {mean:.3f} ({low:.3f} to {high:.3f}), 2 seeds"
        for (source, weight), (mean, low, high) in zip(by_place, wanted, strict=True)
    ]
    assert [title for title, *_ in drawn] == said
    # one straight scale takes all of them, means and ends, upwards
    (_, _, top, *_), (_, _, bottom, *_) = drawn[3], drawn[0]
    scale = (bottom - top) / (wanted[0][0] - wanted[3][0])
    assert scale < 0
    for (_, _, *heights), values in zip(drawn, wanted, strict=True):
        assert heights == pytest.approx([bottom + scale * (value - wanted[0][0]) for value in values], abs=1e-6)
    # and so across, where the lines are apart
    x = {(source, weight): place[1] for (source, weight), place in zip(by_place, drawn, strict=True)}
    assert (x["sbg", 1.0] - x["sbg", 0.5]) * 2 == pytest.approx(x["sbg", 2.0] - x["sbg", 1.0])
    assert 0 < x["sbg", 2.0] - x["cm", 2.0] < 10
    assert "10 of the 10 experiments shown have both values. Mean and range over up to 2 seeds" in browser.value(SAID)


def test_lines_differ_in_colour_marker_and_dash(browser):
    looks = browser.value(
        "[...Array(49).keys()].map(look).map(({ colour, dash, marker }) => [colour, dash, marker].join('|'))"
    )
    assert len(set(looks)) == 49 and [len({look.split("|")[part] for look in looks[:7]}) for part in range(3)] == [
        7,
        7,
        7,
    ]
    choose(browser, filter="sweep", series="source")
    strokes = browser.value(
        "[...document.querySelectorAll('#drawn .line')].map((line) => [line.getAttribute('stroke'), "
        "line.getAttribute('stroke-dasharray')])"
    )
    assert strokes[0][0] != strokes[1][0] and strokes[0][1] != strokes[1][1]


def test_what_differs_in_another_parameter_is_a_line_of_its_own(browser):
    """Named by what tells it apart, and by no more: the radius goes with the epochs."""
    choose(browser, filter="lambda=2 source=cm", metric=PROXY, parameter="lambda", series="source")
    assert browser.value(LEGEND) == ["source cm, train.epochs 20", "source cm, train.epochs 40"]
    choose(browser, filter="source=cm", series="nothing", parameter="at.radius")
    # 0.5 and 2 stand at one radius, and so do 10 and 20 images
    assert browser.value(LEGEND) == ["lambda 0.5", "lambda 2", "lambda 500"]


def test_a_run_that_is_listed_twice_counts_once_and_another_of_its_seed_is_said(browser):
    choose(browser, filter="lambda=2 source=cm epochs=20", metric=PROXY, parameter="lambda", series="nothing")
    ((title, *_),) = points(browser)
    # 0.30, 0.36 and 0.30
    assert title == "lambda 2: 0.320 (0.300 to 0.360), 2 seeds"
    assert "At 1 point a seed was run more than once, with different results" in browser.value(SAID)
    choose(browser, filter="lambda=2 source=cm sweep")
    assert [title for title, *_ in points(browser)] == ["lambda 2: 0.330 (0.300 to 0.360), 2 seeds"]
    assert "more than once" not in browser.value(SAID)


def test_axes_of_words_of_fractions_and_of_many_sizes(browser):
    choose(browser, filter="lambda=2", metric=PROXY, parameter="source", series="nothing")
    ticks = "[...document.querySelectorAll('#drawn text')].map((text) => text.textContent)"
    assert {"cm", "sbg", "source"} <= {*browser.value(ticks)}
    assert browser.value("document.querySelectorAll('#drawn .line').length") == 0
    choose(browser, filter="lambda=2 source=cm", parameter="at.radius")
    assert {"8/255", "16/255"} <= {*browser.value(ticks)}
    small, large = sorted((x, title) for title, x, *_ in points(browser) if "epochs" not in title)
    assert "8/255" in small[1] and "16/255" in large[1]
    choose(browser, filter="seed=1 epochs=20", parameter="lambda", series="source")
    assert "lambda (logarithmic)" in browser.value(ticks)
    x = {title.partition(":")[0]: place for title, place, *_ in points(browser) if title.startswith("source sbg")}
    assert x["source sbg; lambda 2"] - x["source sbg; lambda 1"] == pytest.approx(
        x["source sbg; lambda 1"] - x["source sbg; lambda 0.5"]
    )


def test_the_best_is_by_validation_among_those_shown(browser):
    choose(browser, filter="sweep")
    assert browser.value(STARRED) == ["sweep-sbg-1.0-seed1", "sweep-sbg-1.0-seed2"]
    said = "document.getElementById('best').textContent"
    best = "sweep-sbg-1.0-seed1, sweep-sbg-1.0-seed2 (2 seeds): 0.500"
    assert browser.value(said) == f"★ best by validation of those shown: {best}, mean of L2 1, Linf 8/255."
    # one alone, and what was measured on other validation images, is the best of nothing
    choose(browser, filter="source=cm seed=1")
    assert browser.value(STARRED) == ["long"]
    choose(browser, filter="lambda>=500")
    assert browser.value(STARRED) == [] and browser.value(said) == ""
    # 0.30, 0.55, 0.45 and 0.475
    choose(browser, filter="sweep source=sbg clean<1 sbg-0.5-seed2")
    assert browser.value(STARRED) == []
    choose(browser, filter='sweep source=sbg "model L2 0.75"<0.56')
    assert browser.value(said).endswith(
        "sweep-sbg-1.0-seed1, sweep-sbg-1.0-seed2 (2 seeds): 0.500, mean of L2 1, Linf 8/255."
    )
    choose(browser, filter='sweep source=sbg lambda<=1 "model L2 0.75"<0.65')
    assert browser.value(said).endswith(
        "sweep-sbg-1.0-seed2 (2 seeds): 0.500, mean of L2 1, Linf 8/255; not all have as many seeds."
    )


def test_equal_ones_are_both_the_best(browser):
    """Of 0.45, 0.45 and 0.36."""
    choose(browser, filter="sweep seed=2 lambda>0.5")
    assert browser.value(STARRED) == ["sweep-sbg-2.0-seed2"]
    choose(browser, filter='sweep "proxy L2 1"=0.45')
    assert browser.value(STARRED) == ["sweep-sbg-1.0-seed2", "sweep-sbg-2.0-seed1"]
    assert "which are equal: 0.450" in browser.value("document.getElementById('best').textContent")


def test_the_numbers_of_chart_and_table_are_files(browser):
    choose(browser, filter="sweep source=cm", metric=PROXY, parameter="lambda", series="source")
    head, *lines = saved(browser, "chart-csv")
    assert head == ["source", "lambda", f"{PROXY} mean", "lowest", "highest", "seeds", "experiments"]
    assert [line[:2] + line[5:] for line in lines] == [
        ["cm", "0.5", "2", "sweep-cm-0.5-seed1 sweep-cm-0.5-seed2"], ["cm", "2", "2", "sweep-cm-2.0-seed1 sweep-cm-2.0-seed2"]
    ]  # fmt: skip
    assert [[float(value) for value in line[2:5]] for line in lines] == [
        pytest.approx([0.15, 0.1, 0.2]), pytest.approx([0.33, 0.3, 0.36])
    ]  # fmt: skip
    head, *lines = saved(browser, "table-csv")
    assert head[:3] == ["name", "seed", "source"] and PROXY in head
    by_name = {line[0]: line[head.index(PROXY)] for line in lines}
    assert by_name == {
        f"sweep-cm-{weight}-seed{seed}": f"{ROBUST['cm', weight, seed]:g}" for weight in (0.5, 2.0) for seed in (1, 2)
    }
    assert browser.value("csv([['a,b', 'c\"d', null], ['e\\nf', 1e-7, -0.5]])") == '"a,b","c""d",\n"e\nf",1e-7,-0.5\n'


def test_columns_filter_and_chart_are_kept_in_the_address(browser):
    label = "[...document.querySelectorAll('#choice label')].find((one) => one.textContent === ' {}')"
    browser.value(f"{label.format('source')}.click()")
    browser.value(f"{label.format('baseline clean')}.click()")
    choose(
        browser, filter="sweep source=sbg", metric="autoattack.model.L2 0.75", parameter="train.epochs", series="lambda"
    )
    state = """[[...document.querySelectorAll("#experiments thead button")].map((button) => button.title),
        ...["filter", "metric", "parameter", "series"].map((id) => document.getElementById(id).value),
        ...["#drawn .point", "#experiments tbody tr:not([hidden])"].map((found) => document.querySelectorAll(found).length)]"""
    before = browser.value(state)
    titles = before[0]
    assert "sort by source" not in titles and "sort by autoattack.baseline.clean" in titles and before[-2:] == [3, 6]
    browser.anew("location.reload()")
    assert browser.value(state) == before
    # another address that is entered is followed, and a column that there is not left out
    browser.anew("location.hash = 'column=lambda&column=gone&series='")
    titles, kept, *_, series, _, rows = browser.value(state)
    assert titles == ["sort by name", "sort by lambda"] and (kept, series, rows) == ("", "", len(ROBUST) + 4)


def test_nothing_is_complained_of(browser):
    assert browser.complaints == []
