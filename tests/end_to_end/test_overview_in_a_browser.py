"""The page of all experiments in a headless Chromium: it sorts, filters, compares, and shows a figure large."""

import pytest

from experiments.overview.page import render_overview
from tests.fixtures.browser import CHROMIUM, browsing
from tests.fixtures.results_folders import autoattack, details, listed_in, png, write_results

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed (on Debian: apt install chromium)"),
]

TEN = {"clean": "1111100000", "L2 0.75": "1100000000"}
NINE = {"clean": "0111111000", "L2 0.75": "0111111111"}
NAME = "<img src=x onerror=alert(1)>"
LONG = 16384  # pixels, too many for WebP
ROWS = """[...document.querySelectorAll("#experiments tbody tr")].filter((row) => row.getClientRects().length)
          .map((row) => row.querySelector("th").textContent.trim())"""
LARGE = "document.querySelector('#large img')"


def column(key):
    return f"""[...document.querySelectorAll('#experiments thead button')].find((b) => b.title === "sort by {key}")"""


def box(name):
    found = "[...document.querySelectorAll('#experiments tbody tr')].find((r) => r.cells[0].textContent.trim() =="
    return f"{found} {name!r}).querySelector('input')"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """The page of five experiments, of which one has no parameters of its own, one no attack, and one a hostile name."""
    folder = tmp_path_factory.mktemp("browser")
    plain = {
        "seed": 1, "source": "sbg", "method": "standard", "lambda": 0.5, "train": {"epochs": 20}, "at": {"radius": "0.5"},
        "figures": {"radius": 3}, "toy": {"lambda": 1.0, "epochs": 5}, "autoattack": {"images": 200},
    }  # fmt: skip
    sheet = "targeted_pgd"
    ten = {"autoattack": autoattack(0.5, 0.2), "details/autoattack": details(TEN, "same")}
    write_results(folder, "ten", plain, {"lambda": 10.0}, ten, {sheet: png(30)})
    nine = {"autoattack": autoattack(0.6, 0.9), "details/autoattack": details(NINE, "same")}
    write_results(folder, "nine", plain, {"lambda": 9.0}, nine, {sheet: png(40, "blue")})
    write_results(folder, "none", plain, {"source": "none"}, {"training": {"proxy": 0.25}})
    at = {"method": "at", "lambda": 0.0, "autoattack.images": 50}
    write_results(folder, "at", plain, at, {"autoattack": autoattack(0.7, 0.1)}, {"long": png(LONG)})
    other = {"autoattack": autoattack(0.4, 0.5), "details/autoattack": details(NINE, "other")}
    write_results(folder, NAME, plain, {"lambda": 1e-3}, other)
    page = folder / "experiments.html"
    page.write_text(render_overview(listed_in(folder)), encoding="utf-8")
    (folder / "profile").mkdir()
    with browsing(page, folder / "profile") as opened:
        yield opened


def test_a_click_on_a_title_sorts_by_number_with_gaps_last(browser):
    assert browser.value(ROWS) == [NAME, "at", "nine", "none", "ten"]
    browser.value(f"{column('lambda')}.click()")
    assert browser.value(ROWS) == ["at", NAME, "none", "nine", "ten"]
    browser.value(f"{column('lambda')}.click()")
    assert browser.value(ROWS) == ["ten", "nine", "none", NAME, "at"]
    # of a metric the best comes first; the keyboard does what a click does
    browser.value(f"{column('autoattack.model.L2 0.75')}.focus()")
    browser.press("Enter")
    assert browser.value(ROWS) == ["nine", NAME, "ten", "at", "none"]
    assert browser.value(f"{column('autoattack.model.L2 0.75')}.closest('th').ariaSort") == "descending"
    browser.press("Enter")
    assert browser.value(ROWS) == ["at", "ten", NAME, "nine", "none"]
    assert browser.value("document.querySelectorAll('[aria-sort]').length") == 1


@pytest.mark.parametrize(
    ("text", "rows", "problem"),
    [
        ("source=sbg method=standard", ["ten", NAME, "nine"], ""),
        ("lambda<9 sbg", ["at", NAME], ""),
        ("lambda<=9 sbg", ["at", NAME, "nine"], ""),
        ("lambda>9", ["ten"], ""),
        ("lambda>=9", ["ten", "nine"], ""),
        ("lambda<x", [], "“x” in “lambda<x” is not a number; words are asked with “=”. "),
        ("lambda>=sbg", [], "“sbg” in “lambda>=sbg” is not a number; words are asked with “=”. "),
        ('"model clean">0.55', ["at", "nine"], ""),
        # the parameter, and what was measured
        ("autoattack.images=50", ["at"], ""),
        ("metrics/autoattack.images=200", ["at", "ten", NAME, "nine"], ""),
        ("images=50", [], "“images” is one of: autoattack.images, metrics/autoattack.images. "),
        # not toy.lambda and toy.epochs, which are 1 and 5 everywhere
        ("lambda=10 epochs=20", ["ten"], ""),
        ("toy.epochs=5 at.radius=0.5", ["at"], ""),
        ("radius=0.5", [], "“radius” is one of: figures.radius, at.radius. "),
        ("TEN", ["ten"], ""),
        ("<img", [NAME], ""),
        ("lamda=9", [], "No column is called “lamda”. "),
        ("", ["at", "ten", NAME, "nine", "none"], ""),
    ],
)
def test_the_filter_hides_rows(browser, text, rows, problem):
    browser.value("document.getElementById('filter').focus(); document.getElementById('filter').select()")
    browser.value(f"document.execCommand({'insertText' if text else 'delete'!r}, false, {text!r})")
    assert browser.value(ROWS) == rows
    said = browser.value("document.getElementById('said').textContent")
    assert said == f"{problem}{len(rows)} of 5 shown, 0 chosen."


def test_two_are_compared_with_their_figures(browser):
    assert browser.value("document.getElementById('comparison').getClientRects().length") == 0
    browser.value(f"{box('ten')}.focus()")
    browser.press("Space")
    browser.value(f"{box('nine')}.click()")
    lines = browser.value(
        "[...document.querySelectorAll('#compared tr')].map((r) => [...r.cells].map((c) => c.textContent))"
    )
    assert lines[0] == ["", "ten", "nine", "difference"] and ["lambda", "10", "9", ""] in lines
    # of ten images one is lost and eight are gained: 2 sqrt((0.9 - 0.7^2) / 10); clean one and two: 2 sqrt((0.3 - 0.1^2) / 10)
    assert ["model L2 0.75", "0.200", "0.900", "+0.700 ± 0.405"] in lines
    assert ["model clean", "0.500", "0.600", "+0.100 ± 0.341"] in lines
    assert not any("baseline" in line[0] or line[0] in ("source", "seed") for line in lines)
    browser.until("[...document.querySelectorAll('figure img')].every((image) => image.complete)")
    assert browser.value("[...document.querySelectorAll('figure img')].map((image) => image.naturalWidth)") == [30, 40]
    places = browser.value(
        "[...document.querySelectorAll('figure img')].map((image) => image.getBoundingClientRect().x)"
    )
    assert places[0] + 400 < places[1]
    assert browser.value("document.documentElement.scrollWidth <= 1000")
    browser.value("document.getElementById('equal').click()")
    assert browser.value("document.getElementById('compared').textContent.includes('baseline clean')")


def test_images_of_another_dataset_are_not_compared_one_by_one(browser):
    browser.value(f"for (const box of [{box('ten')}, {box('nine')}, {box(NAME)}, {box('nine')}]) box.click()")
    lines = browser.value(
        "[...document.querySelectorAll('#compared tr')].map((r) => [...r.cells].map((c) => c.textContent))"
    )
    browser.value(f"for (const box of [{box(NAME)}, {box('nine')}, {box('ten')}, {box('nine')}]) box.click()")
    assert ["model L2 0.75", "0.500", "0.900", "+0.400"] in lines


def test_a_figure_opens_and_closes_with_the_keyboard(browser):
    browser.value("document.querySelector('figure button').focus()")
    browser.press("Enter")
    browser.until(f"{LARGE}.getClientRects().length && {LARGE}.complete && {LARGE}.naturalWidth === 30")
    assert browser.value(f"{LARGE}.getBoundingClientRect().width") > 800
    browser.press("ArrowRight")
    browser.until(f"{LARGE}.complete && {LARGE}.naturalWidth === 40")
    assert "nine (2 of 2)" in browser.value("document.getElementById('large-title').textContent")
    browser.press("Escape")
    browser.until(f"{LARGE}.getClientRects().length === 0")
    assert browser.value("document.activeElement === document.querySelector('figure button')")
    browser.value("document.getElementById('none').click()")
    assert browser.value("document.getElementById('comparison').getClientRects().length") == 0


def test_a_picture_that_is_too_long_for_webp_is_shown(browser):
    browser.value(f"for (const box of [{box('at')}, {box('none')}]) box.click()")
    image = "document.querySelector('figure img')"
    browser.until(f"{image}.complete && {image}.naturalWidth === {LONG}")
    browser.value("document.getElementById('none').click()")


def test_a_column_can_be_added(browser):
    gaps = f"{box('none')}.closest('tr').querySelectorAll('td[aria-label=\"no value\"]').length"
    assert browser.value(f"{column('autoattack.baseline.clean')} === undefined") and browser.value(gaps) == 2
    browser.value(
        "[...document.querySelectorAll('#choice label')].find((l) => l.textContent === ' baseline clean').click()"
    )
    assert browser.value(f"{column('autoattack.baseline.clean')}.getClientRects().length") == 1
    assert browser.value(gaps) == 3


def test_nothing_is_complained_of_and_nothing_asked_for(browser):
    assert browser.complaints == []
    # the page may not ask, and we would hear of it
    browser.value("void (new Image().src = 'http://127.0.0.1:9/x.png')")
    browser.until("true")
    browser.value("console.error('heard')")
    browser.value("true")
    assert any("Content Security Policy" in text for text in browser.complaints), browser.complaints
    assert any("heard" in text for text in browser.complaints)
