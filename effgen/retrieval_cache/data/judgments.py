"""Judgments on disk: folders of BEIR, and files of queries, answers, negatives."""

import functools
import json
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from numbers import Real
from pathlib import Path
from typing import Any

from .corpora import Corpus
from .lines import parsed, sound
from .tables import (
    cells,
    check_file,
    ending,
    json_line,
    json_rows,
    parquet_rows,
    rows_of,
)


Judgment = tuple[str, str, float]
Columns = tuple[str, str, tuple[str, ...]]

_USUAL = ("query", "positive", "negatives")
# How columns are called by Tevatron, by DPR, and by sentence-transformers.
_ELSEWHERE: tuple[Columns, ...] = (
    ("query", "positive_passages", ("negative_passages",)),
    ("question", "positive_ctxs", ("negative_ctxs", "hard_negative_ctxs")),
    ("anchor", "positive", ("negatives",)),
)

# What columns of negatives are called in one format or another.
_NEGATIVES = re.compile(
    r"(hard[_ ]?)?(neg|negative)(s|[_ ](ctx|doc|passage|text)s?)?([_ ]?\d+)?",
    re.IGNORECASE,
)

_UNSTATED = "not stated: that of its source"


def beir(
    folder: str | os.PathLike[str],
    split: str = "test",
    *,
    max_broken: int = 0,
    full_gain: float | None = None,
) -> Corpus:
    """Return a data set in BEIR's format: all documents, the queries of one split.

    A document is its title and its text. What is judged not to answer is a negative. A
    judgment of a text that is not there is a broken line.

    Arguments:
        folder: With `corpus.jsonl`, `queries.jsonl` and `qrels/*.tsv`, which may be
            packed (`.gz`).
        split: Which of the last.
        max_broken: How many broken lines of a file to leave out, with a warning, before
            it is an error.
        full_gain: From which gain on a document answers in full, as in `Corpus`.

    Returns:
        The corpus.

    Raises:
        FileNotFoundError: For a file that is not there.
        ValueError: For a broken line, with file and line.

    Warns:
        UserWarning: For broken lines that are left out.

    Source:
        Thakur et al. (2021).
    """
    folder = Path(folder)
    documents = _texts(_file(folder, "corpus.jsonl"), max_broken)
    queries = _texts(_file(folder, "queries.jsonl"), max_broken)
    judged = functools.partial(_judgment, documents, queries)
    judgments = parsed(_file(folder, f"qrels/{split}.tsv"), judged, max_broken)
    return Corpus.judged(
        documents,
        queries,
        judgments,
        name=f"{folder.resolve().name}, {split}",
        license=_UNSTATED,
        full_gain=full_gain,
    )


def triples(
    source: str | os.PathLike[str] | Iterable[Any],
    columns: tuple[str, str, str] = ("query", "positive", "negatives"),
    *,
    max_broken: int = 0,
) -> Corpus:
    """Return a corpus from rows of a query, what answers it, and what does not.

    Equal texts are taken for one, and a query's rows are joined. A text may be a record
    of a `title` and a `text`. A row may also be a list, `[query, positive, negative,
    ...]`, as in TSV files whose first line is one of texts: MS MARCO's triples.

    Arguments:
        source: The path of JSON lines, of JSON (`.json`), of CSV or TSV (`.csv`,
            `.tsv`), all of which may be packed (`.gz`), or of Parquet (`.parquet`); or
            a data frame of pandas, or any iterable of rows.
        columns: How these are called. The second and the third hold a text or several;
            the third may be missing. Each may be numbered or not, and one or several:
            `negatives`, `negative`, and `negative_1`, `negative_2`, ... are read
            together. Of `sentence1` and `sentence2` as query and positive, each is that
            column alone.
            By default, rows of Tevatron (`positive_passages`,
            `negative_passages`), of DPR (`question`, `positive_ctxs`, `negative_ctxs`,
            `hard_negative_ctxs`) and of sentence-transformers (`anchor`) are read too.
        max_broken: How many broken rows to leave out, with a warning, before it is an
            error.

    Returns:
        The corpus.

    Raises:
        FileNotFoundError: For a file that is not there.
        IsADirectoryError: For a folder.
        ImportError: Without pyarrow, for Parquet.
        ValueError: For a broken row, with file and row; also for a column of negatives
            by another name, which would be left out, and for a `label` of 0 in a row
            without negatives, which says that nothing answers.

    Warns:
        UserWarning: For broken rows that are left out.
    """
    named = _named(columns)
    parse, name = functools.partial(_row, named), "rows"
    if not isinstance(source, str | os.PathLike):
        numbered = enumerate(rows_of(source), 1)
        rows = sound(numbered, parse, "row ", max_broken)
    else:
        path = Path(source)
        check_file(path)
        name, rows = path.name, _rows_of(path, named, parse, max_broken)
    return Corpus.of_texts(
        (judgment for row in rows for judgment in row), name=name, license=_UNSTATED
    )


def _named(columns: tuple[str, str, str]) -> tuple[Columns, ...]:
    """Return what columns may be called, of which a row's first to fit are read."""
    given = (columns[0], columns[1], columns[2:])
    return (given, *_ELSEWHERE) if tuple(columns) == _USUAL else (given,)


def _rows_of(
    path: Path,
    named: tuple[Columns, ...],
    parse: Callable[[Any], list[Judgment]],
    max_broken: int,
) -> list[list[Judgment]]:
    kind, where = ending(path), f"{path}: row "
    if kind == ".parquet":
        likes = [_like(name) for x in named for name in (*x[:2], *x[2])]
        likes.append(lambda name: _NEGATIVES.fullmatch(name) is not None)
        wanted = lambda name: any(like(name) for like in likes)
        numbered = enumerate(parquet_rows(path, wanted), 1)
        return sound(numbered, parse, where, max_broken)
    if kind in (".csv", ".tsv"):
        header = lambda name: any(_like(x[0])(name) for x in named)
        of_cells = lambda row: parse(row.record())
        return sound(cells(path, header), of_cells, f"{path}:", max_broken)
    several = json_rows(path) if kind == ".json" else None
    if several is not None:
        return sound(enumerate(several, 1), parse, where, max_broken)
    return parsed(path, lambda line: parse(json_line(line)), max_broken)


def _file(folder: Path, name: str) -> Path:
    plain, packed = folder / name, folder / f"{name}.gz"
    if packed.exists() and not plain.exists():
        return packed
    if not plain.exists():
        there = sorted(x.name for x in plain.parent.glob("*")) or "nothing"
        raise FileNotFoundError(
            f"`{plain}` is missing, {there} is there: pass the folder of a data set in "
            "BEIR's format, and one of its splits."
        )
    return plain


def _texts(path: Path, max_broken: int) -> dict[str, str]:
    """Return the texts of a file by their ids."""
    return by_key(path, parsed(path, _text, max_broken))


def by_key(path: Path, rows: list[tuple[str, str]]) -> dict[str, str]:
    """Return the texts of a file's rows by their ids.

    Raises:
        ValueError: For two of one id.
    """
    found = dict(rows)
    if len(found) < len(rows):
        ((repeated, times),) = Counter(key for key, _ in rows).most_common(1)
        raise ValueError(f"`{path}` has {times} texts of `_id` {repeated!r}: keep one.")
    return found


def _text(line: str) -> tuple[str, str]:
    record = json.loads(line)
    if not isinstance(record["_id"], str):
        raise TypeError("`_id`, `title` and `text` are to be strings")
    return record["_id"], with_title(record)


def _judgment(
    documents: Mapping[str, str], queries: Mapping[str, str], line: str
) -> Judgment | None:
    fields = line.split("\t")
    if len(fields) != 3:
        raise ValueError(
            f"there are {len(fields)} fields: a line is a query, a document and a "
            "gain, with tabs between; TREC's four are read by `trec`"
        )
    query, document, gain = fields
    if (query, document) == ("query-id", "corpus-id"):
        return None
    return known_judgment(documents, queries, query, document, gain)


def known_judgment(
    documents: Mapping[str, str],
    queries: Mapping[str, str],
    query: str,
    document: str,
    gain: str,
) -> Judgment:
    """Return a judgment of texts that are there.

    Raises:
        ValueError: For a text that is not, or what is no gain.
    """
    for name, key, known in (("query", query, queries), ("doc", document, documents)):
        if key not in known:
            raise ValueError(f"there is no {name} {key!r}")
    if not math.isfinite(float(gain)):
        raise ValueError(f"the gain is {gain}")
    return query, document, float(gain)


def _row(named: tuple[Columns, ...], record: Any) -> list[Judgment]:
    """Return what a row of triples says."""
    if isinstance(record, list | tuple):
        if len(record) < 2:
            raise ValueError("a row is `[query, positive, negative, ...]`")
        query, positive, *negative = record
    elif isinstance(record, Mapping):
        query_name, positive_name, negative_names = _fitting(named, record)
        names = (query_name, positive_name, *negative_names)
        query, positive = record[query_name], _positives(record, names)
        negative = [x for name in negative_names for x in _joined(record, name, names)]
        _check_read(record, names)
        if not negative:
            _check_labels(record)
    else:
        raise TypeError(f"a row is a {type(record).__name__}: pass a record or a list")
    asked, positives, negatives = map(_several, (query, positive, negative))
    if len(asked) != 1:
        raise ValueError(f"there are {len(asked)} queries: pass one a row")
    if not positives:
        raise ValueError("nothing answers")
    answers = [(asked[0], text, 1.0) for text in positives]
    return answers + [(asked[0], text, 0.0) for text in negatives]


def _fitting(named: tuple[Columns, ...], record: Mapping[str, Any]) -> Columns:
    """Return the first columns of which a record has query and positives."""
    for found in named:
        query, positive, _ = found
        if query in record and any(map(_like(positive), record)):
            return found
    raise ValueError(
        f"there are no columns {named[0][:2]} in {list(record)}: name those of the "
        "query, of what answers, and of negatives in `columns`"
    )


def _positives(record: Mapping[str, Any], names: tuple[str, ...]) -> list[str]:
    """Return the texts of the columns of what answers."""
    query, positive, *negatives = names
    among = any(map(_like(positive), (query, *negatives)))
    # Of `sentence1` and `sentence2`, each is what it is named as, and no other is it.
    if among and positive in record:
        return _several(record[positive])
    return _joined(record, positive, names)


def _joined(
    record: Mapping[str, Any], column: str, names: tuple[str, ...]
) -> list[str]:
    """Return the texts of a column and of those that are its number or its plural.

    A column that is named as another is that.
    """
    named = sorted(filter(_like(column), record), key=_order)
    own = [name for name in named if name == column or name not in names]
    return [text for name in own for text in _several(record[name])]


def _like(column: str) -> Callable[[str], bool]:
    """Return whether a name is a column's, in the singular, the plural, or numbered."""
    stem = re.escape(re.sub(r"(_?\d+|(?<=\w{3})s)$", "", column))
    found = re.compile(rf"{stem}(s|_?\d+)?")
    return lambda name: name == column or found.fullmatch(name) is not None


def _order(name: str) -> tuple[int, str]:
    number = re.search(r"\d+$", name)
    return (int(number.group()) if number else -1, name)


_LABELS = ("label", "labels", "score")
_ZEROS = ("0", "0.0", "False", "false")


def _check_labels(record: Mapping[str, Any]) -> None:
    """Raise `ValueError` where a pair is labeled as one that does not answer."""
    for name in _LABELS:
        said = record.get(name)
        if isinstance(said, Real | str) and str(said).strip() in _ZEROS:
            raise ValueError(
                f"`{name}` is {said!r}, so that the text does not answer: pass it as a "
                "negative of its query, or judgments by `Corpus.of_texts`"
            )


def _check_read(record: Mapping[str, Any], names: tuple[str, ...]) -> None:
    """Raise `ValueError` for texts of negatives that no column has."""
    read = [_like(name) for name in names]
    for name, field in record.items():
        named = any(like(name) for like in read)
        if not named and _NEGATIVES.fullmatch(name) and _has_text(field):
            raise ValueError(
                f"`{name}` is in none of the `columns` {names}: pass it as the "
                "third, or leave it out of the rows"
            )


def _has_text(field: Any) -> bool:
    single = isinstance(field, str | Mapping) or not hasattr(field, "__iter__")
    several = [field] if single else field
    return any(isinstance(x, str | dict) for x in several)


def _several(field: Any) -> list[str]:
    single = isinstance(field, str | Mapping)
    texts = [] if field is None else [field] if single else list(field)
    texts = [with_title(x) if isinstance(x, Mapping) else x for x in texts]
    if not all(isinstance(text, str) and text.strip() for text in texts):
        raise TypeError(f"no text: {field!r}")
    return texts


def with_title(record: Mapping[str, Any]) -> str:
    """Return a text with its title before it."""
    title, text = record.get("title") or "", record["text"]
    if not (isinstance(title, str) and isinstance(text, str)):
        raise TypeError("`title` and `text` are to be strings")
    return f"{title} {text}".strip()
