"""Descriptions of Debian's packages: a short one to find the long one."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from .corpora import Corpus
from .lines import opened, sound


_FETCH = (
    "`mkdir -p DIR/partial`, then `apt-get -o Acquire::Languages=en "
    "-o Dir::State::Lists=DIR update`"
)
_CONTINUED = " "


def descriptions(path: str | os.PathLike[str], *, max_broken: int = 0) -> Corpus:
    """Return the task to find a package's long description by its short one.

    There are some 45,000 pairs. Packages of one source are near-duplicates. Of several
    with the same short or the same long description the first is taken. The lists
    change daily, so record the `digest`. To have them on Debian, without being
    root: `mkdir -p DIR/partial`, then `apt-get -o Acquire::Languages=en
    -o Dir::State::Lists=DIR update`.

    Arguments:
        path: Apt's lists, or one of their `*Translation-en*` files, packed or not, or
            what `apt-cache dumpavail` prints.
        max_broken: How many broken lines of a file to leave out, with a warning, before
            it is an error.

    Returns:
        The corpus.

    Raises:
        FileNotFoundError: For a file that is not there.
        ValueError: For files without long descriptions, and for a broken line, named.

    Warns:
        UserWarning: For broken lines that are left out.
    """
    path = Path(path)
    files = sorted(path.glob("*Translation-en*")) if path.is_dir() else [path]
    pairs = _distinct(pair for file in files for pair in _described(file, max_broken))
    if not pairs:
        raise ValueError(f"`path`, `{path}`, has no long descriptions: {_FETCH}.")
    return Corpus.of_texts(
        ((short, long, 1.0) for short, long in pairs),
        name="Debian, short descriptions to long ones",
        license="that of each package, mostly free",
    )


def paragraphs(lines: Iterable[tuple[str, str]]) -> Iterator[dict[str, list[str]]]:
    """Yield the paragraphs of a control file: fields by name, each of its lines.

    Arguments:
        lines: As for `line_of`.

    Source:
        Debian Policy, section 5.1.

    >>> lines = [b"Package: a", b"Description: b", b" c", b" .", b"", b"", b"X:y"]
    >>> list(paragraphs(map(line_of, lines)))
    [{'Package': ['a'], 'Description': ['b', 'c', '.']}, {'X': ['y']}]
    """
    fields: dict[str, list[str]] = {}
    last: list[str] = []
    for name, value in lines:
        if not name:
            if fields:
                yield fields
            fields, last = {}, []
        elif name == _CONTINUED:
            last.append(value)
        else:
            last = fields[name] = [value]
    if fields:
        yield fields


def line_of(line: bytes) -> tuple[str, str]:
    """Return a field's name and value; a blank for a name, where the last goes on.

    Neither, of a line that ends a paragraph.

    Raises:
        ValueError: For a line that is nothing of these.

    >>> line_of(b"Package: a"), line_of(b" of a kind"), line_of(b"")
    (('Package', 'a'), (' ', 'of a kind'), ('', ''))
    """
    text = line.decode("utf-8")
    if not text.strip():
        return "", ""
    if text[0] in " \t":
        return _CONTINUED, text.strip()
    name, colon, value = text.partition(":")
    if not colon:
        raise ValueError("no field, and continues none")
    return name, value.strip()


def _described(path: Path, max_broken: int) -> Iterator[tuple[str, str]]:
    """Yield the short and the long description of each package that has both."""
    with opened(path) as file:
        read = sound(enumerate(file, 1), line_of, f"{path}:", max_broken)
    for fields in paragraphs(read):
        lines = fields.get("Description-en", fields.get("Description", [""]))
        short, long = lines[0], " ".join(x for x in lines[1:] if x != ".")
        if short and long:
            yield short, long


def _distinct(pairs: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return the pairs of which neither has been seen before."""
    found, shorts, longs = [], set(), set()
    for short, long in pairs:
        if short not in shorts and long not in longs:
            found.append((short, long))
            shorts.add(short)
            longs.add(long)
    return found
