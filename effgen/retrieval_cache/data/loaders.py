"""Batches of pairs from a corpus: all of it as arrays, or drawn by grain."""

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Int, PyTree

from effgen.core.data.ragged import Ragged
from effgen.core.outcome.extras import needed

from .corpora import Corpus, judgments
from .pairs import Pairs


if TYPE_CHECKING:
    import grain

Tokenize = Callable[[Sequence[str]], PyTree]


class Example(NamedTuple):
    """What one row of a batch is made of: numbers of texts in a corpus."""

    query: int
    document: int
    negatives: tuple[int, ...]


def merged(corpus: Corpus, tokenize: Tokenize) -> Corpus:
    """Return a corpus in which documents of the same tokens are one, the first.

    Where a tokenizer cuts, documents that begin alike are the same to a model. So it
    cannot be asked which of them answers.

    Arguments:
        corpus: The corpus.
        tokenize: From texts to a pytree of arrays, `(texts, ...)`.

    Returns:
        The corpus, its documents numbered anew.
    """
    rows = jax.tree.leaves(tokenize(corpus.documents))
    contents = [b"".join(parts) for parts in zip(*(map(_bytes, x) for x in rows))]
    first: dict[bytes, int] = {}
    own = [first.setdefault(content, i) for i, content in enumerate(contents)]
    return Corpus.judged(
        {i: corpus.documents[i] for i in first.values()},
        dict(enumerate(corpus.queries)),
        [(query, own[document], gain) for query, document, gain in judgments(corpus)],
        name=corpus.name,
        license=corpus.license,
        full_gain=corpus.full_gain,
    )


def pairs_of(
    corpus: Corpus,
    tokenize: Tokenize,
    tokenize_queries: Tokenize | None = None,
    *,
    num_negatives: int = 0,
) -> Pairs:
    """Return every query with every document that answers it in full, one pair a row.

    For `effgen.Minibatches(pairs_of(corpus, tokenize), batch_size)`, or
    `effgen.HostMinibatches`, which leaves the arrays where they are.

    Arguments:
        corpus: The corpus.
        tokenize: From texts to a pytree of arrays, `(texts, ...)`.
        tokenize_queries: The same for queries; by default `tokenize`.
        num_negatives: How many of a query's negatives go with each of its pairs, its
            first. A query that has fewer is filled up with the document that answers,
            which counts as nothing.

    Returns:
        All pairs, with what is `known` to answer each query.

    Raises:
        ValueError: If no query has as many negatives.
    """
    _check_negatives(corpus, num_negatives)
    examples = [
        _example(
            query, document, _negatives(corpus, query)[:num_negatives], num_negatives
        )
        for query, answers in enumerate(corpus.full)
        for document in answers
    ]
    known = Ragged.of(corpus.relevant)
    return assembled(corpus, known.of_rows, tokenize, tokenize_queries, examples)


def grain_pairs(
    corpus: Corpus,
    tokenize: Tokenize,
    batch_size: int,
    tokenize_queries: Tokenize | None = None,
    *,
    num_negatives: int = 0,
    seed: int = 0,
) -> "grain.MapDataset[Pairs]":
    """Return batches without end as a grain dataset, tokenized as they are read.

    Each epoch has every query at most once, in another order, with one of the documents
    that answer it and some of its negatives, drawn anew. A batch depends on the seed
    and its place alone, so that runs resume exactly at any step.

    Arguments:
        corpus: The corpus.
        tokenize: From texts to a pytree of arrays, `(texts, ...)`.
        batch_size: Queries in a batch.
        tokenize_queries: The same for queries; by default `tokenize`.
        num_negatives: How many of a query's negatives go with each of its pairs, filled
            up as in `pairs_of`.
        seed: Of the order and what is drawn, below 2^32.

    Returns:
        A dataset of `Pairs`.

    Raises:
        ValueError: For fewer queries than `batch_size`, or if no query has
            `num_negatives` negatives.
        ImportError: Without grain.
    """
    module = needed("grain", by="grain_pairs", extra="data")
    _check_negatives(corpus, num_negatives)
    if not 1 <= batch_size <= len(corpus.queries):
        raise ValueError(
            f"`batch_size` is {batch_size} and there are {len(corpus.queries)} "
            "queries: pass one of 1 to as many."
        )
    draw = functools.partial(_drawn, corpus, corpus.full, num_negatives)
    known = Ragged.of(corpus.relevant)
    assemble = functools.partial(
        assembled, corpus, known.__getitem__, tokenize, tokenize_queries
    )
    order = module.MapDataset.range(len(corpus.queries)).seed(seed).shuffle()
    batches = order.random_map(draw).batch(
        batch_size, drop_remainder=True, batch_fn=assemble
    )
    return batches.repeat()


def assembled(
    corpus: Corpus,
    known: Callable[[Int[np.ndarray, " rows"]], Any],
    tokenize: Tokenize,
    tokenize_queries: Tokenize | None,
    examples: Sequence[Example],
) -> Pairs:
    """Return examples as one batch of tokens, with the documents' numbers."""
    asked, ids, negative_ids = (
        np.array(numbers, np.int32) for numbers in zip(*examples)
    )
    documents, read = corpus.documents, tokenize_queries or tokenize
    negatives = None
    if negative_ids.size:
        tokens = tokenize(_texts(documents, negative_ids.ravel()))
        shape = negative_ids.shape
        negatives = jax.tree.map(lambda x: x.reshape(*shape, *x.shape[1:]), tokens)
    return Pairs(
        read(_texts(corpus.queries, asked)),
        tokenize(_texts(documents, ids)),
        ids,  # pyright: ignore[reportArgumentType]
        known(asked),
        negatives,
        negative_ids if negative_ids.size else None,  # pyright: ignore[reportArgumentType]
    )


def _texts(texts: Sequence[str], numbers: Int[np.ndarray, " rows"]) -> list[str]:
    return [texts[int(i)] for i in numbers]


def _bytes(row: np.ndarray) -> bytes:
    return np.asarray(row).tobytes()


def _drawn(
    corpus: Corpus,
    full: Sequence[tuple[int, ...]],
    num_negatives: int,
    query: int,
    generator: np.random.Generator,
) -> Example:
    """Return a query with one of its answers, and distinct ones of its negatives."""
    document = int(generator.choice(full[query]))
    among = _negatives(corpus, query)
    num = min(num_negatives, len(among))
    taken = generator.choice(among, num, replace=False).tolist() if num else ()
    return _example(query, document, tuple(taken), num_negatives)


def _example(
    query: int, document: int, negatives: tuple[int, ...], num: int
) -> Example:
    """Return a row, filled up to `num` negatives with what answers.

    A document that a batch has twice counts once, so that this adds none.
    """
    return Example(query, document, negatives + (document,) * (num - len(negatives)))


def _negatives(corpus: Corpus, query: int) -> tuple[int, ...]:
    return () if corpus.negatives is None else corpus.negatives[query]


def _check_negatives(corpus: Corpus, num_negatives: int) -> None:
    numbers = [len(_negatives(corpus, query)) for query in range(len(corpus.queries))]
    most = max(numbers)
    if most < num_negatives:
        raise ValueError(
            f"`num_negatives` is {num_negatives} and query {numbers.index(most)} has "
            f"{most}, no other more: pass fewer, or mine more with "
            "`retrieval_cache.mined`."
        )
