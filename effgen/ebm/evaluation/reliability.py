"""Whether an error bar of `log Z` is reliable: checks of the walkers."""

from typing import NamedTuple

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array

from effgen.ebm.contract.arguments import traced
from effgen.ebm.contract.energy import Energy
from effgen.ebm.contract.energy_checks import confines
from effgen.ebm.walkers.blocks import FEWEST_BLOCKS
from effgen.ebm.walkers.weighted_walkers import Walkers

from .diagnostics import gradient_pareto_k, imbalance, pareto_k
from .importance import everywhere, second_opinion


# Where importance weights stop telling their own error: Vehtari et al. (2024).
_LARGEST_K = 0.7
LEAST_ESS = 0.1
# With fewer walkers the tail's shape cannot be told, nor with fewer still any error.
_FEWEST_FOR_K = 256
_FEWEST = 64
# Nats between islands past which one of them outweighs the others. The bar itself
# holds at any spread of normal `log Z`s, and a lower bound would keep just the runs
# whose islands happen to agree: of those below 1 nat, at a true spread of 1.25, two
# bars hold the truth in 71 % (`test_weighted_walkers.py`).
LARGEST_SPREAD = 2.5
# Of fewer lineages an island's `log Z` is skewed, and the spread of few islands tells
# too small an error: in 200 dimensions two bars hold in 80 % of runs with three an
# island. Where islands differ little, their mean is near enough to normal whatever
# each of them is.
_FEWEST_LINEAGES, _LITTLE_SPREAD = 8, 0.5
# What one change of the model must leave of an island.
_LEAST_SHARE = 0.3
# Ancestors that a genealogy needs to tell an error.
_FEWEST_ROOTS = 16


class Told(NamedTuple):
    """The walkers' `log Z` and its diagnostics, as `NormalizedEnergy` has it."""

    log_partition: Array
    standard_error: Array
    ess: Array
    pareto_k: Array
    spread: Array
    least_share: Array
    survivors: Array
    imbalance: Array
    gradient_pareto_k: Array


@jax.jit
def told_by(walkers: Walkers) -> Told:
    """Return `log Z` of the model last moved under, and how well it is known."""
    value, error = walkers.estimate()
    return Told(
        log_partition=value,
        standard_error=error,
        ess=walkers.ess,
        pareto_k=pareto_k(walkers.joint_log_weights),
        spread=walkers.spread,
        least_share=walkers.least_share,
        survivors=walkers.num_roots / walkers.num,
        imbalance=imbalance(walkers),
        gradient_pareto_k=gradient_pareto_k(walkers),
    )


def doubts(told: Told, energy: Energy, walkers: Walkers) -> list[str]:
    """Return the reasons against the error bar of `log Z`; none if it is reliable.

    Arguments:
        told: By `told_by(walkers)`.
        energy: The model.
        walkers: Weighted for it.
    """
    return [
        *_by_weights(told, walkers),
        *_escaping(energy, walkers),
        *_contradicted(told, energy, walkers),
    ]


def _by_weights(told: Told, walkers: Walkers) -> list[str]:
    num, roots = walkers.num, round(float(told.survivors) * walkers.num)
    size = max(1, walkers.positions[0].size)
    alone = walkers.num_blocks < FEWEST_BLOCKS
    lineages = roots / walkers.num_blocks
    doubts = {
        f"{num} walkers are too few for an error bar": num < _FEWEST,
        f"of the walkers' weights a share of {told.ess:.2f} counts": told.ess
        < LEAST_ESS,
        f"their tail has a Pareto shape of {told.pareto_k:.2f}": num >= _FEWEST_FOR_K
        and told.pareto_k > _LARGEST_K,
        f"the islands' `log Z` differ by {told.spread:.1f} nats": not told.spread
        <= LARGEST_SPREAD,
        f"one update left a share of {told.least_share:.3f} of an island": (
            told.least_share < _LEAST_SHARE
        ),
        f"the walkers are {told.imbalance:.1f} standard errors from equilibrium": (
            told.imbalance > np.sqrt(2 * np.log(100 * size))
        ),
        "a few walkers are at the edge of a place too narrow for the moves (their "
        f"gradients have a Pareto shape of {told.gradient_pareto_k:.1f})": (
            num >= _FEWEST_FOR_K and told.gradient_pareto_k > _LARGEST_K
        ),
        f"{roots} of {num} first walkers have descendants": alone
        and roots < _FEWEST_ROOTS,
        f"{lineages:.1f} first walkers an island have descendants, and the islands' "
        f"`log Z` differ by {told.spread:.2f} nats": not alone
        and lineages < _FEWEST_LINEAGES
        and told.spread > _LITTLE_SPREAD,
    }
    return [reason for reason, holds in doubts.items() if holds]


def _escaping(energy: Energy, walkers: Walkers) -> list[str]:
    """Return that an energy has no `Z`, where walkers may go anywhere."""
    if traced((energy, walkers)) or not everywhere(walkers):
        return []
    if bool(_confines(energy, walkers.positions)):
        return []
    return ["far out the energy does not grow fast enough for there to be a `Z`"]


_confines = eqx.filter_jit(confines)


def _contradicted(told: Told, energy: Energy, walkers: Walkers) -> list[str]:
    """Return what a second opinion has against `log Z`."""
    opinion = None if traced(walkers) else second_opinion(energy, walkers)
    if opinion is None or not opinion.counts:
        return []
    value, error = opinion.estimate
    apart = value - told.log_partition
    # Out of two bars for all that the draws' own error allows: a bar may be zero.
    if abs(apart) <= 2 * told.standard_error + 4 * error:
        return []
    return [f"draws about the walkers tell a `log Z` that is {apart:+.2f} nats off"]
