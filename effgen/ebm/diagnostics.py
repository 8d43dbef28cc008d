"""Looking at walkers: their weights' tail, their modes, and where long chains go."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from effgen.core.loops import repeat
from effgen.core.weights import Estimate

from .checks import check_count
from .evaluation import Energy
from .kernels import AbstractKernel
from .walkers import Walkers


def pareto_k(log_weights: Float[Array, " walkers"]) -> Float[Array, ""]:
    """Return the shape `k` of the Pareto tail that fits the largest weights.

    Weights have `1 / k` finite moments: below 0.5 the effective sample size tells the
    truth, up to 0.7 nearly; past 0.7, more walkers or smaller steps are needed. Equal
    weights have `-inf`.

    **Source:** Vehtari, Simpson, Gelman, Yao and Gabry (2024); `blackjax.pareto_khat`.
    """
    return _pareto_k(log_weights)


@jax.jit
def _pareto_k(log_weights: Float[Array, " walkers"]) -> Float[Array, ""]:
    from blackjax import pareto_khat

    weights = jnp.exp(log_weights - jnp.max(log_weights))
    share = min(0.2, 3 / float(np.sqrt(weights.size)))
    equal = jnp.max(weights) - jnp.min(weights) < 1e-6
    shape = pareto_khat(weights, tail="upper", tail_frac=share)
    return jnp.where(equal, -jnp.inf, shape)


def mode_masses(
    positions: Float[Array, "walkers *shape"],
    weights: Float[Array, " walkers"],
    classify: Callable[[Float[Array, "walkers *shape"]], Int[Array, " walkers"]],
    num_modes: int,
) -> Estimate:
    """Return how much of the model is in each mode, with standard errors.

        masses[j] = sum(weights * (classify(positions) == j))

    **Arguments:** `positions` and `weights`, as `weighted_samples` returns them;
    `classify`, from a batch to labels from 0 to `num_modes - 1`.

    **Returns:** masses and errors, `(num_modes,)`; the errors are those of as many
    independent walkers as count, `sqrt(mass (1 - mass) / ess)`.
    """
    check_count("num_modes", num_modes)
    labels = jnp.asarray(classify(positions))
    if labels.shape != weights.shape:
        raise ValueError(
            f"`classify` returns shape {labels.shape}: it must give one label for each "
            f"of the {weights.shape[0]} positions."
        )
    return _masses(weights, labels, num_modes)


@partial(jax.jit, static_argnames="num_modes")
def _masses(weights: Array, labels: Array, num_modes: int) -> Estimate:
    masses = jax.ops.segment_sum(weights, labels, num_modes) / jnp.sum(weights)
    ess = jnp.sum(weights) ** 2 / jnp.sum(weights**2)
    return Estimate(masses, jnp.sqrt(masses * (1 - masses) / ess))


class Chains(NamedTuple):
    """Where long chains got to, and how their energy went.

    `positions`; `mean_energies` and `acceptances`, one for each record.
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

    A model that is good only where its training chains were cut short drifts away: its
    long-run samples saturate and their mean energy goes on falling (Nijkamp et al.,
    2020). Samples of the model itself stay as they are.

    **Arguments:** `model`; `positions` to start from, such as `ebm.sample` gives;
    `kernel`; `num_steps` in all; `num_records`, of the mean energy on the way.

    **Raises:** `ValueError` for counts that are not positive.
    """
    check_count("num_steps", num_steps)
    check_count("num_records", num_records)
    walkers = _started(model, positions)
    each = max(1, num_steps // num_records)
    energies, acceptances = [jnp.mean(walkers.energies)], [walkers.acceptance]
    for i in range(num_records):
        walkers = _several(kernel, model, walkers, each, jax.random.fold_in(key, i))
        energies.append(jnp.mean(walkers.energies))
        acceptances.append(walkers.acceptance)
    return Chains(walkers.positions, jnp.stack(energies), jnp.stack(acceptances))


@eqx.filter_jit
def _started(model: Energy, positions: Float[Array, "walkers *shape"]) -> Walkers:
    return Walkers.from_samples(positions).reweighted(model)


@eqx.filter_jit
def _several(
    kernel: AbstractKernel, model: Energy, walkers: Walkers, num: int, key: PRNGKeyArray
) -> Walkers:
    def body(i: Int[Array, ""], walkers: Walkers) -> Walkers:
        return kernel.move(walkers, model, i, key=jax.random.fold_in(key, i))

    return repeat(body, walkers, num)
