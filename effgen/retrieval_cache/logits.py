"""One logit that stands for the whole cache: its value, and its gradient."""

from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from effgen.core.loops import read_now

from .cache import NegativeCache
from .sampling import drawn
from .scan import Excluded, Passed, Scored, passed


class Beside(NamedTuple):
    """Documents of a batch that nobody drew, which stand for draws of any document.

    **Attributes:** `slots`, where the cache has them, past its end if it has not;
    `negatives`, of which query each is one.
    """

    slots: Int[Array, " documents"]
    negatives: Bool[Array, "queries documents"]


class Sample(NamedTuple):
    """Rows drawn for a batch, and what the pass over the cache left.

    **Attributes:** `slots`, the rows, in turn for each query; `owners`, whose they are;
    `stale`, their embeddings in the cache, and then those of the documents beside;
    `scores`, of all queries at both, `-inf` where one is no negative of a query;
    `log_partition` and `mean`, as in `Passed`; `population`, documents of the cache.
    """

    slots: Int[Array, " draws"]
    owners: Int[Array, " draws"]
    stale: Float[Array, "known size"]
    offsets: Float[Array, " known"]
    scores: Float[Array, "queries known"]
    log_partition: Float[Array, " queries"]
    mean: Float[Array, "queries size"]
    population: Int[Array, ""]


class Corrected(NamedTuple):
    """How well the draws did.

    **Attributes:** `drift`, the standard deviation of a score since its row was
    embedded; `ess`, of the corrected weights, as a share of the draws that count for a
    query; `staleness`, `|stale - fresh|^2 / |fresh|^2`; all of them means.
    """

    drift: Float[Array, ""]
    ess: Float[Array, ""]
    staleness: Float[Array, ""]


def sampled(
    cache: NegativeCache,
    queries: Float[Array, "queries size"],
    scale: Float[Array, ""],
    num_negatives: int,
    excluded: Excluded,
    beside: Beside | None = None,
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
    found: Passed = passed(scored, queries, scale, cache.block, mesh)
    owners = _owners(queries.shape[0], num_negatives, keys[0])
    slots = drawn(
        scored, found, queries, scale, owners, cache.block, key=keys[1], mesh=mesh
    )
    # Nothing is excluded beside, but by `negatives`.
    free = eqx.tree_at(lambda s: s.excluded, scored, nothing_excluded(len(queries)))

    def looked_up() -> tuple[Array, Array, Array, Array]:
        parts = [_looked_up(scored.take(slots), queries, scale)]
        if beside is not None:
            last = cache.capacity - 1
            rows = free.take(jnp.minimum(beside.slots, last))
            stale, offsets, scores = _looked_up(rows, queries, scale)
            there = beside.negatives & (beside.slots <= last)[None]
            parts.append((stale, offsets, jnp.where(there, scores, -jnp.inf)))
        stale, offsets, scores = zip(*parts, strict=True)
        joined = (jnp.concatenate(stale), jnp.concatenate(offsets))
        return slots, *joined, jnp.concatenate(scores, axis=1)

    # The rows are read before any of them is written: what follows needs these slots.
    slots, stale, offsets, scores = read_now(looked_up, slots[0])
    rest = (found.log_partition, found.mean, jnp.sum(cache.valid))
    return Sample(slots, owners, stale, offsets, scores, *rest)


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
        mixture(s) = sum_j num_j pi_j(s) + defense * beside / population

    whoever drew it: the balance heuristic. A draw's `count` is 1, and `defense` that of
    a document beside, which is as good as drawn evenly: what the stale softmaxes hold
    for unlikely then counts too. Zero for queries without negatives.

    **Source:** Veach and Guibas (1995); Hesterberg (1995) for the even part.
    """
    num, draws = len(sample.log_partition), len(sample.slots)
    beside = sample.scores.shape[1] - draws
    there = jnp.isfinite(sample.log_partition)
    log_partition = jnp.where(there, sample.log_partition, 0)
    shares = jnp.where(there[:, None], sample.scores - log_partition[:, None], -jnp.inf)
    mixture = jax.nn.logsumexp(shares, axis=0) + jnp.log(draws / num)
    even = defense * beside / jnp.maximum(sample.population, 1)
    mixture = jnp.logaddexp(mixture, jnp.log(even))
    owned = jnp.concatenate([there[sample.owners], jnp.ones(beside, bool)])
    sound = jnp.isfinite(mixture) & owned
    mixture = jnp.where(sound, mixture, 0)
    counts = jnp.concatenate([jnp.ones(draws), jnp.full(beside, defense)])
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


def pseudo_logit(
    queries: Float[Array, "queries size"],
    fresh: Float[Array, "draws size"],
    sample: Sample,
    scale: Float[Array, ""],
    *,
    max_log_ratio: float = 5.0,
) -> tuple[Float[Array, " queries"], Corrected]:
    """Return one logit a query: the log-partition over the cache's documents.

        logit_i ~ log sum_j exp(scale <query_i, fresh_j> + offset_j)

    The value is the sum over stale rows, corrected by the ratios fresh to stale of the
    draws; the gradient is the softmax's expectation, exact over stale rows for the
    queries, and over the draws for documents and for what staleness changes:

        weights  = shared * ratio / R,  R_i = mean of ratio, by shared (see below)
        value_i  = log_partition_i + log(R_i)
        d logit  = d scale <query, sum weights fresh + (1 - defense) (mean
                   - sum shared stale)> + scale <query, sum weights d fresh>

    With a fresh cache the ratios are one, `defense` (`defense_of`) is zero, and the
    gradient is unbiased. The staler the cache, the more the documents beside take over
    (`shared_weights`). It is `-inf` with zero gradient for queries without negatives.
    `R_i` counts the batch's mean as one draw more: of a query's single draw, its own
    ratio would cancel.

    **Arguments:** `fresh`, the drawn documents and those beside, embedded now, with
    gradient; `max_log_ratio`, at which ratios of draws are cut, 0 to leave staleness
    as it is.
    """
    fixed = jax.lax.stop_gradient
    now = scale * (queries @ fresh.T) + sample.offsets[None]
    negative = jnp.isfinite(sample.scores)
    change = fixed(jnp.where(negative, now - jnp.where(negative, sample.scores, 0), 0))
    defense = defense_of(sample, change) if max_log_ratio else jnp.zeros(())
    shared = shared_weights(sample, defense)
    ratio = _ratio(sample, change, max_log_ratio)
    normalizer = _mean_ratio(shared, ratio)
    weights = shared * ratio / normalizer[:, None]
    control = (1 - defense) * (sample.mean - shared @ sample.stale)
    mean = fixed(weights @ fresh + control)
    by_queries = scale * jnp.sum(queries * mean, axis=1)
    by_documents = fixed(scale) * jnp.sum(weights * (fixed(queries) @ fresh.T), axis=1)
    there = jnp.isfinite(sample.log_partition)
    value = sample.log_partition + jnp.log(normalizer)
    logit = valued(value, by_queries + by_documents, there)
    return logit, _corrected(sample, shared, weights, change, fixed(fresh))


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


def valued(
    value: Float[Array, " queries"],
    slope: Float[Array, " queries"],
    there: Bool[Array, " queries"],
) -> Float[Array, " queries"]:
    """Return `value` with the gradient of `slope`; `-inf`, without, if not `there`."""
    joined = jnp.where(there, value, 0) + slope - jax.lax.stop_gradient(slope)
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


def effective_draws(weights: Float[Array, "queries draws"]) -> Float[Array, " queries"]:
    """Return `sum(weights)^2 / sum(weights^2)`, zero where there are none."""
    squares = jnp.maximum(jnp.sum(weights**2, axis=1), jnp.finfo(weights.dtype).tiny)
    return jnp.sum(weights, axis=1) ** 2 / squares


def _corrected(
    sample: Sample,
    shared: Float[Array, "queries draws"],
    weights: Float[Array, "queries draws"],
    change: Float[Array, "queries draws"],
    fresh: Float[Array, "draws size"],
) -> Corrected:
    total = jnp.sum(shared)
    spread = jnp.sum(shared * change**2) / jnp.where(total > 0, total, 1)
    # Of what the draws would count for without a correction.
    most = jnp.maximum(jnp.sum(effective_draws(shared)), 1e-30)
    ess = jnp.sum(effective_draws(weights)) / most
    return Corrected(jnp.sqrt(spread), ess, staleness(sample.stale, fresh))


def staleness(
    stale: Float[Array, "draws size"], fresh: Float[Array, "draws size"]
) -> Float[Array, ""]:
    """Return the mean of `|stale - fresh|^2 / |fresh|^2`."""
    apart = jnp.sum((stale - fresh) ** 2, axis=1)
    return jnp.mean(apart / jnp.maximum(jnp.sum(fresh**2, axis=1), 1e-30))


def nothing_excluded(num: int) -> Excluded:
    """Return that all documents are negatives of `num` queries."""
    none = jnp.zeros(0, jnp.int32)
    return Excluded(none, none, jnp.zeros((num, 0), jnp.int32))


def cache_logit(
    queries: Float[Array, "queries size"],
    cache: NegativeCache,
    encode: Callable[[PyTree], Float[Array, "draws size"]],
    *,
    key: PRNGKeyArray,
    num_negatives: int = 64,
    scale: float | Float[Array, ""] = 20.0,
    known: Int[Array, "queries any"] | None = None,
    max_log_ratio: float = 5.0,
) -> tuple[Float[Array, " queries"], Sample, Float[Array, "draws size"]]:
    """Return a logit for everything in a cache, to append to an in-batch loss.

        logit, sample, fresh = cache_logit(q, cache, encoder.document, key=key, ...)
        losses = logsumexp([scores, logit[:, None]]) - positives
        cache = cache.written(sample.slots, stop_gradient(fresh), step)

    **Arguments:** `queries`, embedded with gradient; `encode`, documents of the cache
    to embeddings, with gradient; `num_negatives`, how many are drawn for the whole
    batch; `scale`, one over the temperature; `known`, `(queries, any)`, numbers of
    documents that are no negatives of a query, filled up with -1.

    **Returns:** the logits, as in `pseudo_logit`; the draws; their embeddings now, to
    be written back.
    """
    num = queries.shape[0]
    excluded = nothing_excluded(num)
    if known is not None:
        excluded = excluded._replace(known=known)
    scale = jnp.asarray(scale, queries.dtype)
    sample = sampled(cache, queries, scale, num_negatives, excluded, key=key)
    fresh = encode(cache.documents(sample.slots))
    logit, _ = pseudo_logit(queries, fresh, sample, scale, max_log_ratio=max_log_ratio)
    return logit, sample, fresh
