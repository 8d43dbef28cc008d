"""Blocks of log-weights: how many there are, and their estimate of `log Z`."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from effgen.core.weights import (
    Estimate,
    conditional_ess,
    log_mean_exp,
    normalized,
    resample,
)


# So many blocks tell the error of `log Z` by their spread; fewer leave it to the
# walkers' genealogy. `islands` makes up to twice as many, of no fewer walkers each.
FEWEST_BLOCKS = 8
_MOST_ISLANDS = 16
_FEWEST_A_BLOCK = 8


def num_blocks_of(num: int) -> int:
    """Return how many blocks tell an error of `num` walkers: 16 to 8, or 1 of few.

    The largest number that divides the walkers, if one does.
    """
    most = min(_MOST_ISLANDS, num // _FEWEST_A_BLOCK)
    if most < FEWEST_BLOCKS:
        return 1
    fitting = (n for n in range(most, FEWEST_BLOCKS - 1, -1) if num % n == 0)
    return next(fitting, most)


def log_mean(log_weights: Float[Array, " block"]) -> Float[Array, ""]:
    """Return `log(mean(exp(log_weights)))`."""
    return jax.nn.logsumexp(log_weights) - jnp.log(log_weights.shape[0])


def spread_error(values: Float[Array, " blocks"]) -> Float[Array, ""]:
    """Return the error of the mean of `exp(values)`, in logarithm, by their spread.

        error = sqrt((exp(var(values)) - 1) / blocks)

    that of a lognormal: the spread of `exp(values)` themselves is too small just where
    their mean is. It is widened as Student's, so that twice the error holds the truth
    in 95 % of runs.

    Source:
        Berard, Del Moral and Doucet (2014) for the lognormal limit.
    """
    num = values.shape[0]
    lognormal = jnp.sqrt(jnp.expm1(jnp.var(values, ddof=1)) / num)
    shares = normalized(values)
    sampled = jnp.sqrt(jnp.sum((shares - 1 / num) ** 2) * num / (num - 1))
    error = widening(num - 1) * jnp.maximum(lognormal, sampled)
    return jnp.where(jnp.isnan(error), jnp.inf, error)


def widening(freedom: int) -> float:
    """Return Student's 97.5 % quantile over the normal's: 1.09 of 15, 1.2 of 7.

    Source:
        Hill (1970), the first terms of the expansion.
    """
    z = 1.96
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    return (z + first / freedom + second / freedom**2) / z


def variance_by_roots(
    log_weights: Float[Array, " block"], roots: Int[Array, " block"]
) -> Float[Array, ""]:
    """Return the variance of `log_mean_exp(log_weights)`, relatives as one.

    With every walker its own root it is `(n / ess - 1) / (n - 1)`.
    """
    num = log_weights.shape[0]
    shares = jax.ops.segment_sum(normalized(log_weights), roots, num)
    return jnp.maximum(jnp.sum(shares**2) - 1 / num, 0.0) * num / (num - 1)


def combined(
    values: Float[Array, " blocks"],
    log_weights: Float[Array, "blocks size"],
    roots: Int[Array, "blocks size"],
) -> Estimate:
    """Return `log Z` of all blocks and its error, as `Walkers.estimate` tells them."""
    value, between = log_mean_exp(values)
    if values.shape[0] >= FEWEST_BLOCKS:
        known = ~jnp.any(jnp.isnan(values))
        return Estimate(value, jnp.where(known, spread_error(values), jnp.nan))
    variances = jax.vmap(variance_by_roots)(log_weights, roots)
    within = jnp.sum(normalized(values) ** 2 * variances)
    if len(values) > 1:
        within = jnp.maximum(within, between**2)
    return Estimate(value, jnp.sqrt(within))


def num_roots(roots: Int[Array, " walkers"]) -> Int[Array, ""]:
    """Return how many different roots there are."""
    num = roots.shape[0]
    return jnp.sum(jnp.zeros(num, roots.dtype).at[roots].set(1))


def drawn_if(
    log_weights: Float[Array, " block"], wanted: Bool[Array, ""], key: PRNGKeyArray
) -> Int[Array, " block"]:
    """Return which walkers of a block are kept: all, where it is not resampled."""
    num = log_weights.shape[0]
    found = resample(log_weights, num, key=key)
    return jnp.where(wanted, found, jnp.arange(num, dtype=found.dtype))


def share_left(
    before: Float[Array, "blocks size"], after: Float[Array, "blocks size"]
) -> Float[Array, " blocks"]:
    """Return the share of each block that a change of its log-weights has left."""
    return (
        jax.vmap(conditional_ess)(before, increments(before, after)) / before.shape[1]
    )


def increments(before: Float[Array, "..."], after: Float[Array, "..."]) -> Array:
    """Return how log-weights have changed; `-inf` for walkers that are lost."""
    change = after - before
    # A walker lost before has no increment (-inf less -inf), and no weight either.
    return jnp.where(jnp.isnan(change), -jnp.inf, change)
