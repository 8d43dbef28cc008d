"""Corpora: documents, queries, and which documents answer each query."""

import dataclasses
import hashlib
import json
import math
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Int

from .relevance import Numbers, Relevant, filled_rows, padded


Key = TypeVar("Key", bound=Hashable)


@dataclasses.dataclass(frozen=True, eq=False)
class Corpus:
    """Texts to search, and queries whose answers are known.

    Arguments:
        name: What the corpus is called.
        license: What the texts may be used for.
        documents: Texts; their places are their numbers.
        queries: Texts; their places are their numbers.
        relevant: For each query, the numbers of the documents that answer it.
        gains: How well each of these does, one everywhere by default. Below `full_gain`
            it answers in part: it is not trained on, and no negative either.
        negatives: For each query, the numbers of documents that resemble answers and
            are none.
        full_gain: From which gain on a document answers in full. By default half of the
            largest of all gains, and one at least: of grades 0 to 3 what has a 2 or a
            3, as TREC's deep learning tracks count.

    Raises:
        TypeError: For values that are no texts, or no numbers.
        ValueError: For fields that do not fit each other.
    """

    name: str
    license: str
    documents: Sequence[str] = dataclasses.field(repr=False)
    queries: Sequence[str] = dataclasses.field(repr=False)
    relevant: Numbers = dataclasses.field(repr=False)
    gains: Sequence[tuple[float, ...]] | None = dataclasses.field(
        default=None, repr=False
    )
    negatives: Numbers | None = dataclasses.field(default=None, repr=False)
    full_gain: float | None = dataclasses.field(default=None, repr=False)

    def __post_init__(self) -> None:
        """Raise `ValueError` for fields that do not fit each other."""
        for name in ("documents", "queries"):
            _check_texts(name, getattr(self, name))
        _check_numbers("relevant", self.relevant, self)
        if self.negatives is not None:
            _check_numbers("negatives", self.negatives, self)
        if self.gains is not None:
            _check_gains(self.gains, self.relevant)
        # Held as a number, so that parts of a corpus go by the whole one's.
        object.__setattr__(self, "full_gain", self._full_gain())
        for query, answers in enumerate(self.full):
            if not len(answers):
                raise ValueError(
                    f"no document answers query {query} in full, with a gain of "
                    f"{self.full_gain:g}: leave the query out, or pass the least gain "
                    "of a full answer as `full_gain`."
                )

    @classmethod
    def judged(
        cls,
        documents: Mapping[Key, str],
        queries: Mapping[Key, str],
        judgments: Iterable[tuple[Key, Key, float]],
        *,
        name: str,
        license: str,
        full_gain: float | None = None,
    ) -> "Corpus":
        """Return a corpus of texts by any keys, and judgments of pairs of them.

        Queries that nothing answers are left out. Of repeated judgments the best
        counts.

        Arguments:
            documents: Texts by key.
            queries: Texts by key.
            judgments: Each a query's key, a document's, and a gain. Above zero the
                document answers, else it is a negative.
            name: What the corpus is called.
            license: What the texts may be used for.
            full_gain: As of the class.

        Raises:
            KeyError: For a judgment of a text that is not there.
            ValueError: For a gain that is not finite, and if no query is left, or
                nothing answers one in full.
        """
        numbers = {key: i for i, key in enumerate(documents)}
        gains: dict[Key, dict[int, float]] = {key: {} for key in queries}
        for query, document, gain in judgments:
            row, number = gains[query], numbers[document]
            if not math.isfinite(gain):
                raise ValueError(
                    f"the gain of document {document!r} for query {query!r} is {gain}: "
                    "pass a number, above zero where it answers."
                )
            row[number] = max(float(gain), row.get(number, float(gain)))
        kept = {
            key: row for key, row in gains.items() if max(row.values(), default=0) > 0
        }
        rows = kept.values()
        graded = [tuple(g for g in row.values() if g > 0) for row in rows]
        worse = [tuple(i for i, g in row.items() if g <= 0) for row in rows]
        return cls(
            name,
            license,
            list(documents.values()),
            [queries[key] for key in kept],
            [tuple(i for i, g in row.items() if g > 0) for row in rows],
            graded if any(g != 1 for row in graded for g in row) else None,
            worse if any(worse) else None,
            full_gain,
        )

    @classmethod
    def of_texts(
        cls,
        judgments: Iterable[tuple[str, str, float]],
        documents: Iterable[str] = (),
        *,
        name: str,
        license: str,
        full_gain: float | None = None,
    ) -> "Corpus":
        """Return a corpus of judged texts, equal ones taken for one.

        Arguments:
            judgments: Each a query, a document, and a gain, as in `judged`.
            documents: More documents, which come first.
            name: What the corpus is called.
            license: What the texts may be used for.
            full_gain: As of the class.

        Raises:
            ValueError: As `judged`.
        """
        judgments = list(judgments)
        found = dict.fromkeys(documents) | dict.fromkeys(d for _, d, _ in judgments)
        asked = dict.fromkeys(q for q, _, _ in judgments)
        return cls.judged(
            {text: text for text in found},
            {text: text for text in asked},
            judgments,
            name=name,
            license=license,
            full_gain=full_gain,
        )

    def _full_gain(self) -> float:
        if self.full_gain is not None:
            return _checked_gain(self.full_gain)
        gains = (float(gain) for row in self.gains or () for gain in row)
        return max(1.0, max(gains, default=1.0) / 2)

    @property
    def full(self) -> Numbers:
        """For each query, the numbers of the documents that answer it in full."""
        least = self._full_gain()
        if self.gains is None:  # all are 1
            return self.relevant if least <= 1 else [() for _ in self.relevant]
        rows = zip(self.relevant, self.gains)
        return [tuple(i for i, g in zip(*row) if g >= least) for row in rows]

    def digest(self) -> str:
        """Return the SHA-256 of all but name and license, which tells corpora apart.

        Returns:
            Hexadecimal digits.
        """
        fields = (self.documents, self.queries, self.relevant, self.gains)
        # One is the usual, and was no part of a digest before there were others.
        least = [] if self._full_gain() == 1 else [self.full_gain]
        content = json.dumps([*fields, self.negatives, *least], default=_plain)
        return hashlib.sha256(content.encode()).hexdigest()


def split(
    corpus: Corpus, held_out: int = 2_000, seed: int = 0
) -> tuple[Corpus, Corpus]:
    """Return a corpus to train on and one to test on: other queries, all documents.

    Arguments:
        corpus: The corpus.
        held_out: How many queries to test on.
        seed: Which these are depends on their text and the seed alone: the same on
            every machine, and nearly the same for a corpus that has grown.

    Raises:
        ValueError: Unless both have a query.
    """
    whole = isinstance(held_out, int | np.integer)
    if not whole or not 1 <= held_out < len(corpus.queries):
        raise ValueError(
            f"`held_out` is {held_out} and there are {len(corpus.queries)} queries: "
            "pass at least one, and leave one to train on."
        )
    order = _drawn_order(corpus.queries, seed)
    test, train = sorted(order[:held_out]), sorted(order[held_out:])
    return _asking(corpus, train), _asking(corpus, test)


def subset(corpus: Corpus, num_documents: int, seed: int = 0) -> Corpus:
    """Return a corpus of some documents, and of the queries that these answer in full.

    Arguments:
        corpus: The corpus.
        num_documents: How many documents to keep.
        seed: Which are kept depends on their text and the seed alone, as in `split`.

    Raises:
        ValueError: For more documents than there are, or if no query is left.
    """
    whole = isinstance(num_documents, int | np.integer)
    if not whole or not 1 <= num_documents <= len(corpus.documents):
        raise ValueError(
            f"`num_documents` is {num_documents} and there are "
            f"{len(corpus.documents)}: pass one of 1 to as many."
        )
    kept = sorted(_drawn_order(corpus.documents, seed)[:num_documents])
    left = set(kept)
    said = [(i, j, gain) for i, j, gain in judgments(corpus) if j in left]
    least = corpus.full_gain or 1
    full = {i for i, _, gain in said if gain >= least}
    return Corpus.judged(
        {j: corpus.documents[j] for j in kept},
        {i: text for i, text in enumerate(corpus.queries) if i in full},
        [judgment for judgment in said if judgment[0] in full],
        name=f"{corpus.name}, {num_documents} documents",
        license=corpus.license,
        full_gain=corpus.full_gain,
    )


def with_negatives(corpus: Corpus, numbers: Int[Any, "queries any"]) -> Corpus:
    """Return the corpus with other negatives.

    Arguments:
        corpus: The corpus.
        numbers: Documents' numbers, `(queries, any)`, as in `mined`; -1 is none.

    Raises:
        TypeError: For values that are not numbers.
        ValueError: For another number of rows, or numbers of no document.
    """
    rows = np.asarray(numbers).tolist()
    found = [tuple(i for i in row if i != -1) for row in rows]
    return dataclasses.replace(corpus, negatives=found)


def answers(corpus: Corpus) -> Relevant:
    """Return what `evaluate` is to find: the documents that answer in full.

    Arguments:
        corpus: The corpus.
    """
    return Relevant(padded(corpus.full))  # pyright: ignore[reportArgumentType]


def graded(corpus: Corpus) -> Relevant:
    """Return what `evaluate` is to find for nDCG: partial answers too, and their gains.

    Arguments:
        corpus: The corpus. Measures other than nDCG take any gain for an answer.
    """
    if corpus.gains is None:
        return answers(corpus)
    gains = filled_rows(corpus.gains, None, 0, np.float32)
    return Relevant(padded(corpus.relevant), gains)  # pyright: ignore[reportArgumentType]


def judgments(corpus: Corpus) -> Iterator[tuple[int, int, float]]:
    """Yield a query's number, a document's, and its gain, zero for a negative."""
    for i, row in enumerate(corpus.relevant):
        gains = (1.0,) * len(row) if corpus.gains is None else corpus.gains[i]
        yield from ((i, j, gain) for j, gain in zip(row, gains))
    for i, row in enumerate(corpus.negatives or ()):
        yield from ((i, j, 0.0) for j in row)


def _asking(corpus: Corpus, queries: Sequence[int]) -> Corpus:
    """Return the corpus with some of its queries."""
    names = ("queries", "relevant", "gains", "negatives")
    fields = {name: getattr(corpus, name) for name in names}
    taken = {
        name: None if field is None else [field[i] for i in queries]
        for name, field in fields.items()
    }
    return dataclasses.replace(corpus, **taken)


def _drawn_order(texts: Sequence[str], seed: int) -> list[int]:
    """Return the texts' numbers in an order drawn by their content.

    Of digests, as NumPy does not promise that its generators stay the same.
    """
    digests = [_digest(f"{seed} {text}") for text in texts]
    return sorted(range(len(texts)), key=digests.__getitem__)


def _digest(text: str) -> bytes:
    content = text.encode("utf-8", "surrogatepass")
    return hashlib.blake2b(content, digest_size=16).digest()


def _check_texts(name: str, texts: Sequence[str]) -> None:
    if isinstance(texts, str):
        raise TypeError(f"`{name}` is one text: pass a list of them.")
    if not len(texts):
        raise ValueError(f"`{name}` is empty: pass at least one text.")
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"`{name}` has {str(text)[:40]!r} at {i}: pass texts.")


def _check_numbers(name: str, rows: Numbers, corpus: Corpus) -> None:
    if len(rows) != len(corpus.queries):
        raise ValueError(
            f"`{name}` has {len(rows)} rows and there are {len(corpus.queries)} "
            "queries: pass one row a query."
        )
    num = len(corpus.documents)
    for query, row in enumerate(rows):
        if not hasattr(row, "__iter__") or isinstance(row, str):
            raise TypeError(
                f"`{name}` of query {query} is {row!r}: pass a tuple of numbers for "
                "each query."
            )
        for number in row:
            if not isinstance(number, int | np.integer) or isinstance(number, bool):
                raise TypeError(
                    f"`{name}` of query {query} has {number!r}: pass documents' "
                    "numbers, their places in `documents`."
                )
            if not 0 <= number < num:
                raise ValueError(
                    f"`{name}` of query {query} has {number} and there are {num} "
                    "documents: number them from zero."
                )


def _check_gains(gains: Sequence[tuple[float, ...]], relevant: Numbers) -> None:
    if [len(row) for row in gains] != [len(row) for row in relevant]:
        raise ValueError(
            "the rows of `gains` and `relevant` differ in length: pass one gain for "
            "each document that answers."
        )
    if not all(0 < gain < math.inf for row in gains for gain in row):
        raise ValueError(
            "`gains` are not all positive and finite: leave out what does not answer, "
            "or pass it in `negatives`."
        )


def _checked_gain(gain: Any) -> float:
    if isinstance(gain, bool) or not isinstance(gain, int | float) or not gain > 0:
        raise ValueError(f"`full_gain` is {gain!r}: pass a gain above zero, such as 2.")
    return float(gain)


def _plain(number: np.generic) -> float:
    return number.item()
