"""Which walkers of a state answer, weighted for the model to evaluate."""

import equinox as eqx

from effgen.core.contract.state import TrainState
from effgen.ebm.contract.energy import Energy
from effgen.ebm.walkers.populations import (
    Memory,
    Population,
    caught_up,
    flattened,
    honest_population,
    knows_partition,
    reweighted,
)
from effgen.ebm.walkers.reservoir import Reservoir
from effgen.ebm.walkers.weighted_walkers import Walkers


LOST = (
    "`walkers` have no weight left under `energy`: it is not finite where they are. "
    "Follow it by `ebm.annealed`."
)


def population_of(
    state: TrainState[Energy, Memory], population: Population | None
) -> Population:
    """Return the population that is asked: the audit, if there is one, by default.

    Raises:
        TypeError: For what is no state, or no population.
        ValueError: If there is none.
    """
    if not (hasattr(state, "memory") and hasattr(state, "model")):
        raise TypeError(
            f"`state` is a {type(state).__name__}: pass the state that training has "
            "returned, or a density's energy and walkers to "
            "`NormalizedEnergy.from_walkers`."
        )
    found = honest_population(state.memory) if population is None else population
    if found is None:
        raise ValueError(
            "`state.memory` holds no walkers: give `trainer.init` walkers that watch, "
            "or pass fresh ones to `ebm.annealed` and its outcome to "
            "`NormalizedEnergy.from_walkers`."
        )
    if not isinstance(found, Walkers | Reservoir):
        raise TypeError(
            f"`population` is a {type(found).__name__}: pass `state.memory.walkers` or "
            "`state.memory.audit`."
        )
    return found


def evaluated_by(population: Population, state: TrainState[Energy, Memory]) -> Walkers:
    """Return the walkers weighted for the model to evaluate, maybe an average."""
    walkers = _settled(population, state.model)
    average = getattr(state, "average", None)  # a state may be any with these fields
    if average is None or not knows_partition(population):
        return walkers
    return reweighted(walkers, state.evaluated)


def _settled(population: Population, energy: Energy) -> Walkers:
    """Return the walkers weighted for `energy`, if they have weights at all."""
    if knows_partition(population):
        return _caught_up(population, energy)
    return flattened(population)


@eqx.filter_jit
def _caught_up(population: Population, energy: Energy) -> Walkers:
    return caught_up(population, energy)
