"""Logarithms of factorials without the digits that their differences would lose.

`log Gamma` of a million is about 1e7, of which float32 keeps no unit; what is left of
it after Stirling's formula is small at any size.
"""

import math

import jax.numpy as jnp
from jax.scipy.special import gammaln
from jaxtyping import Array, Float


_FAR = 16.0  # from here on four terms of the series are good to 1e-12
_HALF_LOG = 0.5 * math.log(2 * math.pi)


def stirling_error(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Return `log x! - (x + 1/2) log x + x - log(2 pi) / 2`, `x` positive.

    Source:
        Loader (2000), equation 3.
    """
    far, near = jnp.maximum(x, _FAR), jnp.minimum(x, _FAR)
    square = 1 / far**2
    series = (1 / 12 - square * (1 / 360 - square * (1 / 1260 - square / 1680))) / far
    exact = gammaln(near + 1) - (near + 0.5) * jnp.log(near) + near - _HALF_LOG
    return jnp.where(x > _FAR, series, exact)


def deviance(x: Float[Array, "*shape"], log_ratio: Float[Array, "*shape"]) -> Array:
    """Return `x (exp(d) - 1 - d)`, `d = log(mean / x)`: half of a Poisson's deviance.

    Its terms cancel where `d` is small: there it is a series.
    """
    near = jnp.abs(log_ratio) < 0.1
    d = jnp.where(near, log_ratio, 0.0)
    series = d**2 * (1 / 2 + d * (1 / 6 + d * (1 / 24 + d * (1 / 120 + d / 720))))
    away = jnp.where(near, 0.0, log_ratio)
    return x * jnp.where(near, series, jnp.expm1(away) - away)


def log_gamma_half(a: Float[Array, ""]) -> Float[Array, ""]:
    """Return `log Gamma(a + 1/2) - log Gamma(a)`, `a` positive."""
    far, near = jnp.maximum(a, _FAR), jnp.minimum(a, _FAR)
    # Of `x! = Gamma(x + 1)` at x = a - 1/2 and a - 1.
    more, less = far - 0.5, far - 1
    series = far * jnp.log1p(0.5 / less) + 0.5 * jnp.log(less) - 0.5
    series = series + stirling_error(more) - stirling_error(less)
    return jnp.where(a > _FAR, series, gammaln(near + 0.5) - gammaln(near))
