"""How well a model finds what answers its queries, in a whole corpus."""

from collections.abc import Sequence
from typing import Any, NamedTuple, overload

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from effgen.core.contract.counts import check_count
from effgen.retrieval_cache.data.relevance import Relevant, Rows
from effgen.retrieval_cache.encoders.embeddings import check_finite, embedded

from .index import Index
from .measures import discounted_gain, recall, reciprocal_rank


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
        UserWarning: If no document of `relevant` is in the index, or if
            `known` leaves out some that it asks for.
    """
    depths = _depths(k)
    check_count("batch_size", batch_size)
    check_searched(model, index)
    ids, gains = relevant if isinstance(relevant, Relevant) else (relevant, None)
    rows = Rows.of("relevant", ids, gains)
    found = embedded(model.query, queries, batch_size)
    check_finite(found)
    rows.check_length(len(found))
    rows.warn_if_none_of(index)
    seen = None if known is None else Rows.of("known", known, None)
    if seen is not None:
        seen.check_length(len(found))
        rows.warn_if_left_out(seen)
    ranked = ranked_documents(index, found, max(depths), seen, batch_size)
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


def check_searched(model: Any, index: Any) -> None:
    """Raise `TypeError` for an object that is no model, or no index."""
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


def ranked_documents(
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
