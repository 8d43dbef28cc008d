"""Each public name stands in an example, in a page, or in a notebook."""

import re
from types import ModuleType

import pytest

import effgen as eg

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


# How pages call the packages, and what follows: `rc.Index`, `eg.ebm.MALA`.
SHORT = {"rc": "retrieval_cache", "ns": "neural_sde", "co": "collocation"}
CALLS = re.compile(r"(?<![\w.`/])(?:eg|ebm|rc|ns|co|retrieval_cache)(?:\.[A-Za-z]\w*)+")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_name_that_a_page_uses_is_there(page):
    text = page.read_text()
    if page.suffix == ".md":
        text = "\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL))
    for name in set(CALLS.findall(text)):
        first, *rest = name.split(".")
        found = eg if first == "eg" else getattr(eg, SHORT.get(first, first))
        for part in rest:
            assert hasattr(found, part), f"{name} of {page.name} is not there"
            found = getattr(found, part)
            if not isinstance(found, ModuleType):
                break
