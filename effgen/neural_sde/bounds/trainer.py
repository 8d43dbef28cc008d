"""The trainer: stochastic gradients of a bound on the log-evidence of series."""

import dataclasses
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import PRNGKeyArray, PyTree

from effgen.core.contract.state import Metrics, TrainState
from effgen.core.contract.trainer import AbstractTrainer
from effgen.core.contract.update import apply_gradients, init_opt_state
from effgen.core.outcome.results import RESULTS
from effgen.neural_sde.data.grid import steps_needed
from effgen.neural_sde.data.series import (
    Series,
    as_series,
    share_times,
    times_are_shared,
)
from effgen.neural_sde.modeling.checks import check_batch, check_model, check_series
from effgen.neural_sde.modeling.model import LatentSDE

from .objectives import (
    AbstractObjective,
    AnchoredELBO,
    Bound,
    MarginalELBO,
    check_marginal,
)


_MOST_STEPS = 1024


class LatentSDETrainer(AbstractTrainer):
    """Maximum likelihood of a latent SDE by a bound on `log p(y)`.

        loss = -mean over series of E[elbo]

    A step takes its gradient and the optimizer's update. There is no memory: the linear
    control is a closed form of the parameters and the data.

    Batches are `(ts, ys, mask, inputs, errors)`, the last three optional or `None`,
    arrays whose leading axis is series: see `pad_series`. Values that are NaN, or false
    in `mask`, are missing; `errors`, of `ys`'s shape, multiply a `LinearDecoder`'s
    `scale` at each value.

    Arguments:
        optim: Any optax transformation. A line search sees the bound of the batch with
            the step's own noise.
        dt: The longest step, in the units of `ts`. Each gap between times is cut into
            equal steps. The bound holds at any; two to five steps a gap are often
            enough.
        num_paths: How many paths of each series a step draws.
        objective: The bound, by default `AnchoredELBO()`.
        parallel: Whether messages run in a depth of `log(steps)` (for GPUs).
        max_steps: The most steps of `dt` that a series may need. `None`: what the data
            need where `train` is given arrays (`effgen.Minibatches`), else 1,024.
        shared_times: Whether all series have the same times and the same entries
            missing: matrices are then computed once for the whole batch. `None`: what
            the data say where `train` is given arrays, else no.

    Metrics:
        `loss`; `elbo`, its negative; `log_evidence`, of the linear model alone;
        `elbo_std`, of a series' paths, zero where the bound is exact; `grad_norm`.

    Raises:
        ValueError: For a `dt`, `num_paths` or `max_steps` that is not positive.

    Source:
        Daems, Opper, Crevecoeur and Birdal (2025); the bound is derived in
        `docs/neural_sde.md`.
    """

    watched: ClassVar[tuple[str, ...]] = ("loss", "elbo_std")

    optim: optax.GradientTransformation
    dt: float
    num_paths: int = eqx.field(default=8, kw_only=True)
    objective: AbstractObjective = eqx.field(default=AnchoredELBO(), kw_only=True)
    parallel: bool = eqx.field(default=False, kw_only=True)
    max_steps: int | None = eqx.field(default=None, kw_only=True)
    shared_times: bool | None = eqx.field(default=None, kw_only=True)

    def __check_init__(self) -> None:
        """Raise `ValueError` for settings out of range."""
        if not (np.isfinite(self.dt) and self.dt > 0):
            raise ValueError(f"`dt` is {self.dt}: pass a positive length of time.")
        for name in ("num_paths", "max_steps"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ValueError(f"`{name}` is {value}: pass a positive integer.")

    def init(self, model: LatentSDE, memory: Any = None) -> TrainState:
        """Return the first state; the model takes this trainer's `dt`.

        Arguments:
            model: The latent SDE to train.
            memory: Kept in the state; this trainer does not use it.

        Returns:
            The state of step 0.

        Raises:
            TypeError: For an object that is no model, a `drift` that cannot be called,
                and an `optim` that is no optax transformation.
            ValueError: For a `drift` of another shape, or not finite near the initial
                mean.
        """
        if not isinstance(model, LatentSDE):
            raise TypeError(f"`model` is a {type(model).__name__}: pass a `LatentSDE`.")
        check_model(model)
        model = dataclasses.replace(model, dt=self.dt)
        trained, _ = model.trainable()
        return TrainState.start(model, init_opt_state(self.optim, trained), memory)

    def step(
        self, state: TrainState, batch: PyTree, *, key: PRNGKeyArray
    ) -> tuple[TrainState, Metrics]:
        """Take one gradient step on the bound.

        Arguments:
            state: From `init` or the last step.
            batch: Series, as above.
            key: A random key.

        Returns:
            The state after the step, and the metrics.
        """
        whole = as_series(batch)
        series = share_times(whole) if self.shared_times else whole
        trained, _ = state.model.trainable()

        def loss_of(trained: LatentSDE) -> tuple[jax.Array, Bound]:
            model = state.model.retrained(trained)
            bound = bounds(
                model,
                series,
                self.objective,
                num_steps=self.max_steps or _MOST_STEPS,
                num_paths=self.num_paths,
                parallel=self.parallel,
                key=key,
            )
            return -jnp.mean(bound.values), bound

        (loss, bound), gradients = eqx.filter_value_and_grad(loss_of, has_aux=True)(
            trained
        )
        trained, opt_state = apply_gradients(
            self.optim,
            gradients,
            state.opt_state,
            trained,
            value=loss,
            value_fn=lambda trained: loss_of(trained)[0],
        )
        metrics = {
            "loss": loss,
            "elbo": -loss,
            "log_evidence": jnp.mean(bound.log_evidence),
            "elbo_std": jnp.mean(jnp.std(bound.values, axis=1)),
            "grad_norm": optax.tree.norm(gradients),
            "result": _result(state.model, whole, series, bound),
        }
        model = state.model.retrained(trained)
        return state.advance(model, opt_state, state.memory), metrics

    def for_data(self, state: TrainState, data: Any) -> "LatentSDETrainer":
        """Return this trainer with what the data say of `None`s among its settings.

        Arguments:
            state: The state of the run.
            data: Its data, with `arrays` where they are known.

        Returns:
            A trainer with `max_steps` and `shared_times`, or this one.
        """
        arrays = getattr(data, "arrays", None)
        if not isinstance(arrays, tuple | list) or not 2 <= len(arrays) <= 5:
            return self  # `check` tells what is wrong
        ts, ys, mask = (*arrays, None)[:3]
        if len(getattr(ts, "shape", ())) != 2 or not isinstance(state.model, LatentSDE):
            return self
        num, shared = self.max_steps, self.shared_times
        if num is None:
            num = steps_needed(np.asarray(ts), dt=self.dt, t0=state.model.t0)
        if shared is None:
            shared = times_are_shared(ts, ys, mask)
        return dataclasses.replace(self, max_steps=num, shared_times=shared)

    def check(self, state: TrainState, batch: PyTree, source: Any) -> None:
        """Check the series before any compute.

        Arguments:
            state: The state of the run.
            batch: Shapes and dtypes of a batch.
            source: The data as they were given.

        Raises:
            ValueError: For a state of another trainer, arrays that do not fit together
                or the model, a model of another bound than `MarginalELBO`, and series
                that need more than `max_steps`.
            TypeError: For a batch that is no tuple of series, and what are no numbers.
        """
        model = state.model
        if not isinstance(model, LatentSDE) or model.dt != self.dt:
            raise ValueError(
                f"the state's model is not of this trainer, whose `dt` is {self.dt}: "
                "make the state by `trainer.init(model)`."
            )
        check_batch(model, batch)
        inputs = (*batch, None, None)[3]
        check_model(model, None if inputs is None else inputs.shape[-1])
        if len(batch[0].shape) != 2:
            raise ValueError(f"`ts` has shape {batch[0].shape}: pass (series, obs).")
        arrays = getattr(source, "arrays", None)
        if not isinstance(arrays, tuple | list):
            return
        check_series(model, arrays)
        if isinstance(self.objective, MarginalELBO):
            check_marginal(model, np.asarray(arrays[0]))
        needed = steps_needed(np.asarray(arrays[0]), dt=self.dt, t0=model.t0)
        if self.max_steps is not None and needed - 7 > self.max_steps:
            raise ValueError(
                f"`max_steps` is {self.max_steps} and the longest series needs about "
                f"{needed} steps of `dt` {self.dt}: raise one of them."
            )


def bounds(
    model: LatentSDE,
    series: Series,
    objective: AbstractObjective,
    *,
    num_steps: int,
    num_paths: int,
    parallel: bool,
    key: PRNGKeyArray,
) -> Bound:
    """Return the bounds of a batch of series, stacked."""
    keys = jax.random.split(key, series.ys.shape[0])

    def one(series: Series, key: PRNGKeyArray) -> Bound:
        return objective(
            model,
            series,
            num_steps=num_steps,
            num_paths=num_paths,
            parallel=parallel,
            key=key,
        )

    return jax.vmap(one, in_axes=(series.batch_axes, 0))(series, keys)


def _result(model: LatentSDE, whole: Series, used: Series, bound: Bound) -> Any:
    """Say what is wrong with times that could not be seen before."""
    ts = whole.ts
    disorder = jnp.any(jnp.diff(ts, axis=1) < 0) | jnp.any(~jnp.isfinite(ts))
    for all_series, one in ((ts, used.ts), (whole.mask, used.mask)):
        disorder |= jnp.any(all_series != jnp.broadcast_to(one, all_series.shape))
    if model.t0 is not None:
        disorder |= jnp.any(ts < model.t0)
    result = RESULTS.where(
        jnp.all(bound.fits), RESULTS.successful, RESULTS.too_many_steps
    )
    return RESULTS.where(disorder, RESULTS.times_out_of_order, result)
