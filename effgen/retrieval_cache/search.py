"""Exact search of a corpus, and what is made of it: rankings and hard negatives."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from .cache import NegativeCache, block_size, checked_ids
from .corpora import known_of
from .embedding import check_finite, embedded, num_items
from .measures import Relevant, discounted_gain, recall, reciprocal_rank
from .negatives import Excluded
from .rows import AbstractRows, stored
from .sampling import top_k
from .scan import Scored


class Index(eqx.Module):
    """A corpus as it is searched: embeddings and numbers.

    **Attributes:** `rows`, the embeddings; `ids`, the documents' numbers, -1 where a
    row is free.
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
        """Return an index of a corpus, embedded now; arguments as of a cache.

        **Raises:** `ValueError` for an empty corpus, leaves of different lengths,
        repeated or negative ids, or embeddings that are not finite.
        """
        numbers = checked_ids(ids, num_items(items))
        found = embedded(encode, items, batch_size)
        check_finite(found)
        return cls(stored(found, dtype), numbers)

    @classmethod
    def from_cache(cls, cache: NegativeCache) -> "Index":
        """Return an index of a cache's embeddings, as stale as they are."""
        return cls(cache.rows, cache.ids)

    def search(
        self,
        queries: Float[Array, "queries size"],
        k: int,
        *,
        known: Int[Array, "queries any"] | None = None,
    ) -> "Ranked":
        """Return the `k` best documents of each query, best first, exactly.

        **Arguments:** `known`, numbers of documents to leave out of a query's ranking.

        **Raises:** `ValueError` for sizes that differ, or fewer documents than `k`.
        """
        size = self.rows.shape[1]
        if queries.ndim != 2 or queries.shape[1] != size:
            raise ValueError(
                f"`queries` have shape {queries.shape} and documents size {size}: "
                "embed both with one model."
            )
        excluded = Excluded.nothing(len(queries))
        if known is not None:
            excluded = excluded._replace(known=jnp.asarray(known))
        return _searched(self, queries, excluded, k)


class Ranked(NamedTuple):
    """Documents by score, best first; -1 where there are no more."""

    ids: Int[Array, "queries k"]
    scores: Float[Array, "queries k"]


@eqx.filter_jit
def _searched(
    index: Index, queries: Float[Array, "queries size"], excluded: Excluded, k: int
) -> Ranked:
    nothing = jnp.zeros_like(index.ids)
    offsets = jnp.zeros(index.ids.shape)
    scored = Scored(index.rows, index.ids, nothing, offsets, excluded)
    scores, slots = top_k(
        scored, queries, jnp.ones(()), k, block_size(index.ids.shape[0])
    )
    return Ranked(jnp.where(scores > -jnp.inf, index.ids[slots], -1), scores)


class Evaluation(NamedTuple):
    """Measures of each query, from its `k` best documents; take their means."""

    mrr: Float[Array, " queries"]
    recall: Float[Array, " queries"]
    ndcg: Float[Array, " queries"]

    def means(self) -> dict[str, float]:
        """Return the measures' means."""
        return {name: float(x.mean()) for name, x in self._asdict().items()}


def evaluate(
    model: PyTree,
    queries: PyTree,
    relevant: Relevant | Int[Any, "queries *any"] | Sequence[Any],
    index: Index,
    *,
    k: int = 10,
    batch_size: int = 256,
) -> Evaluation:
    """Return how well a model finds what answers its queries, in a whole corpus.

    **Arguments:** `model`, with a tower `query`; `queries`, a pytree of arrays;
    `relevant`, the numbers of what answers each: `(queries,)`, or `(queries, any)`
    filled up with -1, or rows of any length, or `Relevant` with gains; `index`, of the
    corpus by the same model; `k`, how deep rankings are looked at.

    **Raises:** `ValueError` for numbers of rows that differ, or what are no numbers.
    """
    ids, gains = relevant if isinstance(relevant, Relevant) else (relevant, None)
    answers = Relevant(_numbers("relevant", ids), gains)
    found = embedded(model.query, queries, batch_size)
    if len(answers.ids) != len(found):
        raise ValueError(
            f"`relevant` has {len(answers.ids)} rows and there are {len(found)} "
            "queries: pass one row a query."
        )
    ranked = _ranked(index, found, k, None, batch_size)
    answers = jax.tree.map(jnp.asarray, answers)
    measures = (reciprocal_rank, recall, discounted_gain)
    return Evaluation(*(measure(ranked, answers) for measure in measures))


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

    By the cache's embeddings as they are, so without embedding a document.

    **Arguments:** `known`, numbers of the documents that answer, as in `evaluate`;
    `skip`, how many of the best to leave out, which may answer without being known to.

    **Returns:** numbers of documents, -1 where there are no more.
    """
    index, known = Index.from_cache(cache), _numbers("known", known)
    found = embedded(model.query, queries, batch_size)
    return _ranked(index, found, k + skip, known, batch_size)[:, skip:]


def _numbers(name: str, given: Any) -> Int[Array, "queries any"]:
    """Return documents' numbers, a row a query; of one each, or of rows of any length.

    **Raises:** `ValueError` for anything else.
    """
    if not hasattr(given, "shape"):
        given = known_of([tuple(np.atleast_1d(row).tolist()) for row in given])
    found = np.asarray(given)
    found = found[:, None] if found.ndim == 1 else found
    if found.ndim != 2 or not np.issubdtype(found.dtype, np.integer):
        raise ValueError(
            f"`{name}` is {found.dtype} of shape {found.shape}: pass documents' "
            "numbers, one a query, or a row of them a query, filled up with -1."
        )
    return jnp.asarray(found)


def _ranked(
    index: Index,
    queries: Float[Array, "queries size"],
    k: int,
    known: Int[Array, "queries any"] | None,
    batch_size: int,
) -> Int[Array, "queries k"]:
    """Return the best documents' numbers, of some queries at a time."""
    parts = []
    for start in range(0, len(queries), batch_size):
        cut = slice(start, start + batch_size)
        own = None if known is None else known[cut]
        parts.append(index.search(queries[cut], k, known=own).ids)
    return jnp.concatenate(parts)
