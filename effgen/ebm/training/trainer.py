"""Maximum likelihood with Jarzynski-weighted walkers."""

import math
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from effgen.core.contract.counts import check_count
from effgen.core.contract.state import Metrics, TrainState
from effgen.core.contract.trainer import AbstractTrainer
from effgen.core.outcome.results import RESULTS
from effgen.ebm.contract.arguments import check_penalty, check_share
from effgen.ebm.contract.energy import Energy
from effgen.ebm.moves.kernels import AbstractKernel, check_kernel, followed
from effgen.ebm.walkers.islands import resampled_below
from effgen.ebm.walkers.populations import (
    Audited,
    Memory,
    audit_population,
    put,
    taken,
    training_population,
    turns_of,
)
from effgen.ebm.walkers.weighted_walkers import Walkers

from .audit import audited, likelihood
from .learning import learned, started
from .memory_checks import check_data, check_known, check_memory
from .soundness import conditional_share, lost_share, moved_by, soundness
from .trust_region import bounded, check_radius


# The share of the weighted walkers that one step must leave. A sound run keeps 0.9 or
# more; below a tenth the weights are decided by a few walkers in the tail.
_COLLAPSED = 0.1

# The share of the walkers that may diverge in one step, beyond a single one.
_LOST = 0.01


class JarzynskiTrainer(AbstractTrainer):
    """Maximum likelihood with Jarzynski-weighted walkers.

        gradient = mean(d energy(batch)) - sum(weights * d energy(positions))

    Each step takes the gradient with the walkers' weights, updates the model, and moves
    the walkers after it. Their weights correct for the change of the model and for the
    error of the discrete move. So they stay samples of the model without equilibrating.
    When the effective sample size falls below `resample_below` of their number they are
    resampled, and `log Z` is added to `log_partition`.

    The metrics are:

    - `loss`, the batch's cross-entropy in nats, `mean(energy) + log Z`, by the audit
      walkers if there are any, else by the training walkers, whose `log Z` is low;
    - `log_partition`, `log Z` in nats, and `log_partition_error`, by the same walkers;
    - `data_energy`, the batch's mean energy, and `energy_gap`, that less the walkers';
    - `ess` and `conditional_ess`, shares of the number of walkers;
    - `roots`, the share of the first walkers that have descendants;
    - `lost`, the share of the walkers that this step's moves took to infinite energies;
    - `steepest`, the largest gradient that a walker met, where the kernel takes any;
    - `step_size`, `acceptance` and `grad_norm`;
    - with a `radius`, `update_share`, the share of the update that was taken, and
      `update_radius`, the square root of what it cost;
    - with audit walkers, `audit_ess`, `audit_roots` and `audit_gap`, the training
      walkers' `log Z` less the audit's.

    A run stops with `RESULTS.weights_collapsed` when a single step leaves less than a
    tenth of the weighted walkers: below that, estimates of `log Z` and their error bars
    are not reliable. It stops with `RESULTS.walkers_lost` when moves take more than one
    walker, and more than one in a hundred, to where the energy is not finite.

    Arguments:
        optim: Any optax transformation. One that asks for the loss is told the metric
            `loss` and what a `penalty` adds; a line search weighs the walkers as they
            are (`change_of`), which holds near the model alone: bound its steps.
        kernel: How walkers move.
        resample_below: A share of the walkers, in (0, 1).
        num_moves: Moves a step.
        radius: An update of the model may cost at most `radius^2` of the weighted
            walkers, to second order; a larger one is shortened (`bounded`). It costs a
            forward derivative of the energy at the walkers that move. By default all
            updates pass, at no cost.
        penalty: Of energies far from 0: half of it times the mean square of the data's
            and of the walkers' energies is added to what is minimized, not to `loss`.
            The weights and `log Z` stay exact; the optimum changes.

    Raises:
        TypeError: If `kernel` is no kernel, or `radius` no number.
        ValueError: For settings out of range.

    Source:
        Carbone et al. (2023), Algorithm 1 with section 3's resampling.
    """

    watched: ClassVar[tuple[str, ...]] = ("loss", "log_partition", "ess", "energy_gap")

    optim: optax.GradientTransformation
    kernel: AbstractKernel
    resample_below: float = eqx.field(default=0.5, kw_only=True)
    num_moves: int = eqx.field(default=1, kw_only=True)
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
        self, model: Energy, memory: Memory | None = None
    ) -> TrainState[Energy, Memory]:
        """Return the first state: the walkers, reweighted to `model`.

        Arguments:
            model: A callable pytree from one example to its energy, a scalar, or from a
                batch to energies.
            memory: `Walkers` or a `Reservoir`, of known density, or two of them in
                `Audited` for a likelihood that training does not bias.

        Returns:
            The state at step 0, with the step size of the first move.

        Raises:
            TypeError: For walkers that are missing, or what is no energy.
            ValueError: For walkers of unknown density, for a memory that keeps none
                that train, and for an energy that does not fit their positions or that
                the kernel refuses.
        """
        check_memory(self.kernel, model, memory)
        assert memory is not None
        training_population(memory)
        check_known(memory, "train with `PCDTrainer`")
        return started(self.optim, self.kernel, model, memory)

    def step(
        self,
        state: TrainState[Energy, Memory],
        batch: Float[Array, "batch *shape"],
        *,
        key: PRNGKeyArray,
    ) -> tuple[TrainState[Energy, Memory], Metrics]:
        """Take the step of Algorithm 1: learn by the weights, move, weigh, resample.

        Arguments:
            state: The state before the step.
            batch: Examples, shape `(batch, *shape)`.
            key: The randomness of the step.

        Returns:
            The state after the step, and the metrics.
        """
        keys = jax.random.split(key, 3)
        population = training_population(state.memory)
        audit, turns = audit_population(state.memory), turns_of(population)
        walkers, due = read = taken(population, state.step)
        watching = read if audit is None else taken(audit, state.step)

        # The cross-entropy's gradient, by the weights; an update that walkers follow.
        model, opt_state, metrics = learned(
            self.optim,
            state,
            batch,
            walkers,
            walkers.weights,
            watching[0].estimate().value,
            apart=turns > 1,
            penalty=self.penalty,
        )
        model, cost = bounded(self.radius, state.model, model, due, turns=turns)
        # Moves after the model, whose change and whose own error the weights take up.
        moved = followed(
            self.kernel, due, model, state.step, self.num_moves, key=keys[0]
        )
        # Where too few walkers count, they are drawn by their weights.
        settled = resampled_below(self.resample_below, moved, key=keys[1])
        memory: Memory = put(population, state.step, settled)

        metrics |= cost | self._told(due, moved)
        metrics |= likelihood(walkers, metrics["data_energy"])
        if audit is not None:
            audit, more = audited(
                self.kernel,
                audit,
                watching,
                due.kernel_state,
                model,
                state.step,
                self.num_moves,
                self.resample_below,
                data_energy=metrics["data_energy"],
                key=keys[2],
            )
            memory = Audited(memory, audit)
            more["audit_gap"] = metrics["log_partition"] - more["log_partition"]
            metrics |= more
        metrics["loss"] = metrics.pop("cross_entropy")
        metrics["result"] = self._result(due, moved, model, metrics, state.step, batch)
        return state.advance(model, opt_state, memory), metrics

    def _told(self, before: Walkers, moved: Walkers) -> Metrics:
        metrics: Metrics = {
            "ess": moved.ess,
            "conditional_ess": conditional_share(before, moved),
            "roots": moved.num_roots / moved.num,
            "lost": lost_share(before, moved),
            **moved_by(moved.kernel_state),
        }
        if self.kernel.takes_gradients:
            squares = jnp.sum(moved.gradients.reshape(moved.num, -1) ** 2, axis=1)
            metrics["steepest"] = jnp.sqrt(jnp.max(squares))
        return metrics

    def _result(
        self,
        before: Walkers,
        moved: Walkers,
        model: Energy,
        metrics: Metrics,
        step: Int[Array, ""],
        batch: Float[Array, "batch *shape"],
    ) -> Any:
        held = _held(metrics["conditional_ess"], metrics["lost"], moved.num)
        gap = metrics["energy_gap"]
        sound = soundness(self.kernel, model, before, gap, step, batch)
        first = (held == RESULTS.successful) | (sound == RESULTS.data_outside)
        return RESULTS.where(first, sound, held)

    def check(self, state: TrainState, batch: PyTree, source: Any) -> None:
        """Raise on data that the walkers cannot be compared with.

        Arguments:
            state: The run's first state.
            batch: The first batch, or its shape and dtype.
            source: The data of the run.

        Raises:
            TypeError: For batches that are no array, or as `kernel.check_data`.
            ValueError: For rows of another shape or scale than the walkers, or as
                `kernel.check_data`; for a state whose walkers have no weights.
        """
        training_population(state.memory)
        check_known(state.memory, "begin anew by `trainer.init`, with fresh walkers")
        check_data(self.kernel, state, batch, source)


def _held(conditional: Array, lost: Array, num: int) -> Any:
    sound = RESULTS.where(
        conditional > _COLLAPSED, RESULTS.successful, RESULTS.weights_collapsed
    )
    return RESULTS.where(lost * num <= max(1, _LOST * num), sound, RESULTS.walkers_lost)
