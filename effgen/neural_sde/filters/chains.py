"""Markov chains in continuous time: how regimes turn in a time of any length."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


_MOST_DOUBLINGS = 120  # of gaps: 2^120 is near the largest number of float32
_TERMS = 18  # of an exponential's series at one: the next is below float64's rounding


def turned(
    generator: Float[Array, "regimes regimes"], gap: Float[Array, ""]
) -> Float[Array, "regimes regimes"]:
    """Return the probabilities of each regime after `gap`, given the one before.

        P = expm(Q gap)

    All terms are sums of numbers that are not negative, so no digits are lost, and rows
    are made to sum to one at each doubling. So long gaps end at the chain's own law.

    Arguments:
        generator: `Q`, whose rows sum to zero, per unit of time.
        gap: A time, at least zero.

    Returns:
        `P`, one row for each regime before.

    Source:
        Jensen (1953), uniformization; the doublings, of scaling and squaring.
    """
    eye = jnp.eye(len(generator), dtype=generator.dtype)
    fastest = jnp.max(-jnp.diagonal(generator))
    fastest = jnp.where(fastest > 0, fastest, 1.0)
    often = jax.lax.stop_gradient(fastest * gap)
    doublings = jnp.ceil(jnp.log2(jnp.maximum(often, 1.0)))
    mean = fastest * gap * jnp.exp2(-doublings)
    jump = jnp.maximum(eye + generator / fastest, 0.0)
    found = term = eye
    for k in range(1, _TERMS + 1):
        term = term @ jump * (mean / k)
        found = found + term

    def doubled(i: Array, now: Array) -> Array:
        return jnp.where(i < doublings, _normalized(now @ now), now)

    return jax.lax.fori_loop(0, _MOST_DOUBLINGS, doubled, _normalized(found))


def _normalized(rows: Array) -> Array:
    return rows / jnp.sum(rows, axis=1, keepdims=True)
