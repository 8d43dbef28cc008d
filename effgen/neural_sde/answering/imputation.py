"""Missing values, by what the sensors seen at the same time tell of their noise."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from effgen.neural_sde.observing.decoders import AbstractDecoder, LinearDecoder


def imputed(
    decoder: AbstractDecoder,
    mean: Float[Array, "*batch sensors"],
    seen: tuple[Array, Array, Array | None],
) -> Float[Array, "*batch sensors"]:
    """Return values, the posterior mean where they are missing.

        E[y_m | y] = mean_m + R_mo R_oo^-1 (y_o - mean_o)

    `R` is the covariance of a linear decoder's noise. Of other decoders the second term
    is zero.

    Arguments:
        decoder: What is observed.
        mean: The posterior mean of each value without noise.
        seen: Values, where there are values, and what multiplies each value's noise, or
            `None`.
    """
    ys, mask, errors = seen
    if not isinstance(decoder, LinearDecoder) or mean.shape[-1] == 1:
        return jnp.where(mask, ys, mean)
    if errors is None:
        errors = jnp.ones_like(ys)

    def row(mean: Array, y: Array, mask: Array, errors: Array) -> Array:
        noise = decoder.observed(jnp.ones_like(mask), errors)[1]
        known = decoder.observed(mask, errors)[1]
        error = jnp.linalg.solve(known, jnp.where(mask, y - mean, 0))
        return jnp.where(mask, y, mean + noise @ error)

    by_row = jnp.vectorize(row, signature="(s),(s),(s),(s)->(s)")
    return by_row(mean, ys, mask, errors)
