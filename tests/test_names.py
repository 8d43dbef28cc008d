"""Each public name stands in an example, in a page, or in a notebook."""

import re

import pytest

from .test_docstrings import PACKAGES, public
from .test_package import NOTEBOOKS, ROOT


PAGES = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *NOTEBOOKS]
TOLD = {
    word
    for page in PAGES
    if page.stem not in ("architecture", "benchmarks")
    for word in re.findall(r"\w+", page.read_text())
}

# What parts of one's own may need, and nothing else: the reference alone has it.
INNER = {
    "effgen.neural_sde": {"Guide", "Guided", "Site", "Transition", "plain_paths"},
    "effgen.retrieval_cache": {
        *("Excluded", "Marks", "Scored", "content_digests", "pseudo_logit"),
    },
}


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_is_told_of(package):
    untold = set(public(package)) - TOLD - INNER.get(package, set())
    assert not untold, f"show in docs/examples.md, or make private: {sorted(untold)}"
