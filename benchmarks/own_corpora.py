"""Corpora that no loader of ours knows: docstrings of packages, and a dictionary."""

import ast
import gzip
import importlib.util
import itertools
import os
import re
import string
from collections.abc import Iterator
from pathlib import Path

from effgen import retrieval_cache as rc


# All of them are dependencies of ours, or come with these.
PACKAGES = ("jax", "numpy", "scipy", "sklearn", "pandas", "statsmodels", "matplotlib")
SHORTEST, LONGEST = 40, 600  # characters of a document
_WORDS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+")
_DIGITS = string.ascii_uppercase + string.ascii_lowercase + string.digits + "+/"


def docstrings() -> rc.Corpus:
    """Return docstrings, to find by the package and the words of a public name."""
    rows = itertools.chain.from_iterable(map(_documented, PACKAGES))
    return rc.triples([{"query": q, "positive": text} for q, text in rows])


def _documented(package: str) -> Iterator[tuple[str, str]]:
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    for path in sorted(Path(spec.origin).parent.rglob("*.py")):
        if "test" not in path.as_posix():
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                yield from _named(package, node)


def _named(package: str, node: ast.AST) -> Iterator[tuple[str, str]]:
    if not isinstance(node, ast.FunctionDef | ast.ClassDef) or node.name[0] == "_":
        return
    text = " ".join((ast.get_docstring(node) or "").split())[:LONGEST]
    if len(text) >= SHORTEST:
        yield f"{package} {' '.join(_WORDS.findall(node.name)).lower()}", text


def dictionary() -> rc.Corpus:
    """Return entries of the GNU dictionary of English, to find by their headwords.

    `GCIDE` is the folder of `gcide.index` and `gcide.dict.dz`: that of Debian's package
    dict-gcide, by `apt-get download dict-gcide` and `dpkg-deb -x`.
    """
    folder = Path(os.environ.get("GCIDE", "/usr/share/dictd"))
    if not (folder / "gcide.index").exists():
        raise FileNotFoundError(f"`{folder}` has no gcide.index: {dictionary.__doc__}")
    body = gzip.open(folder / "gcide.dict.dz").read()
    lines = (folder / "gcide.index").read_text("utf-8", "replace").splitlines()
    rows = {start: (head, size) for head, start, size in map(_indexed, lines)}
    found = [(head, _entry(body[i : i + n])) for i, (head, n) in rows.items()]
    kept = [(head, text) for head, text in found if len(text) >= SHORTEST]
    return rc.triples([{"query": head, "positive": text} for head, text in kept])


def _indexed(line: str) -> tuple[str, int, int]:
    head, start, size = line.split("\t")[:3]
    return head, _number(start), _number(size)


def _number(digits: str) -> int:
    total = 0
    for digit in digits:
        total = 64 * total + _DIGITS.index(digit)
    return total


def _entry(body: bytes) -> str:
    """Return an entry's text without its first line, which is the headword."""
    text = body.decode("utf-8", "replace").partition("\n")[2]
    return " ".join(re.sub(r"\[[^\]]*\]", " ", text).split())[:LONGEST]
