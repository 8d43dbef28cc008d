"""Docstrings of public names: sections that a tool can read, true of the signature."""

import ast
import importlib
import inspect
import re
from pathlib import Path

import pytest


PACKAGES = ("effgen", "effgen.ebm", "effgen.neural_sde", "effgen.collocation")
PACKAGES += ("effgen.retrieval_cache",)


def public(package):
    """Return what a package's door exports: `from .file import name as name`."""
    module = importlib.import_module(package)
    tree = ast.parse(Path(module.__file__).read_text())
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    names = {a.name for node in imports for a in node.names if a.asname == a.name}
    found = {name: getattr(module, name) for name in sorted(names)}
    return {name: value for name, value in found.items() if callable(value)}


def section(text, *titles):
    """Return the names of a section's items, or nothing where there is none."""
    title = "|".join(titles)
    match = re.search(rf"^(?:{title}):\n((?:    .*\n|\n)+)", text + "\n", re.MULTILINE)
    return match and re.findall(r"^    \*{0,2}(\w+)(?: \(.*?\))?:", match[1], re.M)


def fault(thing):
    """Return what a docstring of a public thing lacks; nothing where it is right."""
    text = inspect.getdoc(thing) or ""
    if not text or "**Arguments" in text or "**Returns" in text:
        return "no docstring, or sections that no tool reads"
    if inspect.isclass(thing) and (issubclass(thing, Exception | Warning)):
        return None
    told, attributes = section(text, "Arguments"), section(text, "Attributes")
    taken = list(inspect.signature(thing).parameters)
    made_by_users = not attributes and not inspect.isabstract(thing)
    if callable(thing) and hasattr(thing, "__name__") and made_by_users:
        return (told, taken) if (told or []) != taken else None
    return None


@pytest.mark.parametrize("package", PACKAGES)
def test_arguments_are_those_of_the_signature(package):
    found = {name: fault(thing) for name, thing in public(package).items()}
    assert {name: wrong for name, wrong in found.items() if wrong} == {}
    assert len(found) > 20
