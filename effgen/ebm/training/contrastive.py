"""Contrastive divergence, the baseline: short chains that start at the data."""

import math
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from effgen.core.contract.counts import check_count
from effgen.core.contract.state import Metrics, TrainState
from effgen.core.contract.trainer import AbstractTrainer
from effgen.core.running.loops import repeat
from effgen.ebm.contract.arguments import check_penalty, check_share
from effgen.ebm.contract.energy import Energy
from effgen.ebm.moves.kernels import AbstractKernel, check_kernel
from effgen.ebm.moves.step_sizes import begun_with
from effgen.ebm.walkers.particles import KernelState
from effgen.ebm.walkers.populations import Audited, Population
from effgen.ebm.walkers.weighted_walkers import Walkers

from .audit import check_watched_data, kept_in, watch, watched_start
from .learning import learned
from .soundness import moved_by, soundness
from .trust_region import bounded, check_radius


class CDTrainer(AbstractTrainer):
    """Contrastive divergence: short chains that start anew at the data of each step.

    The baseline. Chains of `num_moves` from the batch never leave the modes that the
    data are in, so the gradient has no information on the mass of each mode, nor
    on modes that the model has and the data do not have.

    The walkers given, if any, are an audit. They are weighted as `JarzynskiTrainer`'s,
    and estimate this trainer's likelihood. The memory is `Audited`, with the kernel's
    state in place of walkers that train.

    The metrics are `loss`, which is `energy_gap` here; `data_energy`, `grad_norm`;
    `step_size` and `acceptance`; with a `radius`, `update_share` and `update_radius`;
    with watching walkers `cross_entropy`, `log_partition`, `log_partition_error`,
    `audit_ess` and `audit_roots`.

    Arguments:
        optim: Any optax transformation; one that asks for the loss is told the energy
            gap.
        kernel: How the chains and the watching walkers move.
        num_moves: Moves a step, the `k` of CD-k.
        resample_below: The share of the watching walkers, in (0, 1), below which they
            are resampled.
        radius: An update may cost at most `radius^2` of the chains' ends, which count
            alike, to second order; by default all updates pass.
        penalty: Half of it times the mean square of the data's and of the chains'
            energies is added to what is minimized.

    Raises:
        TypeError: If `kernel` is no kernel, or `radius` no number.
        ValueError: For settings out of range.

    Source:
        Hinton (2002).
    """

    watched: ClassVar[tuple[str, ...]] = ("loss", "cross_entropy")

    optim: optax.GradientTransformation
    kernel: AbstractKernel
    num_moves: int = eqx.field(default=1, kw_only=True)
    resample_below: float = eqx.field(default=0.5, kw_only=True)
    radius: float = eqx.field(default=math.inf, kw_only=True)
    penalty: float = eqx.field(default=0.0, kw_only=True)

    def __check_init__(self) -> None:
        """Raise `TypeError` or `ValueError` for settings out of range."""
        check_kernel(self.kernel)
        check_share("resample_below", self.resample_below)
        check_count("num_moves", self.num_moves)
        check_radius(self.radius)
        check_penalty(self.penalty)

    def init(
        self, model: Energy, memory: Population | Audited | None = None
    ) -> TrainState[Energy, Audited]:
        """Return the first state.

        Arguments:
            model: A callable pytree from one example to its energy, a scalar, or from a
                batch to energies.
            memory: Walkers that watch, if any: `Walkers`, a `Reservoir`, or `Audited`,
                of which the audit is taken.

        Returns:
            The state at step 0, the watching walkers reweighted to `model`.

        Raises:
            TypeError: If the audit walkers are no walkers.
            ValueError: For watching walkers that do not fit the model, or whose density
                is unknown.
        """
        own = KernelState.unknown()
        return watched_start(self.optim, self.kernel, model, memory, own)

    def step(
        self,
        state: TrainState[Energy, Audited],
        batch: Float[Array, "batch *shape"],
        *,
        key: PRNGKeyArray,
    ) -> tuple[TrainState[Energy, Audited], Metrics]:
        """Move chains from the batch, then update the model by where they got.

        Arguments:
            state: The state before the step.
            batch: Examples, shape `(batch, *shape)`.
            key: The randomness of the step.

        Returns:
            The state after the step, and the metrics.
        """
        chain_key, watch_key = jax.random.split(key)
        chains = self._chains(state, batch, chain_key)
        equal = jnp.full(chains.num, 1 / chains.num, chains.positions.dtype)
        model, opt_state, metrics = learned(
            self.optim, state, batch, chains, equal, penalty=self.penalty
        )
        metrics["loss"] = metrics["energy_gap"]
        model, more = bounded(self.radius, state.model, model, chains, weighted=False)
        metrics |= more
        # In the precision that it has been kept in, whatever that of the batch is.
        kept = chains.kernel_state.like(kept_in(state, KernelState))
        audit, more = watch(
            self.kernel,
            state,
            model,
            self.num_moves,
            self.resample_below,
            leader=kept,
            data_energy=metrics["data_energy"],
            key=watch_key,
        )
        metrics["result"] = soundness(
            self.kernel, model, chains, metrics["energy_gap"], state.step, batch
        )
        metrics |= moved_by(chains.kernel_state)
        return state.advance(model, opt_state, Audited(kept, audit)), metrics | more

    def _chains(
        self, state: TrainState[Energy, Audited], batch: Array, key: PRNGKeyArray
    ) -> Walkers:
        begun = Walkers.from_samples(batch).reweighted(state.model)
        chains = begun_with(begun, kept_in(state, KernelState).step_size)

        def body(i: Any, chains: Walkers) -> Walkers:
            move_key = jax.random.fold_in(key, i)
            return self.kernel.move(chains, state.model, state.step, key=move_key)

        return repeat(body, chains, self.num_moves)

    def check(self, state: TrainState, batch: PyTree, source: Any) -> None:
        """Raise on data that the kernel cannot move or the walkers cannot meet.

        Arguments:
            state: The run's first state.
            batch: The first batch, or its shape and dtype.
            source: The data of the run.

        Raises:
            TypeError: For batches that are no array, or as `kernel.check_data`.
            ValueError: For rows of another shape or scale than the watching walkers,
                or as `kernel.check_data`; for a state of another trainer.
        """
        check_watched_data(self.kernel, state, batch, source, KernelState)
