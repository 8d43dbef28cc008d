"""Steps of parts in closed form: what a matrix exponential would give, without one.

A fit compiles its steps with their derivatives, for each structure anew. The series and
the doublings of a general matrix are most of that.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from effgen.neural_sde.linear_sdes.transitions import exact_step, relative_growth


_NUM_TERMS = 16  # of a series that is used where its argument is below one


class PartStep(NamedTuple):
    """A part's step: `Phi`, `int Phi ds / dt`, and the noise's covariance over `dt`."""

    flow: Float[Array, "state state"]
    mean_weight: Float[Array, "state state"]
    spread: Float[Array, "state state"]


def side_by_side(steps: list[PartStep]) -> PartStep:
    """Return the step of parts that do not touch."""
    return PartStep(*map(jax.scipy.linalg.block_diag, *steps))


def general_step(
    matrix: Float[Array, "state state"],
    diffusion: Float[Array, "state brownian"],
    dt: Float[Array, ""],
) -> PartStep:
    """Return the step of `dX = matrix X dt + diffusion dW`, by its exponential."""
    return PartStep(*exact_step(matrix, diffusion @ diffusion.T, dt))


def walk_step(noise: Float[Array, ""]) -> PartStep:
    """Return the step of `dX = noise dW`, which is the same for every `dt`."""
    one = jnp.ones((1, 1), noise.dtype)
    return PartStep(one, one, noise**2 * one)


def slope_step(
    noise: Float[Array, ""], slope_noise: Float[Array, ""], dt: Float[Array, ""]
) -> PartStep:
    """Return the step of `dX = slope dt + noise dW`, `dslope = slope_noise dV`."""
    one, zero = jnp.ones_like(noise), jnp.zeros_like(noise)
    dt = dt.astype(noise.dtype)
    flow = jnp.stack([one, dt, zero, one])
    mean_weight = jnp.stack([one, dt / 2, zero, one])
    both = slope_noise**2
    spread = jnp.stack(
        [noise**2 + both * dt**2 / 3, both * dt / 2, both * dt / 2, both]
    )
    return PartStep(*(x.reshape(2, 2) for x in (flow, mean_weight, spread)))


def returning_step(
    rate: Float[Array, ""], noise: Float[Array, ""], dt: Float[Array, ""]
) -> PartStep:
    """Return the step of `dX = -rate X dt + noise dW`."""
    one = jnp.ones((1, 1), noise.dtype)
    return PartStep(
        jnp.exp(-rate * dt) * one,
        relative_growth(-rate * dt) * one,
        noise**2 * relative_growth(-2 * rate * dt) * one,
    )


def turning_step(
    damping: Float[Array, ""],
    rates: Float[Array, " pairs"],
    noise: Float[Array, ""],
    dt: Float[Array, ""],
) -> PartStep:
    """Return the step of pairs that turn and decay, with noise of their own.

        dX_k = (rates_k J - damping) X_k dt + noise dW_k

    Noise that is alike in both components does not see the turn.
    """
    decay, angles = -damping * dt, rates * dt
    grown = jnp.exp(decay)
    real, imaginary = _relative_turn(decay, angles)
    eye = jnp.eye(2 * len(rates), dtype=noise.dtype)
    return PartStep(
        _pairs(grown * jnp.cos(angles), grown * jnp.sin(angles)),
        _pairs(real, imaginary),
        noise**2 * relative_growth(2 * decay) * eye,
    )


def turning(rates: Float[Array, " pairs"]) -> Float[Array, "state state"]:
    """Return the matrix that turns one pair of components at each angular rate."""
    turn = np.array([[0.0, -1.0], [1.0, 0.0]])
    return jnp.kron(jnp.diag(rates), jnp.asarray(turn, rates.dtype))


def _pairs(
    real: Float[Array, " pairs"], imaginary: Float[Array, " pairs"]
) -> Float[Array, "state state"]:
    """Return the matrix that multiplies each pair by a complex number."""
    return jnp.diag(jnp.repeat(real, 2)) + turning(imaginary)


def _relative_turn(
    decay: Float[Array, ""], angles: Float[Array, " pairs"]
) -> tuple[Float[Array, " pairs"], Float[Array, " pairs"]]:
    """Return the parts of `(exp(z) - 1) / z`, `z = decay + i angle`, one at zero."""
    decay = jnp.broadcast_to(decay, angles.shape)
    size = decay**2 + angles**2
    small = size < 1
    a, b = (jnp.where(small, x, 0.0) for x in (decay, angles))
    real, imaginary = jnp.ones_like(a), jnp.zeros_like(a)
    for k in range(_NUM_TERMS, 1, -1):  # 1 + z / 2 (1 + z / 3 (...))
        real, imaginary = (
            1 + (a * real - b * imaginary) / k,
            (a * imaginary + b * real) / k,
        )
    safe = jnp.where(small, 1.0, size)
    up = jnp.expm1(decay) * jnp.cos(angles) - 2 * jnp.sin(angles / 2) ** 2
    side = jnp.exp(decay) * jnp.sin(angles)
    return (
        jnp.where(small, real, (up * decay + side * angles) / safe),
        jnp.where(small, imaginary, (side * decay - up * angles) / safe),
    )
