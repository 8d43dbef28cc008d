"""One logit that stands for the whole cache: its value, and its gradient."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from effgen.core.contract.counts import check_count
from effgen.retrieval_cache.cache.negative_cache import NegativeCache
from effgen.retrieval_cache.data.pairs import as_numbers, as_pairs, marks, num_pairs

from .importance import (
    Anchor,
    Sample,
    defense_of,
    effective_draws,
    sampled,
    shared_weights,
)
from .negatives import Excluded, excluded_by


class Corrected(NamedTuple):
    """How well the draws did; all are means.

    Attributes:
        drift: The standard deviation of a score since its row was embedded, in nats.
        ess: The effective sample size of the corrected weights, as a share of the draws
            that count for a query.
        staleness: `|stale - fresh|^2 / |fresh|^2`.
        possible_bias: About how far the gradient's mean may be off, as a share of its
            length (`possible_bias`).
    """

    drift: Float[Array, ""]
    ess: Float[Array, ""]
    staleness: Float[Array, ""]
    possible_bias: Float[Array, ""]


def pseudo_logit(
    queries: Float[Array, "queries size"],
    fresh: Float[Array, "draws size"],
    sample: Sample,
    scale: Float[Array, ""],
    *,
    max_log_ratio: float = 5.0,
    anchor: Anchor | None = None,
) -> tuple[Float[Array, " queries"], Corrected]:
    """Return one logit a query: the log-partition over the cache's documents.

        logit_i ~ log sum_j exp(scale <query_i, fresh_j> + offset_j)

    The value is the sum over stale rows, corrected by the ratios fresh to stale of the
    draws. The gradient is the softmax's expectation: exact over stale rows for the
    queries, and over the draws for documents and for what staleness changes:

        weights  = shared * ratio / R,  R_i = mean of ratio, by shared (see below),
                   then times 1 - defense + defense / their sum
        value_i  = log_partition_i + log(R_i)
        d logit  = d scale <query, sum weights fresh + (1 - defense) (mean
                   - sum shared stale)> + scale <query, sum weights d fresh>

    With a fresh cache the ratios are one, `defense` (`defense_of`) is zero, and the
    gradient is unbiased. The staler the cache, the more weight the documents beside
    have (`shared_weights`). It is `-inf` with zero gradient for queries without
    negatives. `R_i` counts the batch's mean as one further draw, because the ratio of a
    query's single draw would cancel.

    Arguments:
        queries: The queries, embedded with gradient, `(queries, size)`.
        fresh: The drawn documents and those beside, embedded now with gradient,
            `(draws, size)`.
        sample: The draws.
        scale: One over the temperature.
        max_log_ratio: At which log-ratios of draws are cut, in nats; 0 leaves staleness
            as it is.
        anchor: Of an estimate whose value, weights and mean are held, so that the logit
            moves from there by its slope: for line searches.

    Returns:
        The logits, `(queries,)`, in nats, and how well the draws did.

    Raises:
        ValueError: For a `max_log_ratio` below zero.
    """
    check_log_ratio(max_log_ratio)
    fixed = jax.lax.stop_gradient
    held = fixed((queries, fresh, scale))
    if anchor is not None:
        held = (anchor.queries, anchor.fresh, anchor.scale)
    then, known, by = held
    now = by * (then @ known.T) + sample.offsets[None]
    negative = jnp.isfinite(sample.scores)
    change = jnp.where(negative, now - jnp.where(negative, sample.scores, 0), 0)
    defense = defense_of(sample, change) if max_log_ratio else jnp.zeros(())
    shared = shared_weights(sample, defense)
    ratio = _ratio(sample, change, max_log_ratio)
    normalizer = _mean_ratio(shared, ratio)
    weights = _balanced(shared * ratio / normalizer[:, None], defense)
    control = (1 - defense) * (sample.mean - shared @ sample.stale)
    mean = weights @ known + control

    def slope(queries: Array, fresh: Array, scale: Array) -> Float[Array, " queries"]:
        by_queries = scale * jnp.sum(queries * mean, axis=1)
        return by_queries + by * jnp.sum(weights * (then @ fresh.T), axis=1)

    there = jnp.isfinite(sample.log_partition)
    value = sample.log_partition + jnp.log(normalizer)
    before = None if anchor is None else slope(*held)
    logit = valued(value, slope(queries, fresh, scale), there, before)
    kept = weights if max_log_ratio else jnp.zeros_like(weights)
    return logit, _corrected(sample, shared, weights, change, known, kept)


def check_log_ratio(max_log_ratio: float) -> None:
    """Raise `ValueError` for values that are no nats that ratios are cut at."""
    if not max_log_ratio >= 0:
        raise ValueError(
            f"`max_log_ratio` is {max_log_ratio}: pass nats, such as 5, or 0, which "
            "corrects no staleness."
        )


def _ratio(
    sample: Sample, change: Float[Array, "queries known"], most: float
) -> Float[Array, "queries known"]:
    """Return fresh to stale: of draws cut, of documents beside whole.

    A document beside counts for what the stale softmax overlooks: there the ratio is
    large and its weight small. Past e^60 their product could be no number any more.
    """
    drawn = jnp.arange(change.shape[1]) < len(sample.slots)
    limit = jnp.where(drawn, most, 60.0)
    return jnp.exp(jnp.clip(change, -limit[None], limit[None]))


def _balanced(
    weights: Float[Array, "queries known"], defense: Float[Array, ""]
) -> Float[Array, "queries known"]:
    """Return weights that sum to one, the more so the staler the cache.

    A positive has weight one. At the start of training all embeddings are near each
    other. The negatives must then weigh as much as the positives, or all embeddings
    collapse. With a fresh cache they do, over a batch. Documents beside may be some
    hundredths short for all queries at once.
    """
    total = jnp.sum(weights, axis=1, keepdims=True)
    whole = jnp.where(total > 0, total, 1)
    return weights * (1 - defense + defense / whole)


def valued(
    value: Float[Array, " queries"],
    slope: Float[Array, " queries"],
    there: Bool[Array, " queries"],
    before: Float[Array, " queries"] | None = None,
) -> Float[Array, " queries"]:
    """Return `value` with the gradient of `slope`; `-inf`, without, if not `there`.

    With what `slope` was `before`, `value` has moved by as much since.
    """
    before = jax.lax.stop_gradient(slope) if before is None else before
    joined = jnp.where(there, value, 0) + slope - before
    return jnp.where(there, joined, -jnp.inf)


def _mean_ratio(
    shared: Float[Array, "queries draws"], ratio: Float[Array, "queries draws"]
) -> Float[Array, " queries"]:
    """Return each query's mean ratio, drawn towards the batch's by one draw's weight.

    (draws own + batch's) / (draws + 1),    draws = sum(shared)^2 / sum(shared^2)
    """
    total, corrected = jnp.sum(shared, axis=1), jnp.sum(shared * ratio, axis=1)
    there = total > 0
    own = jnp.where(there, corrected, 1) / jnp.where(there, total, 1)
    count = jnp.sum(total)
    batch = jnp.where(count > 0, jnp.sum(corrected), 1) / jnp.where(count > 0, count, 1)
    draws = effective_draws(shared)
    return (draws * own + batch) / (draws + 1)


def _corrected(
    sample: Sample,
    shared: Float[Array, "queries draws"],
    weights: Float[Array, "queries draws"],
    change: Float[Array, "queries draws"],
    fresh: Float[Array, "draws size"],
    corrected: Float[Array, "queries draws"],
) -> Corrected:
    total = jnp.sum(shared)
    spread = jnp.sum(shared * change**2) / jnp.where(total > 0, total, 1)
    # Of what the draws would count for without a correction.
    most = jnp.maximum(jnp.sum(effective_draws(shared)), 1e-30)
    ess = jnp.sum(effective_draws(weights)) / most
    drift = jnp.sqrt(spread)
    bias = possible_bias(drift, jnp.mean(effective_draws(corrected)))
    return Corrected(drift, ess, staleness(sample, fresh), bias)


def possible_bias(
    drift: Float[Array, ""], draws: float | Float[Array, ""]
) -> Float[Array, ""]:
    """Return about how far the gradient's mean may be off, as a share of its length.

        possible_bias = erf(drift / sqrt(8)) / sqrt(1 + draws)

    The first factor is the total variation between the softmaxes of stale and of fresh
    scores, whose differences are normal of the standard deviation `drift`: so far is a
    gradient off that goes by the stale one, as the paper's. The second is what the
    correction leaves of it, where a query has so many effective `draws`. Measured over
    batches, the bias is from a quarter of this to all of it, in the mean over laws
    (`docs/retrieval_cache.md`).
    """
    return jax.lax.erf(drift / 8**0.5) / jnp.sqrt(1 + draws)


def staleness(sample: Sample, fresh: Float[Array, "known size"]) -> Float[Array, ""]:
    """Return the mean `|stale - fresh|^2 / |fresh|^2` of the negatives of any query."""
    there = jnp.any(jnp.isfinite(sample.scores), axis=0)
    apart = jnp.sum((sample.stale - fresh) ** 2, axis=1)
    share = apart / jnp.maximum(jnp.sum(fresh**2, axis=1), 1e-30)
    return jnp.sum(jnp.where(there, share, 0)) / jnp.maximum(jnp.sum(there), 1)


def cache_logit(
    queries: Float[Array, "queries size"],
    cache: NegativeCache,
    encode: Callable[[PyTree], Float[Array, "draws size"]],
    *,
    key: PRNGKeyArray,
    batch: PyTree = None,
    num_negatives: int = 64,
    scale: float | Float[Array, ""] = 20.0,
    known: Int[Array, "queries any"] | None = None,
    max_log_ratio: float = 5.0,
    mesh: Mesh | None = None,
) -> tuple[Float[Array, " queries"], Sample, Float[Array, "draws size"]]:
    """Return a logit for everything in a cache, to append to an in-batch loss.

        pairs = Pairs(queries, documents, ids)
        logit, sample, fresh = cache_logit(
            q, cache, encoder.document, key=key, batch=pairs, scale=scale
        )
        losses = logsumexp([scores, logit[:, None]]) - positives
        cache = cache.written(sample.slots, stop_gradient(fresh), step)

    with `q` the queries embedded, and `scores` theirs with the batch's documents.

    Arguments:
        queries: The queries, embedded with gradient, `(queries, size)`.
        cache: The cache.
        encode: Documents of the cache to embeddings, with gradient.
        key: The JAX random key of the draws.
        batch: As a trainer takes it, whose documents the loss scores itself: the cache
            leaves them out, for all queries, and so what it says is `known`.
        num_negatives: How many documents are drawn for the whole batch.
        scale: One over the temperature.
        known: Numbers of documents that are no negatives of a query, `(queries, any)`,
            filled up with -1. Without a `batch`, such as where the loss is of
            `[positives, logit]`, a query's own is among them.
        max_log_ratio: As for `pseudo_logit`.
        mesh: Over whose first axis the cache is split, if it is.

    Returns:
        The logits, as in `pseudo_logit`; the draws; their embeddings now, to be written
            back.

    Raises:
        TypeError: For `known` of no integers.
        ValueError: Without `batch` and `known`, for a query's own document would count
            as its negative; or if they have another number of rows, or
            for settings out of range.
    """
    check_count("num_negatives", num_negatives)
    num, scale = queries.shape[0], jnp.asarray(scale, queries.dtype)
    excluded = _left_out(cache, batch, known, num)
    sample = sampled(cache, queries, scale, num_negatives, excluded, key=key, mesh=mesh)
    fresh = encode(cache.documents(sample.slots))
    logit, _ = pseudo_logit(queries, fresh, sample, scale, max_log_ratio=max_log_ratio)
    return logit, sample, fresh


def _left_out(cache: NegativeCache, batch: PyTree, known: Any, num: int) -> Excluded:
    """Return what the logit of a cache is not of, by the rule of all losses."""
    if batch is None and known is None:
        raise ValueError(
            "neither `batch` nor `known` is given, so that a query's own document "
            "would be its negative: pass `batch=Pairs(queries, documents, ids)`, whose "
            "documents the loss scores, or the numbers `known` to answer each query."
        )
    excluded, pairs = Excluded.nothing(num), None
    if batch is not None:
        pairs = as_pairs(batch)
        _check_rows("batch", num_pairs(pairs), num)
        excluded = excluded_by(pairs, marks(pairs), cache)
    if known is None:
        return excluded
    own = jnp.asarray(known)
    if not jnp.issubdtype(own.dtype, jnp.integer):
        raise TypeError(f"`known` is {own.dtype}: pass documents' numbers, integers.")
    _check_rows("known", own.shape[0] if own.ndim == 2 else own.shape, num)
    if pairs is not None and pairs.known is not None:
        own = jnp.concatenate([as_numbers(pairs.known), as_numbers(own)], axis=1)
        excluded = excluded_by(pairs._replace(known=None), marks(pairs), cache)
    return excluded.joined(own, cache)


def _check_rows(name: str, rows: Any, num: int) -> None:
    if rows != num:
        raise ValueError(
            f"`{name}` is of {rows} rows and there are {num} queries: pass one a query."
        )
