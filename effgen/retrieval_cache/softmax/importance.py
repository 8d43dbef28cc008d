"""Rows drawn from a cache for a batch, and what each of them counts for."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from effgen.core.running.loops import read_now
from effgen.retrieval_cache.cache.negative_cache import NegativeCache

from .negatives import Excluded
from .sampling import sample_rows
from .scan import Scored, SoftmaxPass, softmax_pass


class BatchRows(NamedTuple):
    """Documents of a batch that nobody drew, which stand for draws of any document.

    Attributes:
        slots: Where the cache has them, past its end if it has not.
        negatives: Of which query each is one.
        frequencies: How often each document number is in a batch, in any unit; without,
            all are taken to be equally often.
    """

    slots: Int[Array, " documents"]
    negatives: Bool[Array, "queries documents"]
    frequencies: Float[Array, " corpus"] | None = None


class Sample(NamedTuple):
    """Rows drawn for a batch, and what the pass over the cache left.

    Attributes:
        slots: The rows, in turn for each query.
        owners: Whose they are.
        stale: Their embeddings in the cache, and then those of the documents beside.
        offsets: What is added to the scores of both.
        scores: Of all queries at both, `-inf` where one is no negative of a query.
        log_partition: As in `SoftmaxPass`.
        mean: As in `SoftmaxPass`.
        population: The number of documents of the cache.
        often: How often each of `stale` is in a batch, over the mean of all documents.
    """

    slots: Int[Array, " draws"]
    owners: Int[Array, " draws"]
    stale: Float[Array, "known size"]
    offsets: Float[Array, " known"]
    scores: Float[Array, "queries known"]
    log_partition: Float[Array, " queries"]
    mean: Float[Array, "queries size"]
    population: Int[Array, ""]
    often: Float[Array, " known"] | None = None


class Anchor(NamedTuple):
    """Where an estimate was made: what its draws and their weights go by.

    All are without gradient.

    Attributes:
        queries: The queries, embedded.
        positives: The scores of their own documents.
        fresh: The drawn documents and those beside, embedded.
        scale: One over the temperature.
    """

    queries: Float[Array, "queries size"]
    positives: Float[Array, " queries"]
    fresh: Float[Array, "known size"]
    scale: Float[Array, ""]


def sampled(
    cache: NegativeCache,
    queries: Float[Array, "queries size"],
    scale: Float[Array, ""],
    num_negatives: int,
    excluded: Excluded,
    beside: BatchRows | None = None,
    *,
    key: PRNGKeyArray,
    mesh: Mesh | None = None,
) -> Sample:
    """Return rows drawn from the queries' softmaxes over the cache, in equal shares.

    No gradient goes through it: `num_negatives` draws in all, `num_negatives / queries`
    of each query, where that is no whole number by systematic sampling. What the cache
    says of the documents `beside` is looked up with them.
    """
    queries, scale, cache = jax.lax.stop_gradient((queries, scale, cache))
    keys = jax.random.split(key)
    scored = Scored.of(cache, excluded)
    found: SoftmaxPass = softmax_pass(scored, queries, scale, cache.block, mesh)
    owners = _owners(queries.shape[0], num_negatives, keys[0])
    slots = sample_rows(
        scored, found, queries, scale, owners, cache.block, key=keys[1], mesh=mesh
    )
    # The rows are read before any of them is written: what follows needs these slots.
    slots, known = read_now(
        lambda: (slots, _known(scored, slots, beside, queries, scale)), slots[0]
    )
    rest = (found.log_partition, found.mean, jnp.sum(cache.valid))
    often = None if beside is None else _often(cache, slots, beside)
    return Sample(slots, owners, *known, *rest, often)


def _known(
    scored: Scored,
    slots: Int[Array, " draws"],
    beside: BatchRows | None,
    queries: Float[Array, "queries size"],
    scale: Float[Array, ""],
) -> tuple[Array, Array, Array]:
    """Return embeddings, offsets and scores: of the draws, then of those beside."""
    drawn_rows = _looked_up(scored.take(slots), queries, scale)
    if beside is None:
        return drawn_rows
    # Nothing is excluded beside, but by `negatives`.
    free = eqx.tree_at(lambda s: s.excluded, scored, nothing_excluded(len(queries)))
    last = scored.ids.shape[0] - 1
    rows = free.take(jnp.minimum(beside.slots, last))
    stale, offsets, scores = _looked_up(rows, queries, scale)
    there = beside.negatives & (beside.slots <= last)[None]
    scores = jnp.where(there, scores, -jnp.inf)
    return (
        jnp.concatenate([drawn_rows[0], stale]),
        jnp.concatenate([drawn_rows[1], offsets]),
        jnp.concatenate([drawn_rows[2], scores], axis=1),
    )


def _often(
    cache: NegativeCache, slots: Int[Array, " draws"], beside: BatchRows
) -> Float[Array, " known"] | None:
    """Return how often documents are in a batch, over the mean of all."""
    if beside.frequencies is None:
        return None
    known = jnp.asarray(beside.frequencies, float)
    both = jnp.concatenate([slots, beside.slots])
    ids = cache.ids.at[both].get(mode="fill", fill_value=-1)
    met = known.at[ids].get(mode="fill", fill_value=0, wrap_negative_indices=False)
    total = jnp.maximum(jnp.sum(known), jnp.finfo(known.dtype).tiny)
    return met * jnp.sum(cache.valid) / total


def _owners(num: int, draws: int, key: PRNGKeyArray) -> Int[Array, " draws"]:
    """Return whose each draw is, of `num` queries."""
    if draws % num == 0:
        return jnp.repeat(jnp.arange(num), draws // num)
    each = num / draws
    places = jnp.arange(draws) * each + jax.random.uniform(key) * each
    return jnp.minimum(jnp.floor(places).astype(jnp.int32), num - 1)


def _looked_up(
    taken: Scored, queries: Float[Array, "queries size"], scale: Float[Array, ""]
) -> tuple[Array, Array, Array]:
    return taken.rows.embeddings(), taken.offsets, taken.scores(queries, scale)


def shared_weights(
    sample: Sample, defense: float | Float[Array, ""] = 0.0
) -> Float[Array, "queries known"]:
    """Return what each draw counts for each query, a mean of one over all draws.

        weights_is = count_s pi_i(s) / mixture(s),    pi_i = softmax of query i
        mixture(s) = sum_j num_j pi_j(s) + defense * beside * chance(s)
        chance(s) = often(s) / population

    whoever drew it: the balance heuristic. A draw's `count` is 1. A document beside is
    as good as drawn by how often it is in a batch: what the stale softmaxes hold for
    unlikely then counts too. Its `count` is `defense (1 - chance)^beside`: it stands
    for what is outside of batches, so for itself as often as a batch is without it.
    Zero for queries without negatives.

    Source:
        Veach and Guibas (1995); Hesterberg (1995) for the even part.
    """
    num, draws = len(sample.log_partition), len(sample.slots)
    beside = sample.scores.shape[1] - draws
    there = jnp.isfinite(sample.log_partition)
    log_partition = jnp.where(there, sample.log_partition, 0)
    shares = jnp.where(there[:, None], sample.scores - log_partition[:, None], -jnp.inf)
    mixture = jax.nn.logsumexp(shares, axis=0) + jnp.log(draws / num)
    often = 1 if sample.often is None else sample.often
    chance = jnp.broadcast_to(often / jnp.maximum(sample.population, 1), mixture.shape)
    mixture = jnp.logaddexp(mixture, jnp.log(defense * beside * chance))
    owned = jnp.concatenate([there[sample.owners], jnp.ones(beside, bool)])
    sound = jnp.isfinite(mixture) & owned
    mixture = jnp.where(sound, mixture, 0)
    absent = jnp.maximum(1 - chance[draws:], 0) ** beside
    counts = jnp.concatenate([jnp.ones(draws), defense * absent])
    return jnp.where(sound[None], counts[None] * jnp.exp(shares - mixture[None]), 0)


def defense_of(
    sample: Sample, change: Float[Array, "queries known"]
) -> Float[Array, ""]:
    """Return how far documents beside count as draws: `1 - 1 / max(1, drift^2)`.

    `drift` is the standard deviation of their scores since their rows were embedded, in
    nats. Up to one, ratios correct the draws. Past it hardly any draw is left to
    correct (of ratios as spread as that, `exp(-drift^2)` of the draws count), and what
    is likely now was unlikely then, and not drawn.
    """
    draws = len(sample.slots)
    there = jnp.isfinite(sample.scores[:, draws:])
    total = jnp.sum(jnp.where(there, change[:, draws:] ** 2, 0))
    square = total / jnp.maximum(jnp.sum(there), 1)
    return 1 - 1 / jnp.maximum(square, 1)


def effective_draws(weights: Float[Array, "queries draws"]) -> Float[Array, " queries"]:
    """Return `sum(weights)^2 / sum(weights^2)`, zero where there are none."""
    squares = jnp.maximum(jnp.sum(weights**2, axis=1), jnp.finfo(weights.dtype).tiny)
    return jnp.sum(weights, axis=1) ** 2 / squares


nothing_excluded = Excluded.nothing
