"""The memory of a trainer: who trains the model, and who only watches."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Int

from .evaluation import Energy
from .reservoir import Reservoir
from .walkers import Walkers


Population = Walkers | Reservoir


class Audited(eqx.Module):
    """Two populations: one that trains the model, and one that only watches.

    The walkers that enter the gradient steer the model toward what they happen to have
    sampled, and so their own `log Z` drifts below the truth. The audit walkers move and
    are weighted alike but never enter the gradient: for them the path of the model is
    as good as given, their `Z` is unbiased, and the likelihood they tell is honest.

    **Attributes:** `walkers` and `audit`, each `Walkers` or a `Reservoir`; they may
    differ in number.
    """

    walkers: Population
    audit: Population


Memory = Walkers | Reservoir | Audited


def training_population(memory: Memory) -> Population:
    """Return the population that enters the gradient."""
    return memory.walkers if isinstance(memory, Audited) else memory


def honest_population(memory: Memory) -> Population:
    """Return the population whose `log Z` is to be believed: the audit's, if any."""
    return memory.audit if isinstance(memory, Audited) else memory


def populations(memory: Memory) -> tuple[Population, ...]:
    """Return the one or two populations."""
    if isinstance(memory, Audited):
        return memory.walkers, memory.audit
    return (memory,)


def taken(population: Population, step: Int[Array, ""]) -> tuple[Walkers, Walkers]:
    """Return walkers that are the model's own, at no cost, and those due to move."""
    if isinstance(population, Reservoir):
        return population.taken(step)
    return population, population


def put(population: Population, step: Int[Array, ""], walkers: Walkers) -> Population:
    """Return the population with the walkers that were due replaced."""
    if isinstance(population, Reservoir):
        return population.put(step, walkers)
    return walkers


@eqx.filter_jit
def reweighted(memory: Memory, energy: Energy) -> Memory:
    """Return every population weighted for `energy`."""
    return jax.tree.map(
        lambda population: population.reweighted(energy), memory, is_leaf=_is_population
    )


def caught_up(population: Population, energy: Energy) -> Walkers:
    """Return all walkers, weighted for `energy`, in a row."""
    return flattened(population.reweighted(energy))


def flattened(population: Population) -> Walkers:
    """Return all walkers in a row, as they are."""
    if isinstance(population, Reservoir):
        return population.flattened()
    return population


def knows_partition(population: Population) -> bool:
    """Return whether `log Z` is known; yes, where there are no numbers yet to ask."""
    reservoir = isinstance(population, Reservoir)
    booked = (population.walkers if reservoir else population).log_partition
    return isinstance(booked, Tracer) or not bool(jnp.any(jnp.isnan(booked)))


def example_shape(memory: Memory) -> tuple[int, ...]:
    """Return the shape of one example."""
    population = training_population(memory)
    if isinstance(population, Reservoir):
        return population.shape
    return population.positions.shape[1:]


def with_walkers(memory: Memory, walkers: Population) -> Memory:
    """Return `memory` with another training population."""
    if isinstance(memory, Audited):
        return dataclasses.replace(memory, walkers=walkers)
    return walkers


def _is_population(tree: object) -> bool:
    return isinstance(tree, Walkers | Reservoir)
