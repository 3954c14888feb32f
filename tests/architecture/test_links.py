"""Links between the project's pages lead to a file that there is, and to a heading of it."""

import re
import subprocess

import pytest

from tests.fixtures.samples import ROOT

PAGES = subprocess.run(["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
FENCED = re.compile(r"^```.*?^```", re.M | re.S)


def headings(text: str) -> set[str]:
    """As GitHub names them."""
    titles = re.findall(r"^#+ (.+)$", FENCED.sub("", text), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", FENCED.sub("", text)) if "://" not in link]
    for link in links:
        path, _, anchor = link.partition("#")
        place = (ROOT / page).parent / path if path else ROOT / page
        assert place.exists(), f"{page} links to {link}"
        if anchor:
            assert anchor in headings(place.read_text(encoding="utf-8")), f"{page} links to {link}"
