"""Persistent contrastive divergence, the baseline: the steps with the weights off."""

import math
from numbers import Real
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from effgen.core.contract.counts import check_count
from effgen.core.contract.state import Metrics, TrainState
from effgen.core.contract.trainer import AbstractTrainer
from effgen.ebm.contract.arguments import check_penalty, check_positive, check_share
from effgen.ebm.contract.energy import Energy
from effgen.ebm.moves.kernels import (
    AbstractKernel,
    check_admitted,
    check_kernel,
    followed,
)
from effgen.ebm.walkers.islands import unweighted
from effgen.ebm.walkers.particles import Particles
from effgen.ebm.walkers.populations import (
    Audited,
    Memory,
    audit_population,
    example_shape,
    put,
    taken,
    training_population,
    turns_of,
    with_walkers,
    within,
)
from effgen.ebm.walkers.weighted_walkers import Walkers

from .audit import audited
from .learning import learned, started
from .memory_checks import check_data, check_known, check_memory
from .soundness import moved_by, soundness
from .trust_region import bounded, check_radius


# The number of restarts that are drawn, to check that walkers may start there.
_NUM_TRIED = 64


class PCDTrainer(AbstractTrainer):
    """Persistent contrastive divergence: `JarzynskiTrainer`'s steps, weights off.

    The baseline. The walkers move as `JarzynskiTrainer`'s do, at the same cost. They
    count alike, as if they had equilibrated. They do not equilibrate between updates,
    so the model's modes drift to where the walkers are, and `log Z` is unknown.
    `Audited` walkers keep their weights, and estimate the likelihood of this trainer
    too.

    The metrics are `loss`, which is `energy_gap` here; `data_energy`, `grad_norm`;
    `step_size` and `acceptance`; with a `radius`, `update_share` and `update_radius`;
    with audit walkers `cross_entropy`, `log_partition`, `log_partition_error`,
    `audit_ess` and `audit_roots`.

    Arguments:
        optim: Any optax transformation; one that asks for the loss is told the energy
            gap.
        kernel: How the walkers move.
        num_moves: Moves a step.
        resample_below: The share of the audit's walkers, in (0, 1), below which they
            are resampled.
        restarts: The share of the walkers, from 0 to below 1, that begin anew at each
            step, from a Gaussian, as replay buffers do.
        restart_scale: The standard deviation of that Gaussian, in units of the data.
        radius: An update may cost at most `radius^2` of the walkers, which count
            alike, to second order; by default all updates pass.
        penalty: Half of it times the mean square of the data's and of the walkers'
            energies is added to what is minimized.

    Raises:
        TypeError: If `kernel` is no kernel, or `radius` no number.
        ValueError: For settings out of range.

    Source:
        Tieleman (2008); for restarts, Du and Mordatch (2019).
    """

    watched: ClassVar[tuple[str, ...]] = ("loss", "cross_entropy")

    optim: optax.GradientTransformation
    kernel: AbstractKernel
    num_moves: int = eqx.field(default=1, kw_only=True)
    resample_below: float = eqx.field(default=0.5, kw_only=True)
    restarts: float = eqx.field(default=0.0, kw_only=True)
    restart_scale: float = eqx.field(default=1.0, kw_only=True)
    radius: float = eqx.field(default=math.inf, kw_only=True)
    penalty: float = eqx.field(default=0.0, kw_only=True)

    def __check_init__(self) -> None:
        """Raise `TypeError` or `ValueError` for settings out of range."""
        check_kernel(self.kernel)
        check_share("resample_below", self.resample_below)
        check_count("num_moves", self.num_moves)
        check_radius(self.radius)
        check_penalty(self.penalty)
        check_positive("restart_scale", self.restart_scale)
        if not (isinstance(self.restarts, Real) and 0 <= self.restarts < 1):
            raise ValueError(f"`restarts` is {self.restarts!r}: pass a share below 1.")
        if self.restart_scale != 1 and not self.restarts:
            raise ValueError(
                f"`restart_scale` is {self.restart_scale!r}, and no walker begins "
                "anew: pass `restarts`, the share that does at each step."
            )

    def init(
        self, model: Energy, memory: Memory | None = None
    ) -> TrainState[Energy, Memory]:
        """Return the first state, its audit walkers reweighted to `model`.

        Arguments:
            model: A callable pytree from one example to its energy, a scalar, or from a
                batch to energies.
            memory: `Walkers` or a `Reservoir`, of any start, or two of them in
                `Audited`, whose audit walkers must be of known density.

        Returns:
            The state at step 0; the training walkers count alike.

        Raises:
            TypeError: For walkers that are missing, or what is no energy.
            ValueError: For an energy that does not fit the walkers or that the kernel
                refuses; for audit walkers of unknown density; for `restarts` where the
                kernel's walkers can never be.
        """
        check_memory(self.kernel, model, memory)
        assert memory is not None
        audit = audit_population(memory)
        if audit is not None:
            check_known(audit, "leave out the audit")
        if self.restarts:
            self._check_restarts(model, example_shape(memory))
        population = within(training_population(memory), unweighted)
        memory = with_walkers(memory, population)
        return started(self.optim, self.kernel, model, memory)

    def step(
        self,
        state: TrainState[Energy, Memory],
        batch: Float[Array, "batch *shape"],
        *,
        key: PRNGKeyArray,
    ) -> tuple[TrainState[Energy, Memory], Metrics]:
        """Update the model by the walkers as they are, then move them.

        Arguments:
            state: The state before the step.
            batch: Examples, shape `(batch, *shape)`.
            key: The randomness of the step.

        Returns:
            The state after the step, and the metrics.
        """
        keys = jax.random.split(key, 3)
        population = training_population(state.memory)
        walkers, due = taken(population, state.step)
        equal = jnp.full(walkers.num, 1 / walkers.num, walkers.positions.dtype)
        turns = turns_of(population)
        model, opt_state, metrics = learned(
            self.optim,
            state,
            batch,
            walkers,
            equal,
            apart=turns > 1,
            penalty=self.penalty,
        )
        metrics["loss"] = metrics["energy_gap"]
        model, more = bounded(
            self.radius, state.model, model, due, turns=turns, weighted=False
        )
        metrics |= more
        moved = self._moved(due, model, state, keys[:2])
        metrics |= moved_by(moved.kernel_state)
        metrics["result"] = soundness(
            self.kernel, model, due, metrics["energy_gap"], state.step, batch
        )
        memory: Memory = put(population, state.step, moved)
        audit = audit_population(state.memory)
        if audit is not None:
            audit, more = audited(
                self.kernel,
                audit,
                taken(audit, state.step),
                due.kernel_state,
                model,
                state.step,
                self.num_moves,
                self.resample_below,
                data_energy=metrics["data_energy"],
                key=keys[2],
            )
            memory, metrics = Audited(memory, audit), metrics | more
        return state.advance(model, opt_state, memory), metrics

    def _moved(
        self, walkers: Walkers, model: Energy, state: TrainState, keys: Array
    ) -> Walkers:
        if self.restarts:
            walkers = self._restarted(walkers, state.model, keys[1])
        moved = followed(
            self.kernel, walkers, model, state.step, self.num_moves, key=keys[0]
        )
        return unweighted(moved)

    def _restarted(self, walkers: Walkers, model: Energy, key: PRNGKeyArray) -> Walkers:
        # Consecutive walkers, other ones at every step, so that few are evaluated.
        num = max(1, round(self.restarts * walkers.num))
        keys = jax.random.split(key)
        shape = (num, *walkers.positions.shape[1:])
        fresh = self.restart_scale * jax.random.normal(keys[0], shape)
        first = jax.random.randint(keys[1], (), 0, walkers.num - num + 1)
        begun = Particles.of(model, fresh.astype(walkers.positions.dtype))

        def put_in(whole: Array, part: Array) -> Array:
            return jax.lax.dynamic_update_slice_in_dim(whole, part, first, 0)

        mixed = jax.tree.map(put_in, walkers.particles, begun)
        return walkers.at(mixed)

    def _check_restarts(self, model: Energy, shape: tuple[int, ...]) -> None:
        noise = 3 * jax.random.normal(jax.random.key(0), (_NUM_TRIED, *shape))  # rare
        said = f"`restarts` is {self.restarts}, but a Gaussian draws"
        check_admitted(said, self.kernel, model, self.restart_scale * noise)

    def check(self, state: TrainState, batch: PyTree, source: Any) -> None:
        """Raise on data that the walkers cannot be compared with.

        Arguments:
            state: The run's first state.
            batch: The first batch, or its shape and dtype.
            source: The data of the run.

        Raises:
            TypeError: For batches that are no array, or as `kernel.check_data`.
            ValueError: For rows of another shape or scale than the walkers, or as
                `kernel.check_data`; for a state without walkers that train.
        """
        training_population(state.memory)
        check_data(self.kernel, state, batch, source)
