"""Audit walkers: weighted during training, without an effect on the gradient."""

from typing import Any, TypeVar

import jax
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from effgen.core.contract.state import Metrics, TrainState
from effgen.ebm.contract.arguments import as_rows, check_energy
from effgen.ebm.contract.data_checks import local_rows, values_at_hand
from effgen.ebm.contract.energy import Energy
from effgen.ebm.contract.energy_checks import check_energies
from effgen.ebm.moves.kernels import AbstractKernel, followed
from effgen.ebm.moves.step_sizes import begun_with, has_rule
from effgen.ebm.walkers.islands import resampled_below
from effgen.ebm.walkers.particles import KernelState
from effgen.ebm.walkers.populations import (
    Audited,
    LearnedPartition,
    Population,
    put,
    taken,
)
from effgen.ebm.walkers.weighted_walkers import Walkers

from .learning import started
from .memory_checks import check_data, check_known, check_memory, check_values


Kept = TypeVar("Kept", KernelState, LearnedPartition)

# So many rows of the data show whether an energy is a function of each, or how large
# a step may be.
_TRIED = 64


def audited(
    kernel: AbstractKernel,
    audit: Population,
    read: tuple[Walkers, Walkers],
    leader: KernelState,
    model: Energy,
    step: Int[Array, ""],
    num_moves: int,
    resample_below: float,
    *,
    data_energy: Float[Array, ""],
    key: PRNGKeyArray,
) -> tuple[Any, Metrics]:
    """Return the audit population after a step, and what it reports: the likelihood.

    It moves by the step size of a `leader`, on which it has no influence: its own moves
    may not depend on what they lead to. `read` is `taken(audit, step)`.
    """
    move_key, resample_key = jax.random.split(key)
    current, walkers = read
    walkers = followed(
        kernel, walkers, model, step, num_moves, key=move_key, leader=leader
    )
    metrics = likelihood(current, data_energy) | {
        "audit_ess": walkers.ess,
        "audit_roots": walkers.num_roots / walkers.num,
    }
    walkers = resampled_below(resample_below, walkers, key=resample_key)
    return put(audit, step, walkers), metrics


def likelihood(walkers: Walkers, data_energy: Float[Array, ""]) -> Metrics:
    """Return the batch's cross-entropy and `log Z`, by walkers of the state's model."""
    value, error = walkers.estimate()
    return {
        "cross_entropy": data_energy + value,
        "log_partition": value,
        "log_partition_error": error,
    }


def watched_start(
    optim: optax.GradientTransformation,
    kernel: AbstractKernel,
    model: Energy,
    memory: Population | Audited | None,
    own: KernelState | LearnedPartition,
) -> TrainState[Energy, Audited]:
    """Return the first state of a trainer that keeps no walkers to train by.

    `memory` are walkers that watch, if any; `own` is what the trainer keeps.
    """
    audit = memory.audit if isinstance(memory, Audited) else memory
    check_energy("model", model)
    if audit is not None:
        check_memory(kernel, model, audit)
        check_known(audit, "leave out the memory")
    return started(optim, kernel, model, Audited(own, audit))


def watch(
    kernel: AbstractKernel,
    state: TrainState[Energy, Audited],
    model: Energy,
    num_moves: int,
    resample_below: float,
    *,
    leader: KernelState,
    data_energy: Float[Array, ""],
    key: PRNGKeyArray,
) -> tuple[Population | None, Metrics]:
    """Return the watching walkers, if any, after a step, and what they report."""
    audit = state.memory.audit
    if audit is None:
        return None, {}
    return audited(
        kernel,
        audit,
        taken(audit, state.step),
        leader,
        model,
        state.step,
        num_moves,
        resample_below,
        data_energy=data_energy,
        key=key,
    )


def kept_in(state: TrainState[Energy, Audited], kind: type[Kept]) -> Kept:
    """Return what a trainer keeps in place of walkers that train, which is a `kind`."""
    own = state.memory.walkers
    assert isinstance(own, kind)
    return own


def watch_after_data(
    kernel: AbstractKernel,
    state: TrainState[Energy, Audited],
    model: Energy,
    num_moves: int,
    resample_below: float,
    *,
    leader: KernelState,
    batch: Float[Array, "batch *shape"],
    data_energy: Float[Array, ""],
    key: PRNGKeyArray,
) -> tuple[KernelState, Population | None, Metrics]:
    """Return the next leader, and as `watch`, of a trainer that moves no walkers.

    The step size is found by a few rows of the data, which move once under the state's
    model: no walker has an influence on it. Where nobody watches, or the kernel follows
    no rule, `leader` is returned as it is.
    """
    find_key, watch_key = jax.random.split(key)
    if state.memory.audit is not None and has_rule(kernel):
        rows = Walkers.from_samples(batch[:_TRIED]).reweighted(state.model)
        begun = begun_with(rows, leader.step_size)
        moved = kernel.move(begun, state.model, state.step, key=find_key)
        leader = moved.kernel_state.like(leader)
    audit, metrics = watch(
        kernel,
        state,
        model,
        num_moves,
        resample_below,
        leader=leader,
        data_energy=data_energy,
        key=watch_key,
    )
    return leader, audit, metrics


def check_watched_data(
    kernel: AbstractKernel, state: TrainState, batch: Any, source: Any, own: type
) -> None:
    """Raise on data that are no rows, or not of the watching walkers' shape.

    Without these the energy is tried on some rows. `own` is the kind of what the
    trainer keeps in place of walkers that train.
    """
    memory = state.memory
    if not (isinstance(memory, Audited) and isinstance(memory.walkers, own)):
        raise ValueError(
            "`state` is of another trainer: begin by `trainer.init(state.model)`, or "
            "go on by `effgen.continued(trainer, state)`."
        )
    if memory.audit is None:
        shape = tuple(getattr(batch, "shape", ())[1:])
        check_values(kernel, state.model, shape, batch, source)
        values = values_at_hand(batch, source)
        if values is not None:
            some = as_rows("data", local_rows(values)[:_TRIED])
            check_energies(state.model, some, "rows")
    else:
        check_data(kernel, state, batch, source)
    if batch.shape[0] < 2:
        raise ValueError("`data` gives batches of 1 row: this trainer needs 2 or more.")
