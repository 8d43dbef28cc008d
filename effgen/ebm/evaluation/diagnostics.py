"""Diagnostics of walkers: tails of weights and gradients, and their equilibrium."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from effgen.ebm.contract.arguments import as_rows, check_finite
from effgen.ebm.walkers.blocks import FEWEST_BLOCKS
from effgen.ebm.walkers.islands import check_walkers
from effgen.ebm.walkers.weighted_walkers import Walkers


_MOST_LABELS = 2**20


def pareto_k(log_weights: Float[Array, " walkers"]) -> Float[Array, ""]:
    """Return the shape `k` of the Pareto tail that fits the largest weights.

    Weights have `1 / k` finite moments. Below 0.5 the effective sample size is right,
    up to 0.7 nearly; past 0.7, more walkers or smaller steps are needed. Equal weights
    have `-inf`; weights that are all 0 have `inf`.

    Arguments:
        log_weights: Log-weights, shape `(walkers,)`, 2 or more; `-inf` for a weight
            of 0.

    Returns:
        `k`, one number.

    Raises:
        ValueError: For an object that is no row of log-weights, or has NaN or `inf`.
        TypeError: For values that are not numbers.

    Source:
        Vehtari, Simpson, Gelman, Yao and Gabry (2024); `blackjax.pareto_khat`.
    """
    log_weights = as_rows("log_weights", log_weights)
    if log_weights.ndim != 1 or log_weights.shape[0] < 2:
        raise ValueError(
            f"`log_weights` has shape {log_weights.shape}: pass one for each walker, 2 "
            "or more."
        )
    lost = jnp.isneginf(log_weights)  # walkers of weight 0, which are no fault
    check_finite("log_weights", jnp.where(lost, 0.0, log_weights))
    return _pareto_k(log_weights)


@jax.jit
def _pareto_k(log_weights: Float[Array, " walkers"]) -> Float[Array, ""]:
    from blackjax import pareto_khat

    weights = jnp.exp(log_weights - jnp.max(log_weights))
    share = min(0.2, 3 / float(np.sqrt(weights.size)))
    equal = jnp.max(weights) - jnp.min(weights) < 1e-6
    shape = pareto_khat(weights, tail="upper", tail_frac=share)
    # A tail of equal weights, as after a resampling, has no shape and no end.
    shape = jnp.where(equal | jnp.isnan(shape), -jnp.inf, shape)
    return jnp.where(jnp.isneginf(jnp.max(log_weights)), jnp.inf, shape)


def gradient_pareto_k(walkers: Walkers) -> Float[Array, ""]:
    """Return the shape `k` of the Pareto tail of the gradients' norms.

        mean(|gradients|^2) = mean(the energy's Laplacian)

    holds for every smooth density on the whole space. Past `k = 0.7` a few walkers
    decide the left side: they are at the edge of a place that is far narrower than
    where the others are, and too narrow for the moves. Its mass may have been missed.

    Arguments:
        walkers: With the gradients of their energy, each counted once.

    Returns:
        `k`; `-inf` for kernels without gradients, and `inf` where one is not finite.

    Source:
        Stein (1972) for the identity; Vehtari et al. (2024) for `k`.
    """
    rows = walkers.gradients.reshape(walkers.num, -1)
    norms = jnp.linalg.norm(rows, axis=1)
    moving = norms > 0
    shape = _pareto_k(
        jnp.where(moving, jnp.log(jnp.where(moving, norms, 1.0)), -jnp.inf)
    )
    shape = jnp.where(jnp.any(moving), shape, -jnp.inf)
    return jnp.where(jnp.all(jnp.isfinite(norms)), shape, jnp.inf)


def imbalance(walkers: Walkers) -> Float[Array, ""]:
    """Return how far walkers are from the equilibrium of their energy.

        mean((positions - mean(positions)) * gradients) = 1, in every coordinate

    holds for every smooth density on the whole space; in a box, for those with `walls`,

        mean((x - low) * (high - x) * gradients) = mean(low + high - 2 x)

    The largest miss over the coordinates is taken, in standard errors by the blocks'
    spread, as if it were normal. `sqrt(2 log(100 * coordinates))` is passed by chance
    in less than one case in a hundred. Modes without walkers are not seen.

    Arguments:
        walkers: Weighted walkers, with the gradients of their energy.

    Returns:
        The miss, in standard errors. Zero of fewer than 8 blocks, of walkers on a
            lattice, and of coordinates in which the energy is flat.

    Raises:
        TypeError: For values that are no walkers.

    Source:
        The identity of Stein (1972); Wallace (1959), from Student's to normal.
    """
    check_walkers("walkers", walkers)
    if walkers.num_blocks < FEWEST_BLOCKS:
        return jnp.zeros(())
    return _imbalance(walkers)


@jax.jit
def _imbalance(walkers: Walkers) -> Float[Array, ""]:
    weights = walkers.weights
    x, g = (a.reshape(walkers.num, -1) for a in (walkers.positions, walkers.gradients))
    if walkers.walls is None:
        misses = (x - (weights @ x)[None]) * g - 1
    else:
        low, high = walkers.walls
        misses = (x - low) * (high - x) * g - (low + high - 2 * x)
    off = jnp.where(weights[:, None] > 0, weights[:, None] * misses, 0.0)
    blocks = jnp.sum(off.reshape(walkers.num_blocks, -1, x.shape[1]), axis=1)
    freedom = walkers.num_blocks - 1
    error = jnp.std(blocks, axis=0, ddof=1) * jnp.sqrt(walkers.num_blocks)
    students = jnp.sum(blocks, axis=0) / jnp.where(error > 0, error, jnp.inf)
    normal = jnp.sqrt(freedom * jnp.log1p(students**2 / freedom))
    normal = normal * (8 * freedom + 1) / (8 * freedom + 3)
    flat = jnp.all(g == 0, axis=0) | jnp.all(on_lattice(x))
    return jnp.max(jnp.where(flat, 0.0, normal), initial=0.0)


def on_lattice(x: Float[Array, "walkers coordinates"]) -> Bool[Array, " coordinates"]:
    """Return which coordinates are whole numbers, as labels and zeros and ones are.

    Numbers too large for float32 to have fractions are whole too, and are no labels.
    """
    return jnp.all((x == jnp.round(x)) & (jnp.abs(x) < _MOST_LABELS), axis=0)
