"""Exact search of a corpus, and what is made of it: rankings and hard negatives."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, overload

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from effgen.core.counts import check_count

from .cache import NegativeCache, block_size, checked_ids, default_capacity
from .embedding import check_finite, embedded, num_items
from .judged_rows import Rows
from .lookup import joined_rows
from .measures import Relevant, discounted_gain, recall, reciprocal_rank
from .negatives import Excluded
from .rows import AbstractRows, stored
from .sampling import top_k
from .scan import Scored, numbered


class Index(eqx.Module):
    """A corpus as it is searched; `of`, `from_embeddings` and `from_cache` make one.

    Attributes:
        rows: The embeddings, `(rows, size)`.
        ids: The documents' numbers, `(rows,)`, -1 where a row is free.
    """

    rows: AbstractRows
    ids: Int[Array, " rows"]

    @classmethod
    def of(
        cls,
        encode: Callable[[PyTree], Float[Array, "batch size"]],
        items: PyTree,
        *,
        ids: Int[Any, " documents"] | None = None,
        dtype: Any = jnp.float32,
        batch_size: int | None = None,
    ) -> "Index":
        """Return an index of a corpus, embedded now.

        Arguments:
            encode: A batch of documents to embeddings, such as `model.document`.
            items: The corpus, a pytree of arrays that share their leading axis.
            ids: The documents' numbers, `0 .. documents - 1` by default.
            dtype: Of the embeddings: `jnp.float32`, `jnp.bfloat16`, `jnp.int8`.
            batch_size: Documents embedded at once; by default 1,024, and 64 on a CPU.

        Raises:
            TypeError: For items that are text, or another `encode` or `dtype`.
            ValueError: For an empty corpus, leaves of different lengths, repeated or
                negative ids, or embeddings that are not finite.
        """
        numbers = checked_ids(ids, num_items(items))
        found = embedded(encode, items, batch_size)
        check_finite(found)
        return cls(stored(found, dtype), numbers)

    @classmethod
    def from_embeddings(
        cls,
        embeddings: Float[Any, "documents size"],
        *,
        ids: Int[Any, " documents"] | None = None,
        dtype: Any = jnp.float32,
    ) -> "Index":
        """Return an index of embeddings that were made elsewhere, one a document.

        Arguments:
            embeddings: `(documents, size)`, of length one if the queries' are.
            ids: The documents' numbers, `0 .. documents - 1` by default.
            dtype: Of the embeddings, as of `of`.

        Raises:
            TypeError: For another `dtype`.
            ValueError: For none, repeated or negative ids, or embeddings not finite.
        """
        if np.ndim(embeddings) != 2:
            raise ValueError(
                f"`embeddings` have shape {np.shape(embeddings)}: pass one row a "
                "document, `(documents, size)`."
            )
        numbers = checked_ids(ids, num_items(embeddings))
        found = jnp.asarray(embeddings)
        check_finite(found)
        rows, missing = stored(found, dtype), default_capacity(len(found)) - len(found)
        free = lambda x, value: jnp.pad(
            x, ((0, missing),) + ((0, 0),) * (x.ndim - 1), constant_values=value
        )
        return cls(jax.tree.map(lambda x: free(x, 0), rows), free(numbers, -1))

    @classmethod
    def from_cache(cls, cache: NegativeCache) -> "Index":
        """Return an index of a cache's embeddings, as stale as they are.

        Arguments:
            cache: The cache.
        """
        return cls(cache.rows, cache.ids)

    def scored(self, excluded: Excluded) -> Scored:
        """Return what scores come from; what is excluded goes by number or row.

        Arguments:
            excluded: What is no negative.

        Returns:
            All rows of the index.
        """
        nothing, offsets = jnp.full_like(self.ids, -1), jnp.zeros(self.ids.shape)
        at = numbered(excluded, self.ids.shape[0])
        return Scored(self.rows, self.ids, nothing, offsets, excluded, at)

    def search(
        self,
        queries: Float[Array, "queries size"],
        k: int,
        *,
        known: Int[Any, "queries *any"] | Sequence[Any] | None = None,
    ) -> "Ranked":
        """Return the `k` best documents of each query, best first, exactly.

        Arguments:
            queries: The queries, embedded, `(queries, size)`. One that is not finite
                finds nothing.
            k: How many documents.
            known: Numbers of documents to leave out of a query's ranking, as
                `relevant` of `evaluate`.

        Returns:
            Numbers and scores of documents.

        Raises:
            TypeError: For queries that are not embedded.
            ValueError: For sizes that differ, or fewer rows than `k`.
        """
        size = self.rows.shape[1]
        queries = jnp.asarray(queries)
        if not jnp.issubdtype(queries.dtype, jnp.floating):
            raise TypeError(
                f"`queries` are {queries.dtype}: embed them first, by `model.query`."
            )
        if queries.ndim != 2 or queries.shape[1] != size:
            raise ValueError(
                f"`queries` have shape {queries.shape} and documents size {size}: "
                "embed both with one model."
            )
        excluded = Excluded.nothing(len(queries))
        if known is not None:
            rows = Rows.of("known", known, None)
            rows.check_length(len(queries))
            excluded = _left_out(self.ids, rows.some(slice(None)).ids)
        k = int(k) if isinstance(k, np.integer) else k
        return _searched(self, queries, excluded, k)


class Ranked(NamedTuple):
    """Documents by score, best first, as `Index.search` returns them.

    Attributes:
        ids: Numbers of documents, `(queries, k)`; -1 where there are no more.
        scores: Inner products, `(queries, k)`; `-inf` where there are no more.
    """

    ids: Int[Array, "queries k"]
    scores: Float[Array, "queries k"]


@jax.jit
def _left_out(ids: Int[Array, " rows"], known: Int[Array, "queries any"]) -> Excluded:
    """Return numbers of each query as rows, which cost the same however many."""
    rows = joined_rows(ids, known.reshape(-1)).reshape(known.shape)
    return Excluded.nothing(len(known))._replace(rows=jnp.sort(rows, axis=1))


@eqx.filter_jit
def _searched(
    index: Index, queries: Float[Array, "queries size"], excluded: Excluded, k: int
) -> Ranked:
    scored, block = index.scored(excluded), block_size(index.ids.shape[0])
    scores, slots = top_k(scored, queries, jnp.ones(()), k, block)
    return Ranked(jnp.where(scores > -jnp.inf, index.ids[slots], -1), scores)


class Evaluation(NamedTuple):
    """Measures of each query, from its `k` best documents, as `evaluate` returns them.

    Attributes:
        mrr: The reciprocal rank, `(queries,)`; NaN without judgments, as the others.
        recall: The share of what answers that is found, `(queries,)`.
        ndcg: The normalized discounted gain, `(queries,)`.
    """

    mrr: Float[Array, " queries"]
    recall: Float[Array, " queries"]
    ndcg: Float[Array, " queries"]

    def means(self) -> dict[str, float]:
        """Return the measures' means over the queries that have judgments.

        Returns:
            The means by name.

        Raises:
            ValueError: If no query has a judgment.
        """
        judged = ~np.isnan(np.asarray(self.mrr))
        if not judged.any():
            raise ValueError(
                "no query has a judgment: pass what answers in `relevant`, rows of "
                "documents' numbers."
            )
        named = self._asdict().items()
        return {name: float(np.asarray(x)[judged].mean()) for name, x in named}


@overload
def evaluate(
    model: PyTree,
    queries: PyTree,
    relevant: Relevant | Int[Any, "queries *any"] | Sequence[Any],
    index: Index,
    *,
    k: int = 10,
    known: Int[Any, "queries *any"] | Sequence[Any] | None = None,
    batch_size: int = 256,
) -> Evaluation: ...


@overload
def evaluate(
    model: PyTree,
    queries: PyTree,
    relevant: Relevant | Int[Any, "queries *any"] | Sequence[Any],
    index: Index,
    *,
    k: Sequence[int],
    known: Int[Any, "queries *any"] | Sequence[Any] | None = None,
    batch_size: int = 256,
) -> dict[int, Evaluation]: ...


def evaluate(
    model: PyTree,
    queries: PyTree,
    relevant: Relevant | Int[Any, "queries *any"] | Sequence[Any],
    index: Index,
    *,
    k: int | Sequence[int] = 10,
    known: Int[Any, "queries *any"] | Sequence[Any] | None = None,
    batch_size: int = 256,
) -> Evaluation | dict[int, Evaluation]:
    """Return how well a model finds what answers its queries, in a whole corpus.

    Memory is that of `batch_size` queries at a time, beside what is given.

    Arguments:
        model: A model with a tower `query`.
        queries: A pytree of arrays.
        relevant: The numbers of what answers each: `(queries,)`, or `(queries, any)`
            filled up with -1, or rows of any length, or `Relevant` with gains.
        index: Of the corpus by the same model.
        k: How deep rankings are looked at, or several depths, such as
            `(1, 10, 100)`. One past the corpus is that of the whole corpus.
        known: Numbers of documents left out of a query's ranking, such as what a user
            has seen.
        batch_size: Queries at a time.

    Returns:
        Measures of each query; for several depths, by depth.

    Raises:
        TypeError: For a model without `query`, what is no `Index`, or no numbers.
        ValueError: For numbers of rows that differ, what are no numbers, or a `k`
            below 1.

    Warns:
        UserWarning: If no document of `relevant` is in the index.
    """
    depths = _depths(k)
    check_count("batch_size", batch_size)
    _check_searched(model, index)
    ids, gains = relevant if isinstance(relevant, Relevant) else (relevant, None)
    rows = Rows.of("relevant", ids, gains)
    found = embedded(model.query, queries, batch_size)
    check_finite(found)
    rows.check_length(len(found))
    rows.warn_if_none_of(index)
    seen = None if known is None else Rows.of("known", known, None)
    if seen is not None:
        seen.check_length(len(found))
    ranked = _ranked(index, found, max(depths), seen, batch_size)
    parts = [slice(i, i + batch_size) for i in range(0, len(found), batch_size)]
    measured = {
        depth: _joined([_measured(ranked[x, :depth], rows.some(x)) for x in parts])
        for depth in depths
    }
    return measured if isinstance(k, list | tuple) else measured[depths[0]]


@jax.jit
def _measured(ranked: Int[Array, "queries k"], relevant: Relevant) -> Evaluation:
    measures = (reciprocal_rank, recall, discounted_gain)
    return Evaluation(*(measure(ranked, relevant) for measure in measures))


def _joined(parts: list[Evaluation]) -> Evaluation:
    return jax.tree.map(lambda *x: jnp.concatenate(x), *parts)


def _depths(k: Any) -> tuple[int, ...]:
    depths = tuple(k) if isinstance(k, list | tuple) else (k,)
    whole = lambda x: isinstance(x, int | np.integer) and not isinstance(x, bool)
    if not depths or any(not whole(x) or x < 1 for x in depths):
        raise ValueError(f"`k` is {k}: pass a depth from 1 on, or several.")
    return tuple(map(int, depths))


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
        known: Numbers of the documents that answer, as in `evaluate`.
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
    if not isinstance(skip, int) or skip < 0:
        raise ValueError(f"`skip` is {skip}: pass how many to leave out, or 0.")
    index, rows = Index.from_cache(cache), Rows.of("known", known, None)
    _check_searched(model, index)
    found = embedded(model.query, queries, batch_size)
    check_finite(found)
    rows.check_length(len(found))
    return _ranked(index, found, k + skip, rows, batch_size)[:, skip:]


def _check_searched(model: Any, index: Any) -> None:
    """Raise `TypeError` for what is no model, or no index."""
    if not callable(getattr(model, "query", None)):
        raise TypeError(
            f"`model` is a {type(model).__name__} without a tower `query`: pass the "
            "model, such as `state.model`."
        )
    if not isinstance(index, Index):
        raise TypeError(
            f"`index` is a {type(index).__name__}: pass an `Index`, such as "
            "`Index.of(model.document, documents)` or `Index.from_cache(cache)`."
        )


def _ranked(
    index: Index,
    queries: Float[Array, "queries size"],
    k: int,
    known: Rows | None,
    batch_size: int,
) -> Int[Array, "queries k"]:
    """Return the best documents' numbers, by parts of the queries; -1 past the end."""
    most, parts = min(k, index.ids.shape[0]), []
    for start in range(0, len(queries), batch_size):
        cut = slice(start, start + batch_size)
        own = None if known is None else known.some(cut).ids
        parts.append(index.search(queries[cut], most, known=own).ids)
    found = jnp.concatenate(parts)
    return jnp.pad(found, ((0, 0), (0, k - most)), constant_values=-1)
