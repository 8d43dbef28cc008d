"""Examples in docstrings: they run, and print what stands there."""

import doctest
import importlib

import pytest

from .test_package import FILES, ROOT


SHOWN = [path for path in FILES if ">>> " in path.read_text()]


@pytest.mark.parametrize("path", SHOWN, ids=lambda path: str(path.relative_to(ROOT)))
def test_examples_of_docstrings_run(path):
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    found = doctest.DocTestFinder().find(importlib.import_module(name))
    examples = [example for test in found for example in test.examples]
    assert len(examples) == path.read_text().count(">>> "), "one is not found"
    runner = doctest.DocTestRunner(verbose=False)
    for test in found:
        runner.run(test)
    assert runner.summarize(verbose=False).failed == 0
