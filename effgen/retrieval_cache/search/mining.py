"""Hard negatives: documents that a model ranks high, and that do not answer."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Array, Int, PyTree

from effgen.core.contract.counts import check_count
from effgen.retrieval_cache.cache.negative_cache import NegativeCache
from effgen.retrieval_cache.data.relevance import Rows
from effgen.retrieval_cache.encoders.embeddings import check_finite, embedded

from .evaluation import check_searched, ranked_documents
from .index import Index


_SIDES: tuple[Literal["left", "right"], ...] = ("left", "right")


def mined(
    model: PyTree,
    queries: PyTree,
    cache: NegativeCache,
    k: int,
    *,
    known: Int[Any, "queries *any"] | Sequence[Any],
    skip: int = 0,
    batch_size: int = 256,
) -> Int[Array, "queries k"]:
    """Return hard negatives: the `k` best documents that do not answer a query.

    They are found by the cache's embeddings as they are, without embedding a document.

    Arguments:
        model: A model with a tower `query`.
        queries: A pytree of arrays.
        cache: The cache of the corpus.
        k: How many documents.
        known: Numbers of the documents that answer, as in `evaluate`. Documents of the
            same content answer too.
        skip: How many of the best to leave out, which may answer without being known
            to.
        batch_size: Queries at a time.

    Returns:
        Numbers of documents, `(queries, k)`, -1 where there are no more.

    Raises:
        TypeError: For a model without `query`.
        ValueError: For numbers of rows that differ, or what are no numbers.
    """
    check_count("k", k)
    check_count("batch_size", batch_size)
    if not isinstance(skip, int | np.integer) or skip < 0:
        raise ValueError(f"`skip` is {skip}: pass how many to leave out, or 0.")
    index, rows = Index.from_cache(cache), Rows.of("known", known, None)
    check_searched(model, index)
    found = embedded(model.query, queries, batch_size)
    check_finite(found)
    rows.check_length(len(found))
    rows = _with_copies(rows, cache)
    return ranked_documents(index, found, k + skip, rows, batch_size)[:, skip:]


def _with_copies(known: Rows, cache: NegativeCache) -> Rows:
    """Return the documents that answer, with all that have the content of one."""
    if not bool(cache.repeats):
        return known
    ids, digests = (_on_host(x) for x in (cache.ids, cache.digests))
    there = (ids >= 0) & (digests >= 0)
    ids, digests = ids[there], digests[there]
    by_number, by_content = np.argsort(ids), np.argsort(digests, kind="stable")
    numbers, contents = ids[by_number], digests[by_content]

    def copies(row: np.ndarray) -> np.ndarray:
        place = np.minimum(np.searchsorted(numbers, row), len(numbers) - 1)
        own = digests[by_number[place[numbers[place] == row]]]
        first, last = (np.searchsorted(contents, own, side) for side in _SIDES)
        alike = [ids[by_content[a:b]] for a, b in zip(first, last, strict=True)]
        return np.unique(np.concatenate([row, *alike]))

    return Rows(known.name, [copies(np.asarray(row)) for row in known.ids], None)


def _on_host(numbers: Array) -> np.ndarray:
    """Return numbers of all rows, which may lie with several processes."""
    if numbers.is_fully_addressable:
        return np.asarray(numbers)
    return np.asarray(multihost_utils.process_allgather(numbers, tiled=True))
