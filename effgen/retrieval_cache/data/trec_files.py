"""Collections as TREC and MS MARCO lay them out: texts by id, judgments, runs."""

import functools
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .corpora import Corpus
from .judgments import Judgment, by_key, known_judgment, with_title
from .lines import parsed
from .tables import check_file, ending


Texts = str | os.PathLike[str] | Mapping[str, str]

# What ids and texts are called by BEIR, Tevatron, and Pyserini.
_KEYS = ("_id", "docid", "query_id", "id")
_TEXTS = ("text", "contents", "query")


def trec(
    documents: Texts,
    queries: Texts,
    qrels: str | os.PathLike[str],
    *,
    run: str | os.PathLike[str] | None = None,
    max_broken: int = 0,
    full_gain: float | None = None,
) -> Corpus:
    """Return a corpus of texts by id, judged as TREC does it.

    A line of `qrels` is `query iteration document grade`; a grade above zero answers,
    another makes a negative. A line of a run is `query Q0 document rank score tag`. All
    files may be packed (`.gz`).

    Arguments:
        documents: Texts by id, or the path of a TSV file of ids and texts (`.tsv`: MS
            MARCO's `collection.tsv`) or of JSON lines (`_id`, `docid`, `query_id` or
            `id`; `text`, `contents` or `query`, and a `title`).
        queries: The same of queries (MS MARCO's `queries.train.tsv`).
        qrels: The path of judgments.
        run: The path of a ranking. What it ranks and no line of `qrels` says to answer
            are negatives, the best first, after those judged so.
        max_broken: How many broken lines of a file to leave out, with a warning, before
            it is an error.
        full_gain: From which gain on a document answers in full, as in `Corpus`.

    Returns:
        The corpus.

    Raises:
        FileNotFoundError: For a file that is not there.
        IsADirectoryError: For a folder of texts.
        ValueError: For a broken line, with file and line, also for a text that is not
            there.

    Warns:
        UserWarning: For broken lines that are left out.
    """
    known = _texts(documents, max_broken), _texts(queries, max_broken)
    judged = parsed(Path(qrels), functools.partial(_judgment, *known), max_broken)
    if run is not None:
        ranked = parsed(Path(run), functools.partial(_ranked, *known), max_broken)
        # As trec_eval: by score, whatever the rank.
        ranked.sort(key=lambda row: -row[1])
        judged += [judgment for judgment, _ in ranked]
    name, license = Path(qrels).name, "not stated: that of its source"
    return Corpus.judged(
        *known, judged, name=name, license=license, full_gain=full_gain
    )


def _texts(source: Texts, max_broken: int) -> Mapping[str, str]:
    if isinstance(source, Mapping):
        return source
    path = Path(source)
    check_file(path)
    parse = _of_tabs if ending(path) == ".tsv" else _of_json
    return by_key(path, parsed(path, parse, max_broken))


def _of_tabs(line: str) -> tuple[str, str]:
    fields = line.split("\t")
    if len(fields) != 2:
        raise ValueError(
            f"there are {len(fields)} fields: a line is an id and a text, with a tab "
            "between; pass others as a mapping from ids to texts"
        )
    return fields[0], fields[1]


def _of_json(line: str) -> tuple[str, str]:
    record = json.loads(line)
    key, text = (_first(record, names) for names in (_KEYS, _TEXTS))
    return str(record[key]), with_title({**record, "text": record[text]})


def _first(record: Mapping[str, Any], names: tuple[str, ...]) -> str:
    found = next((name for name in names if name in record), None)
    if found is None:
        raise ValueError(f"there is none of {names} in {list(record)}")
    return found


def _judgment(
    documents: Mapping[str, str], queries: Mapping[str, str], line: str
) -> Judgment:
    fields = line.split()
    if len(fields) != 4:
        raise ValueError(
            f"there are {len(fields)} fields: a line is `query iteration document "
            "grade`; BEIR's three are read by `beir`"
        )
    query, _, document, grade = fields
    return known_judgment(documents, queries, query, document, grade)


def _ranked(
    documents: Mapping[str, str], queries: Mapping[str, str], line: str
) -> tuple[Judgment, float]:
    """Return that a ranked document does not answer, and its score."""
    fields = line.split()
    if len(fields) != 6:
        raise ValueError(
            f"there are {len(fields)} fields: a line is `query Q0 document rank score "
            "tag`"
        )
    query, _, document, _, score, _ = fields
    if not math.isfinite(float(score)):
        raise ValueError(f"the score is {score}")
    return known_judgment(documents, queries, query, document, "0"), float(score)
