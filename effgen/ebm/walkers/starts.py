"""Where walkers start: draws of densities that are known, and what is known of them.

Each is compiled as a whole, since small operations compile for seconds one after the
other. `begin` makes the walkers of what is drawn.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from effgen.ebm.energies.coordinates import AbstractCoordinates


@partial(jax.jit, static_argnames=("shape", "begin"))
def gaussian(
    key: PRNGKeyArray,
    scale: float,
    shape: tuple[int, ...],
    coordinates: AbstractCoordinates | None,
    begin: Callable[..., Any],
) -> Any:
    """Return a Gaussian: positions, energies, gradients and `log Z`, for `begin`."""
    noise = jax.random.normal(key, shape)
    positions, gradients, log_determinant = scale * noise, noise / scale, 0.0
    if coordinates is not None:
        positions = jax.vmap(coordinates.inverse)(positions)
        _, pullback = jax.vjp(jax.vmap(coordinates), positions)
        (gradients,) = pullback(gradients)
        log_determinant = coordinates.log_determinant
    return begin(
        positions,
        0.5 * _sums(noise**2),
        gradients,
        noise[0].size * (0.5 * jnp.log(2 * jnp.pi) + jnp.log(scale)) - log_determinant,
    )


@partial(jax.jit, static_argnames=("shape", "begin"))
def uniform(
    key: PRNGKeyArray,
    shape: tuple[int, ...],
    low: float,
    high: float,
    begin: Callable[..., Any],
) -> Any:
    """Return the same of a box, where the energy is 0."""
    positions = jax.random.uniform(key, shape, minval=low, maxval=high)
    log_partition = positions[0].size * jnp.log(high - low)
    return begin(positions, jnp.zeros(shape[0]), jnp.zeros(shape), log_partition)


@partial(jax.jit, static_argnames=("num", "begin"))
def bernoulli(
    key: PRNGKeyArray,
    logits: Float[Array, "*shape"],
    num: int,
    begin: Callable[..., Any],
) -> Any:
    """Return the same of independent zeros and ones."""
    shape = (num, *logits.shape)
    drawn = jax.random.bernoulli(key, jax.nn.sigmoid(logits)[None], shape)
    positions = drawn.astype(logits.dtype)
    gradients = jnp.broadcast_to(-logits[None], shape)
    return begin(
        positions,
        _sums(positions * gradients),
        gradients,
        jnp.sum(jax.nn.softplus(logits)),
    )


def _sums(x: Float[Array, "walkers *shape"]) -> Float[Array, " walkers"]:
    return jnp.sum(x.reshape(x.shape[0], -1), axis=1)
