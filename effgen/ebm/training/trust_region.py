"""A trust region for the model's updates, in units of the walkers that they cost."""

import math
from numbers import Real
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from effgen.core.contract.state import Metrics
from effgen.core.weights import normalized
from effgen.ebm.contract.energy import Energy, slopes_along
from effgen.ebm.walkers.weighted_walkers import Walkers


def check_radius(radius: Any) -> None:
    """Raise `TypeError` or `ValueError` for a radius that is no positive number."""
    if not isinstance(radius, Real) or isinstance(radius, bool):
        raise TypeError(f"`radius` is {radius!r}: pass a number, such as 0.1.")
    if not float(radius) > 0:
        raise ValueError(
            f"`radius` is {radius}: pass a number above 0, such as 0.1, by which an "
            "update may cost 1 walker in 100; `float('inf')` lets all updates pass."
        )


def bounded(
    radius: float,
    old: Energy,
    new: Energy,
    due: Walkers,
    *,
    turns: int = 1,
    weighted: bool = True,
) -> tuple[Energy, Metrics]:
    """Return the update from `old` to `new`, shortened where walkers can't follow it.

        slopes = d energy(positions), for the update d = new - old
        cost = 1 - conditional_ess / n = variance(share * slopes) <= radius^2 / turns

    to second order in the share of the update that is taken: `d' F d`, with `F` the
    covariance of the energy's gradients, which is the Fisher matrix. One forward push
    of `d`; the update keeps its direction.

    Walkers that have waited have updates to make up for already. Their next move
    crosses them all, so it is bounded too:

        waited = old(positions) - energies
        variance(waited + share * slopes) <= radius^2

    Arguments:
        radius: The square root of the share of the walkers that an update may cost.
        old: The energy before the update.
        new: The energy after it.
        due: The walkers that move next, with the energies of the model that they last
            saw.
        turns: How many steps they wait between two moves.
        weighted: Whether they count by their weights, or all alike.

    Returns:
        The model, and the metrics `update_share`, the share of the update taken,
            and `update_radius`, the square root of what it costs of the walkers.
    """
    if math.isinf(radius):
        return new, {}
    waited, slopes = _changes(old, new, due)
    log_weights = due.joint_log_weights - waited if weighted else jnp.zeros(due.num)
    share, cost = _largest(waited, slopes, normalized(log_weights), radius, turns)

    def between(a: Any, b: Any) -> Any:
        if not eqx.is_inexact_array(a):
            return b
        # Exactly `b` at the full share: a bound that never acts changes nothing.
        return jnp.where(share == 1, b, a + share.astype(a.dtype) * (b - a))

    metrics: Metrics = {"update_share": share, "update_radius": share * jnp.sqrt(cost)}
    return jax.tree.map(between, old, new), metrics


def _changes(
    old: Energy, new: Energy, due: Walkers
) -> tuple[Float[Array, " walkers"], Float[Array, " walkers"]]:
    """Return how the energies of `due` have changed, and change by the update."""
    before, after = (eqx.filter(x, eqx.is_inexact_array) for x in (old, new))
    update = jax.tree.map(jnp.subtract, after, before)
    energies, slopes = slopes_along(old, update, due.positions)
    return energies - due.energies, slopes


def _largest(
    waited: Float[Array, " walkers"],
    slopes: Float[Array, " walkers"],
    weights: Float[Array, " walkers"],
    radius: float,
    turns: int,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Return the largest share within both bounds, and the whole update's cost."""
    centered = lambda x: jnp.where(weights > 0, x, 0.0) - _mean(weights, x)
    waited, slopes = centered(waited), centered(slopes)
    spent = _mean(weights, waited**2)
    along = _mean(weights, waited * slopes)
    cost = _mean(weights, slopes**2)
    alone = radius / jnp.sqrt(turns * _positive(cost))
    root = jnp.sqrt(jnp.maximum(along**2 + cost * (radius**2 - spent), 0.0))
    together = jnp.where(
        along > 0,
        (radius**2 - spent) / _positive(root + along),
        (root - along) / _positive(cost),
    )
    share = jnp.clip(jnp.minimum(alone, together), 0.0, 1.0)
    # What is not a number stays so, and the run's guard refuses it.
    return jnp.where(cost > 0, share, jnp.where(jnp.isnan(cost), cost, 1.0)), cost


def _mean(weights: Array, x: Array) -> Array:
    return jnp.sum(weights * jnp.where(weights > 0, x, 0.0))


def _positive(x: Array) -> Array:
    return jnp.maximum(x, jnp.finfo(x.dtype).tiny)
