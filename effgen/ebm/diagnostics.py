"""Diagnostics of walkers: their weights' tail, their modes, and long chains."""

import itertools
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from effgen.core.contract.counts import check_count
from effgen.core.contract.keys import check_key
from effgen.core.running.loops import repeat
from effgen.core.weights import Estimate

from .arguments import as_rows, check_energy, check_finite
from .blocks import FEWEST_BLOCKS, num_blocks_of, widening
from .checks import traced
from .evaluation import Energy
from .islands import check_walkers
from .kernels import AbstractKernel, check_admitted, check_kernel
from .walkers import Walkers


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
    flat = jnp.all(g == 0, axis=0) | jnp.all(x == jnp.round(x))
    return jnp.max(jnp.where(flat, 0.0, normal), initial=0.0)


def mode_masses(
    positions: Float[Array, "walkers *shape"],
    weights: Float[Array, " walkers"],
    classify: Callable[[Float[Array, "walkers *shape"]], Int[Array, " walkers"]],
    num_modes: int,
) -> Estimate:
    """Return how much of the model is in each mode, with standard errors.

        masses[j] = sum(weights * (classify(positions) == j)) / sum(weights)

    The errors are from the spread between up to 16 blocks of walkers. The blocks are
    the islands, if the walkers are in islands. Otherwise walkers of one ancestor are
    mostly in one block, because resampling leaves them side by side. The errors are no
    smaller than those of as many independent walkers as the effective sample size.

    Arguments:
        positions: Walkers, shape `(walkers, *shape)`, as in `weighted_samples`.
        weights: Their weights, shape `(walkers,)`, 0 or more.
        classify: From the positions to integer labels, shape `(walkers,)`, from 0 to
            `num_modes - 1`.
        num_modes: The number of modes.

    Returns:
        Masses and one standard error each, shape `(num_modes,)`.

    Raises:
        ValueError: For labels of another number, or out of range, and for weights that
            are negative or all zero.
        TypeError: For labels that are no integers.
    """
    check_count("num_modes", num_modes)
    positions, weights = as_rows("positions", positions), as_rows("weights", weights)
    _check_weights(positions, weights)
    labels = jnp.asarray(classify(positions))
    if labels.shape != weights.shape:
        raise ValueError(
            f"`classify` returns shape {labels.shape}: it must give one label for each "
            f"of the {weights.shape[0]} positions."
        )
    if jnp.issubdtype(labels.dtype, jnp.inexact):
        raise TypeError(
            f"`classify` returns {labels.dtype}: it must give integers, as in "
            "`(x[:, 0] > 0).astype(int)`."
        )
    if not traced(labels) and not (
        0 <= int(labels.min()) <= int(labels.max()) < num_modes
    ):
        raise ValueError(
            f"`classify` returns labels from {int(labels.min())} to "
            f"{int(labels.max())}: of {num_modes} modes they are 0 to {num_modes - 1}."
        )
    return _masses(weights, labels, num_modes)


def _check_weights(positions: Array, weights: Array) -> None:
    if weights.shape != positions.shape[:1] or not weights.size:
        raise ValueError(
            f"`weights` has shape {weights.shape}: pass one for each of the "
            f"{len(positions)} positions, and at least one."
        )
    check_finite("weights", weights)
    if not traced(weights) and not (jnp.all(weights >= 0) & jnp.any(weights > 0)):
        raise ValueError(
            f"`weights` go from {float(weights.min()):.3g} to "
            f"{float(weights.max()):.3g}: pass shares, as `ebm.weighted_samples` does."
        )


@partial(jax.jit, static_argnames="num_modes")
def _masses(weights: Array, labels: Array, num_modes: int) -> Estimate:
    num, num_blocks = weights.shape[0], num_blocks_of(weights.shape[0])
    if num_blocks == 1:  # of few walkers, which may be relatives too
        num_blocks = min(num, FEWEST_BLOCKS)
    blocks = jnp.arange(num) * num_blocks // num
    both = jax.ops.segment_sum(
        weights, blocks * num_modes + labels, num_blocks * num_modes
    ).reshape(-1, num_modes)
    totals = jnp.sum(both, axis=1, keepdims=True)
    masses = jnp.sum(both, axis=0) / jnp.sum(totals)
    # The error of a ratio whose parts vary together; zero if there is one block.
    off = (both - masses[None] * totals) / jnp.sum(totals)
    freedom = max(1, num_blocks - 1)
    spread = widening(freedom) * jnp.sqrt(
        jnp.sum(off**2, axis=0) * num_blocks / freedom
    )
    ess = jnp.sum(weights) ** 2 / jnp.sum(weights**2)
    # Half a walker more in every mode: of a mode without walkers something is known.
    smoothed = (ess * masses + 0.5) / (ess + 1)
    independent = jnp.sqrt(smoothed * (1 - smoothed) / ess)
    return Estimate(masses, jnp.maximum(spread, independent))


class Chains(NamedTuple):
    """Where long chains ended, and their mean energies, as `long_run` returns it.

    Attributes:
        positions: Where the chains ended, shape `(walkers, *shape)`.
        mean_energies: The mean energy at the start and at each record, shape
            `(records,)`.
        acceptances: The last move's mean acceptance at each, shape `(records,)`.
    """

    positions: Float[Array, "walkers *shape"]
    mean_energies: Float[Array, " records"]
    acceptances: Float[Array, " records"]


def long_run(
    model: Energy,
    positions: Float[Array, "walkers *shape"],
    *,
    kernel: AbstractKernel,
    key: PRNGKeyArray,
    num_steps: int = 10_000,
    num_records: int = 20,
) -> Chains:
    """Move chains from `positions` under a fixed model, without weights, for long.

    A model may be good only for short chains. Its long-run samples then saturate, and
    their mean energy continues to fall (Nijkamp et al., 2020). Exact samples of the
    model keep their law.

    Arguments:
        model: The energy.
        positions: Where to start, such as `ebm.sample` gives, `(walkers, *shape)`.
        kernel: How the chains move.
        key: The randomness of the moves.
        num_steps: Moves in all.
        num_records: How often the mean energy is recorded after the start, at most once
            a move.

    Returns:
        The last positions, with the records, one more than `num_records` as the start
            is one.

    Raises:
        ValueError: For counts that are not positive, or positions that are not finite,
            fewer than 2, or where walkers of the kernel can never be.
        TypeError: For an object that is no energy, no kernel, no key, or no numbers.
    """
    check_count("num_steps", num_steps)
    check_count("num_records", num_records)
    check_energy("model", model)
    check_kernel(kernel)
    check_key(key)
    positions = as_rows("positions", positions)
    check_finite("positions", positions)
    check_admitted("`positions` has", kernel, model, positions)
    walkers = kernel.begun(_started(model, positions), model)
    ends = np.linspace(0, num_steps, min(num_records, num_steps) + 1).astype(int)
    energies = [jnp.mean(walkers.energies)]
    acceptances = [walkers.acceptance]
    for first, end in itertools.pairwise(ends.tolist()):
        walkers = _several(kernel, model, walkers, jnp.asarray(first), end - first, key)
        energies.append(jnp.mean(walkers.energies))
        acceptances.append(walkers.acceptance)
    return Chains(walkers.positions, jnp.stack(energies), jnp.stack(acceptances))


@eqx.filter_jit
def _started(model: Energy, positions: Float[Array, "walkers *shape"]) -> Walkers:
    return Walkers.from_samples(positions).reweighted(model)


@eqx.filter_jit
def _several(
    kernel: AbstractKernel,
    model: Energy,
    walkers: Walkers,
    first: Int[Array, ""],
    num: int,
    key: PRNGKeyArray,
) -> Walkers:
    def body(i: Int[Array, ""], walkers: Walkers) -> Walkers:
        step = first + i
        return kernel.move(walkers, model, step, key=jax.random.fold_in(key, step))

    return repeat(body, walkers, num)
