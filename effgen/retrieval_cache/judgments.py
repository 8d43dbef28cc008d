"""Judgments on disk: folders of BEIR, and files of queries, answers, negatives."""

import functools
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from .corpora import Corpus
from .lines import parsed, sound


Judgment = tuple[str, str, float]

# What columns of negatives are called in one format or another.
_NEGATIVES = re.compile(
    r"(hard_)?(neg|negative)(s|_ctxs|_docs|_passages|_texts)?(_?\d+)?", re.IGNORECASE
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

    A document is its title and its text. What is judged not to answer is a negative.

    **Arguments:** `folder`, with `corpus.jsonl`, `queries.jsonl` and `qrels/*.tsv`,
    which may be packed (`.gz`); `split`, which of the last; `max_broken`, how many
    broken lines of a file to leave out, with a warning, before it is an error. A
    judgment of a text that is not there is broken. `full_gain`, as of `Corpus`.

    **Raises:** `FileNotFoundError`; `ValueError` that names file and line.

    **Source:** Thakur et al. (2021).
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

    Equal texts are taken for one, and a query's rows are joined.

    **Arguments:** `source`, the path of JSON lines, which may be packed (`.gz`), or of
    Parquet (`.parquet`, for which pyarrow is needed), or any iterable of rows;
    `columns`, how these are called: the second and the third hold a text or several,
    the third may be missing. Each may be numbered or not, and one or several:
    `negatives`, `negative`, and `negative_1`, `negative_2`, ... are read together. A
    row may also be a list, `[query, positive, negative, ...]`. `max_broken`, as of
    `beir`.

    **Raises:** `FileNotFoundError`; `ValueError` that names file and row, also for a
    column of negatives by another name, which would be left out.
    """
    parse, name = functools.partial(_row, columns), "rows"
    if not isinstance(source, str | os.PathLike):
        rows = sound(source, parse, "row ", max_broken)
    else:
        path = Path(source)
        name, rows = path.name, _rows_of(path, columns, parse, max_broken)
    return Corpus.of_texts(
        (judgment for row in rows for judgment in row), name=name, license=_UNSTATED
    )


def _rows_of(
    path: Path,
    columns: tuple[str, str, str],
    parse: Callable[[Any], list[Judgment]],
    max_broken: int,
) -> list[list[Judgment]]:
    if path.suffix == ".parquet":
        return sound(_parquet(path, columns), parse, f"{path}: row ", max_broken)
    return parsed(path, lambda line: parse(json.loads(line)), max_broken)


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
    rows = parsed(path, _text, max_broken)
    found = dict(rows)
    if len(found) < len(rows):
        ((repeated, times),) = Counter(key for key, _ in rows).most_common(1)
        raise ValueError(f"`{path}` has {times} texts of `_id` {repeated!r}: keep one.")
    return found


def _text(line: str) -> tuple[str, str]:
    record = json.loads(line)
    key, title, text = record["_id"], record.get("title") or "", record["text"]
    if not all(isinstance(x, str) for x in (key, title, text)):
        raise TypeError("`_id`, `title` and `text` are to be strings")
    return key, f"{title} {text}".strip()


def _judgment(
    documents: Mapping[str, str], queries: Mapping[str, str], line: str
) -> Judgment | None:
    query, document, gain = line.split("\t")
    if (query, document) == ("query-id", "corpus-id"):
        return None
    for name, key, known in (("query", query, queries), ("doc", document, documents)):
        if key not in known:
            raise ValueError(f"there is no {name} {key!r}")
    return query, document, float(gain)


def _row(columns: tuple[str, str, str], record: Any) -> list[Judgment]:
    """Return what a row of triples says."""
    if isinstance(record, list | tuple):
        query, positive, *negative = record
    else:
        query = record[columns[0]]
        positive, negative = (_joined(record, name) for name in columns[1:])
        _check_read(record, columns)
    (query,), positives, negatives = map(_several, (query, positive, negative))
    if not positives:
        raise ValueError("nothing answers")
    answers = [(query, text, 1.0) for text in positives]
    return answers + [(query, text, 0.0) for text in negatives]


def _joined(record: Mapping[str, Any], column: str) -> list[str]:
    """Return the texts of a column and of those that are its number or its plural."""
    named = sorted(filter(_like(column), record), key=_order)
    return [text for name in named for text in _several(record[name])]


def _like(column: str) -> Callable[[str], bool]:
    """Return whether a name is a column's, in the singular, the plural, or numbered."""
    stem = re.escape(re.sub(r"(_?\d+|s)$", "", column))
    found = re.compile(rf"{stem}(s|_?\d+)?")
    return lambda name: name == column or found.fullmatch(name) is not None


def _order(name: str) -> tuple[int, str]:
    number = re.search(r"\d+$", name)
    return (int(number.group()) if number else -1, name)


def _check_read(record: Mapping[str, Any], columns: tuple[str, str, str]) -> None:
    """Raise `ValueError` for texts of negatives that no column has."""
    read = [_like(name) for name in columns]
    for name, field in record.items():
        named = any(like(name) for like in read)
        if not named and _NEGATIVES.fullmatch(name) and _has_text(field):
            raise ValueError(
                f"`{name}` is in none of the `columns` {columns}: pass it as the "
                "third, or leave it out of the rows"
            )


def _has_text(field: Any) -> bool:
    several = field if isinstance(field, list | tuple) else [field]
    return any(isinstance(x, str | dict) for x in several)


def _several(field: Any) -> list[str]:
    texts = [] if field is None else [field] if isinstance(field, str) else list(field)
    if not all(isinstance(text, str) and text.strip() for text in texts):
        raise TypeError(f"no text: {field!r}")
    return texts


def _parquet(path: Path, columns: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    with _pyarrow().ParquetFile(path) as file:
        read = [*map(_like, columns), _NEGATIVES.fullmatch]
        names = file.schema_arrow.names
        there = [name for name in names if any(like(name) for like in read)]
        for batch in file.iter_batches(columns=there):
            yield from batch.to_pylist()


def _pyarrow() -> Any:
    try:
        import pyarrow.parquet as parquet  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError(
            "Parquet needs pyarrow: `pip install pyarrow`, or convert to JSON lines."
        ) from error
    return parquet
