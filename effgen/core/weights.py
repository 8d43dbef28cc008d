"""Log-weights of walkers and paths: how many count, their mean, and resampling.

Axes: `walkers`. A log-weight of `-inf` is a weight of zero; the weights need no
normalization. Everything is done in log space.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Float, Int, PRNGKeyArray

from .contract.counts import check_count
from .contract.keys import check_key


class Estimate(NamedTuple):
    """A Monte Carlo estimate with one standard error, printed as `value ± error`.

    Attributes:
        value: The estimate, one number or an array of them.
        standard_error: One standard error, of the same shape and unit.
    """

    value: Float[Array, "..."]
    standard_error: Float[Array, "..."]

    def __str__(self) -> str:
        """Return a single estimate as `value ± standard_error`, with two digits of it.

        >>> print(Estimate(-1.0968913, 0.04708963))
        -1.097 ± 0.047
        """
        traced = any(isinstance(x, Tracer) for x in self)
        if traced or any(jnp.ndim(x) for x in self):
            return repr(self)
        value, bar = float(self.value), float(self.standard_error)
        if not (math.isfinite(value) and math.isfinite(bar) and bar > 0):
            return f"{value:.6g} ± {bar:.2g}"
        decimals = max(1 - math.floor(math.log10(bar)), 0)
        return f"{value:.{decimals}f} ± {bar:.{decimals}f}"


def effective_sample_size(log_weights: Float[Array, " walkers"]) -> Float[Array, ""]:
    """Return `ess = (sum w)^2 / sum w^2`, between 1 and the number of walkers.

    Weights that are all zero count as none: `ess = 0`.

    >>> import jax.numpy as jnp
    >>> float(effective_sample_size(jnp.zeros(8)))
    8.0

    Arguments:
        log_weights: Log-weights, shape `(walkers,)`, not normalized.

    Returns:
        The effective sample size, one number.

    Raises:
        ValueError: If there are no walkers, or several rows of them.

    Source:
        Kong (1992).
    """
    shifted = _shifted(_one_row("log_weights", log_weights))
    total, squares = jnp.sum(shifted), jnp.sum(shifted**2)
    return jnp.where(squares > 0, total**2 / jnp.where(squares > 0, squares, 1), 0.0)


def conditional_ess(
    log_weights: Float[Array, " walkers"], log_increments: Float[Array, " walkers"]
) -> Float[Array, ""]:
    """Return how many walkers survive one reweighting.

        cess = n * (sum w * v)^2 / (sum w * v^2)

    `w` are the normalized weights before and `v` the exponentials of `log_increments`.
    It is `n` if the increments are equal, whatever the weights were.

    Arguments:
        log_weights: Log-weights before, shape `(walkers,)`, not normalized.
        log_increments: What is added to them, shape `(walkers,)`.

    Returns:
        The conditional effective sample size, one number.

    Raises:
        ValueError: If there are no walkers, or several rows of them, or if there are
            not as many increments as weights.

    Source:
        Zhou, Johansen and Aston (2016), equation 13.
    """
    log_weights = _one_row("log_weights", log_weights)
    log_increments = _one_row("log_increments", log_increments)
    count = log_weights.shape[0]
    if log_increments.shape[0] != count:
        raise ValueError(
            f"`log_increments` has {log_increments.shape[0]} numbers for {count} "
            "walkers: pass one for each."
        )
    weights = normalized(log_weights)
    # A walker without weight must not set the scale, or other weights underflow.
    increments = _shifted(jnp.where(weights > 0, log_increments, -jnp.inf))
    mean, square = jnp.sum(weights * increments), jnp.sum(weights * increments**2)
    ratio = mean**2 / jnp.where(square > 0, square, 1)
    return jnp.where(square > 0, count * ratio, 0.0)


def normalized(log_weights: Float[Array, " walkers"]) -> Float[Array, " walkers"]:
    """Return the weights, `exp(log_weights)` scaled to sum to one.

    If all are zero, or one is NaN, the sum is not one and the caller should look at
    `effective_sample_size`.
    """
    shifted = _shifted(log_weights)
    total = jnp.sum(shifted)
    return shifted / jnp.where(total > 0, total, 1)


def log_mean_exp(log_weights: Float[Array, " walkers"]) -> Estimate:
    """Return `log(mean(exp(log_weights)))` and its standard error.

    The error is that of the mean, taken to the logarithm to first order:
    `sqrt((n / ess - 1) / (n - 1))`. It holds for independent walkers with a good
    `ess`; when a few weights dominate, it is too small. One walker tells no error: it
    is NaN.

    >>> import jax.numpy as jnp
    >>> value, error = log_mean_exp(jnp.full(5, -1000.0))
    >>> float(value), float(error)
    (-1000.0, 0.0)

    Arguments:
        log_weights: Log-weights, shape `(walkers,)`, not normalized, in nats.

    Returns:
        The logarithm of the mean weight and one standard error, in nats.

    Raises:
        ValueError: If there are no walkers, or several rows of them.
    """
    log_weights = _one_row("log_weights", log_weights)
    count = log_weights.shape[0]
    value = jax.nn.logsumexp(log_weights) - jnp.log(count)
    if count == 1:
        return Estimate(value, jnp.full_like(value, jnp.nan))
    ess = effective_sample_size(log_weights)
    relative = jnp.maximum(count / jnp.maximum(ess, 1.0) - 1.0, 0.0)
    return Estimate(value, jnp.sqrt(relative / (count - 1)))


def resample(
    log_weights: Float[Array, " walkers"], num: int, *, key: PRNGKeyArray
) -> Int[Array, " num"]:
    """Return `num` walkers' indices, each drawn in proportion to its weight.

    Systematic resampling by blackjax: walker `i` is taken `num * w[i]` times on
    average, and never more than one time off. The weights `w` sum to one.

    Arguments:
        log_weights: Log-weights, shape `(walkers,)`, not normalized.
        num: How many walkers to draw.
        key: The random key of the draw.

    Returns:
        Indices of walkers, shape `(num,)`.

    Raises:
        ValueError: If there are no walkers, or several rows of them, for a `num` that
            is no integer of 1 or more, and, outside of `jit`, for weights that are all
            zero or of which one is no number.
        TypeError: If `key` is no random key.

    Source:
        Carpenter, Clifford and Fearnhead (1999); `blackjax.smc.resampling`.
    """
    # Imported here: blackjax is as heavy as JAX and most of the core does without it.
    from blackjax.smc import resampling

    check_key(key)
    check_count("num", num)
    log_weights = _one_row("log_weights", log_weights)
    _check_some(log_weights)
    index = resampling.systematic(key, normalized(log_weights), num)
    return jnp.clip(index, 0, log_weights.shape[0] - 1)


def _one_row(name: str, values: Any) -> Float[Array, " walkers"]:
    values = jnp.asarray(values)
    if values.ndim != 1:
        raise ValueError(
            f"`{name}` has shape {values.shape}: pass one row, and map over several by "
            "`jax.vmap`."
        )
    if values.shape[0] == 0:
        raise ValueError(f"`{name}` has no walkers: pass one log-weight or more.")
    # Sums over many walkers have no room in half precision.
    return values.astype(jnp.promote_types(values.dtype, jnp.float32))


def _check_some(log_weights: Float[Array, " walkers"]) -> None:
    if isinstance(log_weights, Tracer):
        return
    top = float(jnp.max(log_weights))
    if not math.isfinite(top):
        raise ValueError(
            f"the largest of `log_weights` is {top}: no walker can be drawn in "
            "proportion to such weights."
        )


def _shifted(log_values: Float[Array, " walkers"]) -> Float[Array, " walkers"]:
    """Return `exp(log_values - max)`, all zero where the maximum is `-inf`."""
    top = jnp.max(log_values)
    return jnp.exp(log_values - jnp.where(jnp.isfinite(top), top, 0.0))
