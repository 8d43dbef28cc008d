"""What the walker trainers share: the gradient, following an update, soundness."""

import dataclasses
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from effgen.core.contract.state import Metrics, TrainState
from effgen.core.contract.update import apply_gradients, init_opt_state
from effgen.core.outcome.results import RESULTS
from effgen.core.running.loops import repeat
from effgen.core.weights import conditional_ess

from .arguments import check_energy
from .blocks import increments
from .checks import check_batch, traced
from .data_checks import check_scale_of, rows_at_hand, spread_rows, values_at_hand
from .discrete import are_bits
from .evaluation import Energy, energies_at, takes_one_example
from .islands import islands
from .kernels import AbstractKernel
from .labels import LabeledEnergy
from .natural_gradient import Samples
from .particles import KernelState
from .populations import (
    Audited,
    Memory,
    each_population,
    example_shape,
    first_block,
    flattened,
    knows_partition,
    populations,
    reweighted,
    some_positions,
    with_kernel_state,
)
from .reservoir import Reservoir
from .walkers import Walkers, followed_from


# At one step in so many it is asked whether the model still confines.
_LOOK_EVERY = 16

# Nats a coordinate between the mean energies of data and walkers.
_APART = 1e4

# Numbers that are not the same in two populations unless they are one.
_FEW = 64

# So many rows of the data are compared with the walkers.
_LOOKED_AT = 4096


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


def followed(
    kernel: AbstractKernel,
    walkers: Walkers,
    model: Energy,
    step: Int[Array, ""],
    num_moves: int,
    *,
    key: PRNGKeyArray,
) -> Walkers:
    """Return the walkers after `num_moves`, of which the first crosses to `model`."""
    moved = kernel.follow(walkers, model, step, key=jax.random.fold_in(key, 0))

    def body(i: Int[Array, ""], walkers: Walkers) -> Walkers:
        return kernel.move(walkers, model, step, key=jax.random.fold_in(key, i + 1))

    if num_moves > 1:
        moved = repeat(body, moved, num_moves - 1)
    return followed_from(walkers, moved)


def soundness(
    kernel: AbstractKernel,
    model: Energy,
    walkers: Walkers,
    energy_gap: Float[Array, ""],
    step: Int[Array, ""],
    batch: Float[Array, "batch *shape"],
) -> Any:
    """Return what stops a training: no density, energies apart, or a batch outside.

    One step in 16 looks at the model, at the cost of 16 evaluations.
    """
    seen = jax.lax.cond(
        step % _LOOK_EVERY == 0,
        lambda: kernel.confined(model, walkers),
        lambda: jnp.ones((), bool),
    )
    apart = jnp.abs(energy_gap) > _APART * max(1, walkers.positions[0].size)
    together = RESULTS.where(apart, RESULTS.energies_apart, RESULTS.successful)
    sound = RESULTS.where(seen, together, RESULTS.unconfined)
    return RESULTS.where(kernel.admits(model, batch), sound, RESULTS.data_outside)


def moved_by(state: KernelState) -> Metrics:
    """Return what a kernel reports of its last move."""
    return {"step_size": state.step_size, "acceptance": state.acceptance}


def conditional_share(before: Walkers, after: Walkers) -> Float[Array, ""]:
    """Return the share of the weighted walkers that a move has left."""
    change = increments(before.log_weights, after.log_weights)
    return conditional_ess(before.joint_log_weights, change) / before.num


def lost_share(before: Walkers, after: Walkers) -> Float[Array, ""]:
    """Return the share of the walkers that a move has taken out of all bounds."""
    lost = jnp.isneginf(after.log_weights) & ~jnp.isneginf(before.log_weights)
    return jnp.mean(lost.astype(after.log_weights.dtype))


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
        if isinstance(memory, Audited) and isinstance(memory.walkers, KernelState):
            memory = dataclasses.replace(memory, walkers=state)
    return TrainState.start(model, init_opt_state(optim, model), memory)


def check_memory(kernel: AbstractKernel, model: Energy, memory: Any) -> None:
    """Raise unless `memory` holds walkers that fit the model and the kernel."""
    check_energy("model", model)
    if not (isinstance(memory, Walkers | Reservoir | Audited) and populations(memory)):
        raise TypeError(
            f"`memory` is a {type(memory).__name__}: pass "
            "`ebm.Walkers.from_gaussian(key, num, shape)`, or two in `ebm.Audited`."
        )
    _check_audited(memory)
    for population in populations(memory):
        walkers = flattened(population)
        kernel.check(model, walkers)
        takes_one_example(model, walkers.positions.shape[1:], walkers.positions.dtype)


def _check_audited(memory: Any) -> None:
    for name in ("walkers", "audit"):
        held = getattr(memory, name, None) if isinstance(memory, Audited) else None
        if held is not None and not isinstance(held, eqx.Module):
            raise TypeError(
                f"`memory.{name}` is a {type(held).__name__}: pass "
                "`ebm.Walkers.from_gaussian(key, num, shape)`."
            )
    shapes = {flattened(one).positions.shape[1:] for one in populations(memory)}
    if len(shapes) > 1:
        raise ValueError(
            f"`memory.walkers` and `memory.audit` have shapes {sorted(shapes)}: draw "
            "both of the shape of one example."
        )
    if isinstance(memory, Audited) and _same_walkers(memory):
        raise ValueError(
            "`memory.audit` are the walkers that train. Their likelihood would be too "
            "high, and its error bar too small. Draw the audit by another key."
        )


def _same_walkers(memory: Audited) -> bool:
    pair = [flattened(one) for one in populations(memory)]
    if len(pair) < 2 or traced(pair):
        return False
    num = min(_FEW, *(walkers.num for walkers in pair))
    one, other = (np.asarray(local_rows(walkers.positions)[:num]) for walkers in pair)
    # A few zeros and ones are alike by chance.
    return one.size >= _FEW and np.array_equal(one, other)


def check_known(memory: Memory, instead: str) -> None:
    """Raise if there are walkers in `memory` whose density is unknown."""
    for population in populations(memory):
        if not knows_partition(population):
            raise ValueError(
                "`memory` has walkers of unknown density, whose weights mean nothing: "
                "start from `Walkers.from_gaussian`, give `from_samples` their "
                f"`log_density`, or {instead}."
            )


def local_rows(x: Any) -> Any:
    """Return the rows of `x` that this process holds."""
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
        return x.addressable_shards[0].data
    return x


def check_values(
    kernel: AbstractKernel,
    model: Energy,
    shape: tuple[int, ...],
    batch: Any,
    source: Any,
) -> None:
    """Raise on data that are no rows of `shape`, or none of the kernel or the model."""
    check_batch(batch, shape)
    kernel.check_data(batch, source)
    values = values_at_hand(batch, source)
    if isinstance(model, LabeledEnergy) and values is not None:
        model.check_rows("data", values)


def check_data(
    kernel: AbstractKernel, state: TrainState, batch: Any, source: Any
) -> None:
    """Raise on data that the walkers cannot be compared with."""
    check_values(kernel, state.model, example_shape(state.memory), batch, source)
    memory = state.memory
    rows = rows_at_hand(batch, source)
    rows = rows if rows is batch else spread_rows(rows, _LOOKED_AT)
    if isinstance(rows, np.ndarray | jax.Array) and not traced((rows, memory)):
        positions = local_rows(some_positions(memory))
        if not bool(are_bits(positions)):  # these have no scale: any may be flipped
            check_scale_of(local_rows(rows), positions)
