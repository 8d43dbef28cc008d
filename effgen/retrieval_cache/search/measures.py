"""Measures of a ranking: reciprocal rank, recall, and discounted gain.

They are trec_eval's. A document that is named twice for a query counts once, with the
best of its gains. A query without judgments has no measure: it is NaN there.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from effgen.retrieval_cache.data.relevance import Relevant


def reciprocal_rank(
    ranked: Int[Array, "queries k"], relevant: Relevant
) -> Float[Array, " queries"]:
    """Return `1 / rank` of the first relevant document among `k`, or zero.

    Arguments:
        ranked: Numbers of documents, best first, `(queries, k)`.
        relevant: What answers each query.

    Returns:
        `(queries,)`, NaN for a query without judgments. Its mean is MRR@k.
    """
    judged = _judged(relevant)
    hit = _gained(ranked, judged) > 0
    first = jnp.argmax(hit, axis=1)
    return _known(judged, jnp.where(jnp.any(hit, axis=1), 1 / (first + 1), 0.0))


def recall(
    ranked: Int[Array, "queries k"], relevant: Relevant
) -> Float[Array, " queries"]:
    """Return the share of the relevant documents that are among the `k`.

    Arguments:
        ranked: Numbers of documents, best first, `(queries, k)`.
        relevant: What answers each query.

    Returns:
        `(queries,)`, NaN for a query without judgments.
    """
    judged = _judged(relevant)
    found = jnp.sum(_gained(ranked, judged) > 0, axis=1)
    number = jnp.sum(judged.gains > 0, axis=1)
    return _known(judged, found / jnp.maximum(number, 1))


def discounted_gain(
    ranked: Int[Array, "queries k"], relevant: Relevant
) -> Float[Array, " queries"]:
    """Return the normalized discounted cumulative gain, nDCG@k.

        dcg = sum_r gain_r / log2(r + 1),    r = 1 .. k,

    over that of the best ranking.

    Arguments:
        ranked: Numbers of documents, best first, `(queries, k)`.
        relevant: What answers each query, and how well.

    Returns:
        `(queries,)`, NaN for a query without judgments.

    Source:
        Järvelin and Kekäläinen (2002).
    """
    judged, k = _judged(relevant), ranked.shape[1]
    discounts = 1 / jnp.log2(jnp.arange(2, k + 2))
    found = _gained(ranked, judged) @ discounts
    best = -jnp.sort(-judged.gains, axis=1)[:, :k]
    ideal = best @ discounts[: best.shape[1]]
    return _known(judged, found / jnp.where(ideal > 0, ideal, 1))


class _Judged(NamedTuple):
    """Judgments in the order of documents' numbers, each once, others of no gain."""

    ids: Int[Array, "queries any"]
    gains: Float[Array, "queries any"]


def _judged(relevant: Relevant) -> _Judged:
    """Return judgments in order: what is searched needs no array of all by all."""
    ids = relevant.ids
    gains = jnp.ones(ids.shape) if relevant.gains is None else relevant.gains
    gains = jnp.where(ids >= 0, jnp.maximum(gains, 0), 0)
    order = jnp.lexsort((-gains, ids), axis=1)
    ids, gains = (jnp.take_along_axis(x, order, axis=1) for x in (ids, gains))
    return _Judged(ids, jnp.where(_repeated(ids), 0.0, gains))


def _gained(
    ranked: Int[Array, "queries k"], judged: _Judged
) -> Float[Array, "queries k"]:
    """Return the gain of each document in a ranking; of one ranked twice, once."""
    if not judged.ids.shape[1]:
        return jnp.zeros(ranked.shape)
    place = jax.vmap(jnp.searchsorted)(judged.ids, ranked)
    place = jnp.minimum(place, judged.ids.shape[1] - 1)
    here = jnp.take_along_axis(judged.ids, place, axis=1) == ranked
    gains = jnp.take_along_axis(judged.gains, place, axis=1)
    order = jnp.argsort(ranked, axis=1, stable=True)
    again = _repeated(jnp.take_along_axis(ranked, order, axis=1))
    again = jnp.take_along_axis(again, jnp.argsort(order, axis=1), axis=1)
    return jnp.where(here & ~again, gains, 0.0)


def _repeated(ordered: Int[Array, "queries any"]) -> Bool[Array, "queries any"]:
    """Return which numbers equal the one before."""
    first = jnp.zeros((len(ordered), 1), bool)
    same = ordered[:, 1:] == ordered[:, :-1]
    return jnp.concatenate([first[:, : ordered.shape[1]], same], axis=1)


def _known(
    judged: _Judged, measure: Float[Array, " queries"]
) -> Float[Array, " queries"]:
    """Return the measure, NaN where a query has no judgment."""
    return jnp.where(jnp.any(judged.ids >= 0, axis=1), measure, jnp.nan)
