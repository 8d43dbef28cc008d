"""Samples of a trained model: walkers with their weights, or drawn by them."""

import warnings
from functools import partial

import jax
from jaxtyping import Array, Float, PRNGKeyArray

from effgen.core.contract.counts import check_count
from effgen.core.contract.keys import check_key
from effgen.core.contract.state import TrainState
from effgen.core.outcome.results import RunWarning
from effgen.core.weights import resample
from effgen.ebm.contract.arguments import traced
from effgen.ebm.contract.energy import Energy
from effgen.ebm.walkers.populations import (
    Memory,
    Population,
    knows_partition,
)
from effgen.ebm.walkers.weighted_walkers import Walkers

from .answering import LOST, evaluated_by, population_of
from .reliability import LARGEST_SPREAD, LEAST_ESS


def weighted_samples(
    state: TrainState[Energy, Memory], population: Population | None = None
) -> tuple[Float[Array, "walkers *shape"], Float[Array, " walkers"]]:
    """Return a population's positions `(walkers, *shape)`, and weights that sum to one.

    `sum(weights * phi(positions))` estimates the model's expectation of `phi`.

    Arguments:
        state: What training has returned; it must hold walkers.
        population: Of `state.memory`; by default the audit, else what trains.
    """
    walkers = evaluated_by(population_of(state, population), state)
    _check_alive(walkers)
    return walkers.positions, walkers.weights


def sample(
    state: TrainState[Energy, Memory],
    num: int,
    *,
    key: PRNGKeyArray,
    population: Population | None = None,
) -> Float[Array, "num *shape"]:
    """Return samples of the model, `(num, *shape)`: walkers drawn by their weights.

    Arguments:
        state: What training has returned; it must hold walkers.
        num: How many samples; they are drawn with replacement.
        key: The randomness of the draw.
        population: Of `state.memory`, as in `NormalizedEnergy.from_state`.

    Warns:
        RunWarning: If samples are more than walkers, or few walkers hold the weight.
    """
    check_key(key)
    check_count("num", num)
    chosen = population_of(state, population)
    walkers = evaluated_by(chosen, state)
    if num > walkers.num:
        warnings.warn(
            f"{num} samples of {walkers.num} walkers: each is drawn "
            f"{num / walkers.num:.1f} times on average. Ask for fewer, or train or "
            "anneal with more walkers.",
            RunWarning,
            stacklevel=2,
        )
    _check_alive(walkers)
    if not traced(walkers) and knows_partition(chosen):
        _warn_of_copies(walkers)
    return _drawn(walkers, num, key)


def _check_alive(walkers: Walkers) -> None:
    if not traced(walkers) and not bool(_shared(walkers)[0] > 0):
        raise ValueError(LOST)


def _warn_of_copies(walkers: Walkers) -> None:
    share, spread = _shared(walkers)
    if share >= LEAST_ESS and not spread > LARGEST_SPREAD:
        return
    warnings.warn(
        f"samples are of few walkers: a share of {share:.2f} of their weights counts, "
        f"and islands' `log Z` differ by {spread:.1f} nats. Draw from the chains "
        "themselves (`population=state.memory.walkers`), if they are unweighted, or "
        "anneal fresh walkers (`ebm.annealed`).",
        RunWarning,
        stacklevel=3,
    )


_shared = jax.jit(lambda walkers: (walkers.ess, walkers.spread))


@partial(jax.jit, static_argnames="num")
def _drawn(walkers: Walkers, num: int, key: PRNGKeyArray) -> Float[Array, "num *shape"]:
    keys = jax.random.split(key)
    drawn = resample(walkers.joint_log_weights, num, key=keys[0])
    # Systematic resampling returns relatives side by side: mix them.
    return jax.random.permutation(keys[1], walkers.positions[drawn])
