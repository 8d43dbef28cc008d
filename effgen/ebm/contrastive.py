"""Contrastive divergence, the baseline: the same steps with the weights off."""

import math
from numbers import Real
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from effgen.core.loops import repeat
from effgen.core.state import Metrics, TrainState
from effgen.core.trainer import AbstractTrainer

from .arguments import check_count, check_penalty, check_positive, check_share
from .audit import audited, check_watched_data, watch, watched_start
from .evaluation import Energy
from .islands import unweighted
from .kernels import AbstractKernel, check_kernel
from .learning import (
    check_data,
    check_known,
    check_memory,
    followed,
    learned,
    moved_by,
    soundness,
    started,
)
from .particles import KernelState, Particles
from .populations import (
    Audited,
    Memory,
    Population,
    audit_population,
    put,
    taken,
    training_population,
    turns_of,
    with_walkers,
    within,
)
from .step_sizes import begun_with
from .trust_region import bounded, check_radius
from .walkers import Walkers


class PCDTrainer(AbstractTrainer):
    """Persistent contrastive divergence: `JarzynskiTrainer`'s steps, weights off.

    The baseline. The walkers move as `JarzynskiTrainer`'s do, at the same cost, but
    count alike, as if they had equilibrated; they never do between updates, so the
    model's modes drift to where the walkers happen to be, and `log Z` is unknown.
    `Audited` walkers, which keep their weights, tell this trainer's likelihood as
    honestly as the other's.

    **Attributes:** `optim`, which is told the energy gap where it asks for the loss, as
    `JarzynskiTrainer`'s; `kernel`; `num_moves`; `resample_below`, of the audit;
    `restarts`, the share of the walkers that begin anew at each step, from a Gaussian
    of `restart_scale`, as replay buffers do; `radius`, as `JarzynskiTrainer`'s, by
    walkers that count alike; `penalty`, as `JarzynskiTrainer`'s.

    **Metrics:** `loss`, which is `energy_gap` here; the rest as `JarzynskiTrainer`, and
    with audit walkers `cross_entropy`.

    **Source:** Tieleman (2008); for restarts, Du and Mordatch (2019).
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

    def init(
        self, model: Energy, memory: Memory | None = None
    ) -> TrainState[Energy, Memory]:
        """Return the first state; as `JarzynskiTrainer.init`, of any start."""
        check_memory(self.kernel, model, memory)
        assert memory is not None
        audit = audit_population(memory)
        if audit is not None:
            check_known(audit, "leave out the audit")
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
        """Update the model by the walkers as they are, then move them."""
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
            self.kernel, model, due, metrics["energy_gap"], state.step
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

    def check(self, state: TrainState, batch: PyTree, source: Any) -> None:
        """Raise on data that the walkers cannot be compared with."""
        check_data(self.kernel, state.memory, batch, source)


class CDTrainer(AbstractTrainer):
    """Contrastive divergence: short chains that start anew at the data of each step.

    The baseline. Chains of `num_moves` from the batch never leave the modes that the
    data are in, so nothing tells the model how much each mode should weigh, nor of
    modes that it has and the data do not.

    The walkers given, if any, only watch: weighted as `JarzynskiTrainer`'s, they tell
    this trainer's likelihood. The memory is `Audited`, with the kernel's state in place
    of walkers that train.

    **Attributes:** `optim`, as `PCDTrainer`'s; `kernel`; `num_moves`, the `k` of CD-k;
    `resample_below`, of the watching walkers; `radius`, as `PCDTrainer`'s, by the
    chains' ends; `penalty`, as `JarzynskiTrainer`'s.

    **Metrics:** `loss`, which is `energy_gap` here; `data_energy`, `grad_norm`;
    `step_size` and `acceptance`; with watching walkers `cross_entropy`,
    `log_partition` and `log_partition_error`.

    **Source:** Hinton (2002).
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
        """Return the first state; `memory`, if given, are walkers that watch."""
        own = KernelState(jnp.zeros(()), jnp.ones(()))
        return watched_start(self.optim, self.kernel, model, memory, own)

    def step(
        self,
        state: TrainState[Energy, Audited],
        batch: Float[Array, "batch *shape"],
        *,
        key: PRNGKeyArray,
    ) -> tuple[TrainState[Energy, Audited], Metrics]:
        """Move chains from the batch, then update the model by where they got."""
        chain_key, watch_key = jax.random.split(key)
        chains = self._chains(state, batch, chain_key)
        equal = jnp.full(chains.num, 1 / chains.num, chains.positions.dtype)
        model, opt_state, metrics = learned(
            self.optim, state, batch, chains, equal, penalty=self.penalty
        )
        metrics["loss"] = metrics["energy_gap"]
        model, more = bounded(self.radius, state.model, model, chains, weighted=False)
        metrics |= more
        audit, more = watch(
            self.kernel,
            state,
            model,
            self.num_moves,
            self.resample_below,
            data_energy=metrics["data_energy"],
            key=watch_key,
        )
        metrics["result"] = soundness(
            self.kernel, model, chains, metrics["energy_gap"], state.step
        )
        metrics |= moved_by(chains.kernel_state)
        memory = Audited(chains.kernel_state, audit)
        return state.advance(model, opt_state, memory), metrics | more

    def _chains(
        self, state: TrainState[Energy, Audited], batch: Array, key: PRNGKeyArray
    ) -> Walkers:
        begun = Walkers.from_samples(batch).reweighted(state.model)
        own = state.memory.walkers
        assert isinstance(own, KernelState)
        chains = begun_with(begun, own.step_size)

        def body(i: Any, chains: Walkers) -> Walkers:
            move_key = jax.random.fold_in(key, i)
            return self.kernel.move(chains, state.model, state.step, key=move_key)

        return repeat(body, chains, self.num_moves)

    def check(self, state: TrainState, batch: PyTree, source: Any) -> None:
        """Raise on data that the kernel cannot move or the walkers cannot meet."""
        check_watched_data(self.kernel, state.memory, batch, source)
