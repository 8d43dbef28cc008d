"""Maximum likelihood with walkers: weighted (Jarzynski) and unweighted (PCD)."""

from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from effgen.core.data import Minibatches, check_columns
from effgen.core.loops import repeat
from effgen.core.results import RESULTS
from effgen.core.state import Metrics, TrainState
from effgen.core.trainer import AbstractTrainer
from effgen.core.update import apply_gradients, init_opt_state
from effgen.core.weights import conditional_ess

from .kernels import AbstractKernel
from .walkers import Audited, Energy, Walkers, honest_walkers, training_walkers


Memory = Walkers | Audited

# The share of the weighted walkers that one step must leave. A sound run keeps 0.9 or
# more; below a tenth the weights are decided by a few walkers in the tail.
_COLLAPSED = 0.1


class JarzynskiTrainer(AbstractTrainer):
    """Maximum likelihood with Jarzynski-weighted walkers.

        gradient = mean(d energy(batch)) - sum(weights * d energy(positions))

    Each step takes the gradient with the walkers' weights, updates the model, and moves
    the walkers after it. Their weights take up the change of the model and the error of
    the discrete move, so they stay samples of the model without ever equilibrating.
    When the effective sample size falls below `resample_below` of their number they are
    resampled, and `log Z` is booked.

    **Attributes:** `optim`, any optax transformation; `kernel`, how walkers move;
    `resample_below`, a share between 0 and 1; `num_moves`, moves a step.

    **Metrics:** `loss`, the batch's cross-entropy in nats, `mean(energy) + log Z`, by
    the audit walkers if there are any, else by the training walkers, which flatter;
    `log_partition`, with `log_partition_error`; `energy_gap`, the mean energy of the
    data less that of the walkers; `ess` and `conditional_ess`, shares of the number of
    walkers; `lost`, the share that diverged; `grad_norm`; with audit walkers,
    `audit_ess` and `audit_gap`, the training walkers' `log Z` less the audit's.

    A run stops with `RESULTS.weights_collapsed` when a single step leaves less than a
    tenth of the weighted walkers: past that, estimates of `log Z` are worthless, and
    their error bars with them.

    **Source:** Carbone et al. (2023), Algorithm 1 with section 3's resampling.
    """

    watched: ClassVar[tuple[str, ...]] = ("loss", "log_partition", "ess", "energy_gap")

    optim: optax.GradientTransformation
    kernel: AbstractKernel
    resample_below: float = 0.5
    num_moves: int = 1

    def __check_init__(self) -> None:
        """Raise `ValueError` for settings out of range."""
        _check_settings(self.kernel, self.resample_below, self.num_moves)

    def init(
        self, model: Energy, memory: Memory | None = None
    ) -> TrainState[Energy, Memory]:
        """Return the first state: the walkers, reweighted to `model`.

        **Arguments:** `model`, a callable pytree from one example to its energy, a
        scalar; `memory`, `Walkers`, or `Audited` for an honest likelihood.

        **Raises:** `TypeError` or `ValueError` for walkers that are missing or of
        unknown density, and for an energy that does not fit their positions.
        """
        memory = _checked_memory(model, memory)
        for walkers in _populations(memory):
            if bool(jnp.isnan(walkers.log_partition)):
                raise ValueError(
                    "`memory` has walkers of unknown density, whose weights mean "
                    "nothing: start from `Walkers.from_gaussian`, give `from_samples` "
                    "their `log_density`, or train with `PCDTrainer`."
                )
        return _first_state(self.optim, model, memory)

    def step(
        self,
        state: TrainState[Energy, Memory],
        batch: Float[Array, "batch *shape"],
        *,
        key: PRNGKeyArray,
    ) -> tuple[TrainState[Energy, Memory], Metrics]:
        """Update the model by the walkers' weights, then bring the walkers after it."""

        def settle(moved: Walkers, key: PRNGKeyArray) -> Walkers:
            return resampled_below(self.resample_below, moved, key=key)

        state_, metrics = _walker_step(self, state, batch, settle, key=key)
        log_partition, error = honest_walkers(state.memory).estimate()
        metrics |= {
            "loss": metrics["data_energy"] + log_partition,
            "log_partition": log_partition,
            "log_partition_error": error,
            "result": RESULTS.where(
                metrics["conditional_ess"] > _COLLAPSED,
                RESULTS.successful,
                RESULTS.weights_collapsed,
            ),
        }
        if isinstance(state.memory, Audited):
            flattering = state.memory.walkers.estimate().value
            metrics["audit_gap"] = flattering - log_partition
        return state_, metrics

    def check(self, state: TrainState, batch: PyTree, source: Any) -> None:
        """Raise on data that the walkers cannot be compared with."""
        _check_data(state.memory, batch, source)


class PCDTrainer(AbstractTrainer):
    """Persistent contrastive divergence: the same steps with the weights off.

    The baseline. The walkers move as `JarzynskiTrainer`'s do, at the same cost, but
    count alike, as if they had equilibrated; they never do between updates, so the
    model's modes drift to where the walkers happen to be, and `log Z` is unknown.
    `Audited` walkers, which keep their weights, tell this trainer's likelihood as
    honestly as the other's.

    **Attributes:** `optim`; `kernel`; `num_moves`; `resample_below`, of the audit.

    **Metrics:** `loss`, which is `energy_gap` here; the rest as `JarzynskiTrainer`, and
    with audit walkers `cross_entropy`.

    **Source:** Tieleman (2008).
    """

    watched: ClassVar[tuple[str, ...]] = ("loss", "cross_entropy")

    optim: optax.GradientTransformation
    kernel: AbstractKernel
    num_moves: int = 1
    resample_below: float = 0.5

    def __check_init__(self) -> None:
        """Raise `ValueError` for settings out of range."""
        _check_settings(self.kernel, self.resample_below, self.num_moves)

    def init(
        self, model: Energy, memory: Memory | None = None
    ) -> TrainState[Energy, Memory]:
        """Return the first state; as `JarzynskiTrainer.init`, of any start."""
        state = _first_state(self.optim, model, _checked_memory(model, memory))
        return eqx.tree_at(
            lambda s: training_walkers(s.memory),
            state,
            _unweighted(training_walkers(state.memory)),
        )

    def step(
        self,
        state: TrainState[Energy, Memory],
        batch: Float[Array, "batch *shape"],
        *,
        key: PRNGKeyArray,
    ) -> tuple[TrainState[Energy, Memory], Metrics]:
        """Update the model by the walkers as they are, then move them."""
        state_, metrics = _walker_step(
            self, state, batch, lambda moved, _: _unweighted(moved), key=key
        )
        metrics["loss"] = metrics["energy_gap"]
        if isinstance(state.memory, Audited):
            log_partition, error = state.memory.audit.estimate()
            metrics |= {
                "cross_entropy": metrics["data_energy"] + log_partition,
                "log_partition": log_partition,
                "log_partition_error": error,
            }
        return state_, metrics

    def check(self, state: TrainState, batch: PyTree, source: Any) -> None:
        """Raise on data that the walkers cannot be compared with."""
        _check_data(state.memory, batch, source)


def contrast(
    model: Energy, batch: Float[Array, "batch *shape"], walkers: Walkers
) -> tuple[tuple[Float[Array, ""], Float[Array, ""]], PyTree]:
    """Return `(energy_gap, data_energy)` and the cross-entropy's gradient.

        energy_gap = mean(energy(batch)) - sum(weights * energy(positions))

    whose gradient, at fixed weights and positions, is that of the cross-entropy. Data
    and walkers go through the model as one batch.
    """
    num = batch.shape[0]
    signed = jnp.concatenate([jnp.full(num, 1 / num), -walkers.weights])
    everything = jnp.concatenate([batch, walkers.positions])

    def gap(model: Energy) -> tuple[Array, Array]:
        energies = jax.vmap(model)(everything)
        return jnp.sum(signed * energies), jnp.mean(energies[:num])

    return eqx.filter_value_and_grad(gap, has_aux=True)(model)


def resampled_below(share: float, walkers: Walkers, *, key: PRNGKeyArray) -> Walkers:
    """Return the walkers, resampled if fewer than `share` of them count."""
    return jax.lax.cond(
        walkers.ess < share * walkers.num,
        lambda: walkers.resampled(key),
        lambda: walkers,
    )


def _walker_step(
    trainer: JarzynskiTrainer | PCDTrainer,
    state: TrainState[Energy, Memory],
    batch: Float[Array, "batch *shape"],
    settle: Callable[[Walkers, PRNGKeyArray], Walkers],
    *,
    key: PRNGKeyArray,
) -> tuple[TrainState[Energy, Memory], Metrics]:
    """Return the next state and what both trainers report; `settle` is what differs."""
    walkers = training_walkers(state.memory)
    keys = jax.random.split(key, 4)
    (gap, data_energy), gradients = contrast(state.model, batch, walkers)
    model, opt_state = apply_gradients(
        trainer.optim, gradients, state.opt_state, state.model
    )
    moved = _moved(trainer, walkers, model, state.step, key=keys[0])
    metrics = {
        "energy_gap": gap,
        "data_energy": data_energy,
        "grad_norm": optax.tree.norm(gradients),
        "ess": moved.ess / moved.num,
        "conditional_ess": _conditional_share(walkers, moved),
        "lost": jnp.mean(jnp.isneginf(moved.log_weights)),
    }
    memory: Memory = settle(moved, keys[1])
    if isinstance(state.memory, Audited):
        audit = _moved(trainer, state.memory.audit, model, state.step, key=keys[2])
        metrics["audit_ess"] = audit.ess / audit.num
        audit = resampled_below(trainer.resample_below, audit, key=keys[3])
        memory = Audited(memory, audit)
    return state.advance(model, opt_state, memory), metrics


def _moved(
    trainer: JarzynskiTrainer | PCDTrainer,
    walkers: Walkers,
    model: Energy,
    step: Int[Array, ""],
    *,
    key: PRNGKeyArray,
) -> Walkers:
    # The first move crosses from the old model to the new; the others stay there.
    def body(i: Int[Array, ""], walkers: Walkers) -> Walkers:
        move_key = jax.random.fold_in(key, i)
        return trainer.kernel.move(walkers, model, step, key=move_key)

    if trainer.num_moves == 1:
        return body(jnp.zeros((), jnp.int32), walkers)
    return repeat(body, walkers, trainer.num_moves)


def _conditional_share(before: Walkers, after: Walkers) -> Float[Array, ""]:
    increments = after.log_weights - before.log_weights
    # A walker lost before has no increment (-inf less -inf), and no weight either.
    increments = jnp.where(jnp.isnan(increments), -jnp.inf, increments)
    return conditional_ess(before.log_weights, increments) / before.num


def _unweighted(walkers: Walkers) -> Walkers:
    return eqx.tree_at(
        lambda w: w.log_weights, walkers, jnp.zeros_like(walkers.log_weights)
    )


def _populations(memory: Memory) -> tuple[Walkers, ...]:
    if isinstance(memory, Audited):
        return memory.walkers, memory.audit
    return (memory,)


def _first_state(
    optim: optax.GradientTransformation, model: Energy, memory: Memory
) -> TrainState[Energy, Memory]:
    memory = jax.tree.map(
        lambda walkers: walkers.reweighted(model),
        memory,
        is_leaf=lambda leaf: isinstance(leaf, Walkers),
    )
    return TrainState.start(model, init_opt_state(optim, model), memory)


def _checked_memory(model: Energy, memory: Any) -> Memory:
    if not isinstance(memory, Walkers | Audited):
        raise TypeError(
            f"`memory` is a {type(memory).__name__}: pass "
            "`ebm.Walkers.from_gaussian(key, num, shape)`, or two in `ebm.Audited`."
        )
    for walkers in _populations(memory):
        _check_energy(model, walkers.positions)
    return memory


def _check_energy(model: Energy, positions: Float[Array, "walkers *shape"]) -> None:
    shape = positions.shape[1:]
    example = jax.ShapeDtypeStruct(shape, positions.dtype)
    out = eqx.filter_eval_shape(model, example)
    if getattr(out, "shape", None) != () or not jnp.issubdtype(out.dtype, jnp.floating):
        raise ValueError(
            f"`model` maps one example of shape {shape} to {out}: an energy is one "
            "floating-point number (sum over axes, or take `[0]`)."
        )


def _check_settings(
    kernel: AbstractKernel, resample_below: float, num_moves: int
) -> None:
    if not isinstance(kernel, AbstractKernel):
        raise TypeError(f"`kernel` is {kernel!r}: pass `ebm.ULA(step_size=...)`.")
    if not 0 < resample_below < 1:
        raise ValueError(
            f"`resample_below` is {resample_below}: pass a share between 0 and 1."
        )
    if num_moves < 1:
        raise ValueError(f"`num_moves` is {num_moves}: pass a positive integer.")


def _check_data(memory: Memory, batch: PyTree, source: Any) -> None:
    shape = training_walkers(memory).positions.shape[1:]
    if not hasattr(batch, "shape"):
        raise TypeError(
            f"`data` gives batches of type {type(batch).__name__}: this trainer takes "
            "one array, `(batch, *shape)`."
        )
    if tuple(batch.shape[1:]) != shape or len(batch.shape) < 1:
        raise ValueError(
            f"`data` has rows of shape {tuple(batch.shape[1:])}, the walkers {shape}: "
            "give both the shape of one example."
        )
    if not jnp.issubdtype(batch.dtype, jnp.floating):
        raise TypeError(
            f"`data` has dtype {batch.dtype}: energies need floats; convert and scale "
            "it, as in `x.astype('float32') / 255`."
        )
    if isinstance(source, Minibatches):
        check_columns("data", source.arrays)
