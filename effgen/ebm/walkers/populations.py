"""The memory of a trainer: the training population, and the audit population."""

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Float, Int

from effgen.ebm.contract.energy import Energy

from .particles import KernelState
from .reservoir import Reservoir
from .weighted_walkers import Walkers


Population = Walkers | Reservoir


class LearnedPartition(eqx.Module):
    """A `log Z` that is trained like a parameter, for `NCETrainer`.

    Attributes:
        log_partition: `log Z`, in nats.
        kernel_state: How watching walkers move next.
    """

    log_partition: Float[Array, ""]
    kernel_state: KernelState


class Audited(eqx.Module):
    """Two populations: one that trains the model, and one that only estimates.

    The walkers that enter the gradient pull the model toward what they happen to have
    sampled, and so their own `log Z` is biased low. The audit walkers move and
    are weighted alike but never enter the gradient. The path of the model does not
    depend on them, so their `Z` is unbiased, and the likelihood is not inflated.

    `trainer.init` splits audit walkers into `islands`, 16 where they can be shared
    evenly, whose spread is the error bar.

    Arguments:
        walkers: The training population, `Walkers` or a `Reservoir`. Trainers whose
            chains are not kept have the kernel's state, or a learned `log Z`, in its
            place.
        audit: The audit population, `Walkers` or a `Reservoir`, drawn by another key;
            `None` for no audit. The two may differ in number.
    """

    walkers: Population | KernelState | LearnedPartition
    audit: Population | None


Memory = Walkers | Reservoir | Audited
AnyMemory = TypeVar("AnyMemory", bound=Memory)


def training_population(memory: Memory) -> Population:
    """Return the population that enters the gradient.

    Raises:
        ValueError: If no walkers are kept for it.
    """
    walkers = memory.walkers if isinstance(memory, Audited) else memory
    if not isinstance(walkers, Walkers | Reservoir):
        raise ValueError(
            "`memory` keeps no walkers that train the model: pass "
            "`ebm.Walkers.from_gaussian(key, num, shape)`, or those and others in "
            "`ebm.Audited`."
        )
    return walkers


def audit_population(memory: Any) -> Population | None:
    """Return the population that only watches, if any."""
    return memory.audit if isinstance(memory, Audited) else None


def honest_population(memory: Any) -> Population | None:
    """Return the population whose answers are to be believed: the audit's, if any."""
    audit = audit_population(memory)
    if audit is not None:
        return audit
    walkers = memory.walkers if isinstance(memory, Audited) else memory
    return walkers if isinstance(walkers, Walkers | Reservoir) else None


def populations(memory: Memory) -> tuple[Population, ...]:
    """Return the populations there are, at most two."""
    both = (memory.walkers, memory.audit) if isinstance(memory, Audited) else (memory,)
    return tuple(one for one in both if isinstance(one, Walkers | Reservoir))


def taken(population: Population, step: Int[Array, ""]) -> tuple[Walkers, Walkers]:
    """Return walkers that are the model's own, at no cost, and those due to move."""
    if isinstance(population, Reservoir):
        return population.taken(step)
    return population, population


def turns_of(population: Population) -> int:
    """Return after how many steps walkers move again."""
    return population.turns if isinstance(population, Reservoir) else 1


def put(population: Population, step: Int[Array, ""], walkers: Walkers) -> Population:
    """Return the population with the walkers that were due replaced."""
    if isinstance(population, Reservoir):
        return population.put(step, walkers)
    return walkers


@eqx.filter_jit
def reweighted(memory: AnyMemory, energy: Energy) -> AnyMemory:
    """Return every population weighted for `energy`."""
    return each_population(lambda one: one.reweighted(energy), memory)


def each_population(
    change: Callable[[Population], Population], memory: AnyMemory
) -> AnyMemory:
    """Return `memory` with each of its populations changed."""
    return jax.tree.map(
        lambda one: change(one) if _is_population(one) else one,
        memory,
        is_leaf=_is_population,
    )


def caught_up(population: Population, energy: Energy) -> Walkers:
    """Return all walkers, weighted for `energy`, in a row."""
    return flattened(population.reweighted(energy))


def flattened(population: Population) -> Walkers:
    """Return all walkers in a row, as they are."""
    if isinstance(population, Reservoir):
        return population.flattened()
    return population


def first_block(population: Population) -> Walkers:
    """Return some of the walkers: all, or those whose turn is the first."""
    if isinstance(population, Reservoir):
        return population.due(jnp.zeros((), jnp.int32))
    return population


def some_positions(memory: Memory) -> Float[Array, "walkers *shape"]:
    """Return positions of the first population: all, or those of one block's turn."""
    return first_block(populations(memory)[0]).positions


def with_kernel_state(population: Population, state: KernelState) -> Population:
    """Return the population, to be moved as `state` says."""
    return within(population, lambda one: one.moving(state))


def within(population: Population, change: Callable[[Walkers], Walkers]) -> Population:
    """Return the population with its walkers changed, as the arrays that they are."""
    if isinstance(population, Reservoir):
        return Reservoir(change(population.walkers))
    return change(population)


def knows_partition(population: Population) -> bool:
    """Return whether `log Z` is known; yes, where there are no numbers yet to ask."""
    reservoir = isinstance(population, Reservoir)
    booked = (population.walkers if reservoir else population).log_partition
    return isinstance(booked, Tracer) or not bool(jnp.any(jnp.isnan(booked)))


def example_shape(memory: Memory) -> tuple[int, ...]:
    """Return the shape of one example."""
    population = populations(memory)[0]
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
