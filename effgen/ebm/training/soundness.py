"""What stops a training, and what a step reports of its moves."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from effgen.core.contract.state import Metrics
from effgen.core.outcome.results import RESULTS
from effgen.core.weights import conditional_ess
from effgen.ebm.contract.energy import Energy
from effgen.ebm.moves.kernels import AbstractKernel
from effgen.ebm.walkers.blocks import increments
from effgen.ebm.walkers.particles import KernelState
from effgen.ebm.walkers.weighted_walkers import Walkers


# At one step in so many it is asked whether the model still confines.
_LOOK_EVERY = 16

# Nats a coordinate between the mean energies of data and walkers.
_APART = 1e4


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
