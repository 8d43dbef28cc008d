"""What the walker trainers share: the first state, the gradient, the update."""

import dataclasses
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from effgen.core.contract.state import Metrics, TrainState
from effgen.core.contract.update import apply_gradients, init_opt_state
from effgen.ebm.contract.energy import Energy, energies_at
from effgen.ebm.moves.kernels import AbstractKernel
from effgen.ebm.walkers.islands import islands
from effgen.ebm.walkers.particles import KernelState
from effgen.ebm.walkers.populations import (
    Audited,
    LearnedPartition,
    Memory,
    each_population,
    first_block,
    populations,
    reweighted,
    with_kernel_state,
)
from effgen.ebm.walkers.weighted_walkers import Walkers

from .natural_gradient import Samples


def contrast(
    model: Energy,
    batch: Float[Array, "batch *shape"],
    positions: Float[Array, "walkers *shape"],
    weights: Float[Array, " walkers"],
    penalty: float = 0.0,
) -> tuple[tuple[Array, Array, Array], PyTree]:
    """Return `(energy_gap, data_energy, added)` and the cross-entropy's gradient.

        energy_gap = mean(energy(batch)) - sum(weights * energy(positions))
        added = penalty * (mean(energy(batch)^2) + sum(weights * energy^2)) / 2

    The gradient of `energy_gap`, at fixed weights and positions, is that of the
    cross-entropy. Data and walkers go through the model as one batch. With a `penalty`
    the gradient is that of `energy_gap + added`.
    """
    num = batch.shape[0]
    signed = jnp.concatenate([jnp.full(num, 1 / num, weights.dtype), -weights])
    everything = jnp.concatenate([batch, positions])

    def gap(model: Energy) -> tuple[Array, tuple[Array, Array, Array]]:
        energies = energies_at(model, everything)
        # A walker without weight may be where the energy is infinite.
        energies = jnp.where(signed == 0, 0.0, energies)
        gap = jnp.sum(signed * energies)
        added = _added(penalty, energies, jnp.abs(signed))
        told = gap, jnp.mean(energies[:num]), added
        return (gap + added if penalty else gap), told

    (_, told), gradients = eqx.filter_value_and_grad(gap, has_aux=True)(model)
    return told, gradients


def _added(
    penalty: float, energies: Float[Array, " rows"], shares: Float[Array, " rows"]
) -> Float[Array, ""]:
    """Return the penalty: half of `penalty` times the mean square of the energies."""
    if not penalty:
        return jnp.zeros((), energies.dtype)
    return 0.5 * penalty * jnp.sum(shares * energies**2)


class Learned(NamedTuple):
    """What a gradient step leads to."""

    model: Energy
    opt_state: Any
    metrics: Metrics


def learned(
    optim: optax.GradientTransformation,
    state: TrainState,
    batch: Float[Array, "batch *shape"],
    walkers: Walkers,
    weights: Float[Array, " walkers"],
    log_partition: Float[Array, ""] | None = None,
    *,
    apart: bool = False,
    penalty: float = 0.0,
) -> Learned:
    """Return the model after one step on the contrast of data and walkers.

    The optimizer is told the loss: `data_energy + log_partition`, or the energy gap
    where `log Z` is unknown; and what a `penalty` adds. A line search is told how that
    changes (`change_of`).

    Arguments:
        optim: The optimizer.
        state: The state before the step.
        batch: The data, shape `(batch, *shape)`.
        walkers: Walkers of `state.model`.
        weights: What they count by, shape `(walkers,)`, with a sum of one.
        log_partition: `log Z` in nats, if it is known.
        apart: Whether other walkers tell what the update costs, so that an optimizer
            may look at these (`minsr`).
        penalty: As for `contrast`.
    """
    positions = walkers.positions
    # Bits may be integers, in which an energy would be computed otherwise.
    batch = batch.astype(jnp.promote_types(batch.dtype, positions.dtype))
    (gap, data_energy, added), gradients = contrast(
        state.model, batch, positions, weights, penalty
    )
    loss = gap if log_partition is None else data_energy + log_partition

    def loss_of(model: Energy) -> Float[Array, ""]:
        energies = energies_at(model, batch)
        change = jnp.mean(energies) - data_energy + change_of(model, walkers, weights)
        if not penalty:
            return loss + change
        there = energies_at(model, positions)
        even = jnp.full(len(batch), 1 / len(batch), weights.dtype)
        pulled = _added(penalty, energies, even) + _added(penalty, there, weights)
        return loss + change + pulled

    model, opt_state = apply_gradients(
        optim,
        gradients,
        state.opt_state,
        state.model,
        value=loss + added if penalty else loss,
        value_fn=loss_of,
        samples=Samples(state.model, batch, positions, weights) if apart else None,
    )
    metrics = {
        "energy_gap": gap,
        "data_energy": data_energy,
        "grad_norm": optax.tree.norm(gradients),
    }
    return Learned(model, opt_state, metrics)


def change_of(
    model: Energy, walkers: Walkers, weights: Float[Array, " walkers"]
) -> Float[Array, ""]:
    """Return how far `log Z` of `model` is from that of the walkers' own energy.

        change = log(sum(weights * exp(energies - energy(positions))))

    Its gradient there is the walkers' part of the `contrast`. It is less
    accurate the further `model` is from the energy that the walkers are samples of.
    """
    falls = walkers.energies - energies_at(model, walkers.positions)
    falls = jnp.where(weights > 0, falls, -jnp.inf)
    return jax.nn.logsumexp(falls, b=weights)


def started(
    optim: optax.GradientTransformation,
    kernel: AbstractKernel,
    model: Energy,
    memory: Memory,
) -> TrainState:
    """Return the state at step 0, its populations reweighted to `model`.

    Audit walkers are split into `islands`; the step size of the first move is found on
    the walkers (`kernel.begun`).
    """
    if isinstance(memory, Audited) and isinstance(memory.audit, Walkers):
        memory = dataclasses.replace(memory, audit=islands(memory.audit))
    memory = reweighted(memory, model)
    if populations(memory):
        begun = kernel.begun(first_block(populations(memory)[0]), model)
        state = begun.kernel_state
        memory = each_population(lambda one: with_kernel_state(one, state), memory)
        if isinstance(memory, Audited):
            memory = dataclasses.replace(memory, walkers=_led(memory.walkers, state))
    return TrainState.start(model, init_opt_state(optim, model), memory)


def _led(kept: Any, state: KernelState) -> Any:
    """Return what a trainer keeps in place of walkers, with the first step size."""
    if isinstance(kept, LearnedPartition):
        return dataclasses.replace(kept, kernel_state=state)
    return state if isinstance(kept, KernelState) else kept
