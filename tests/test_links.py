"""Links of README and docs: each leads to a file, and to a heading that it has."""

import re
import unicodedata

import pytest

from .test_package import ROOT


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
LINK = re.compile(r"\]\(([^)\s]+)\)")
GENERATED = re.compile(r"^(index|changelog|reference/\w+)\.md$")  # by `docs/site.py`


def text_of(page) -> str:
    return re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)


def anchors(page) -> set[str]:
    """Return the headings' anchors, as Python-Markdown makes them."""
    found: set[str] = set()
    for heading in re.findall(r"(?m)^#+ (.+)$", text_of(page)):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
        words = unicodedata.normalize("NFKD", words).encode("ascii", "ignore").decode()
        words = re.sub(r"[^\w\s-]", "", words).strip().lower()
        found.add(re.sub(r"[-\s]+", "-", words))
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_headings(page):
    for link in LINK.findall(re.sub(r"`[^`]+`", "", text_of(page))):
        if re.match(r"https?:|mailto:", link) or GENERATED.match(link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{link}: no such file"
        assert not anchor or anchor in anchors(target), f"{link}: no such heading"
