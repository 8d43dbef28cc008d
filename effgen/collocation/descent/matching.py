"""Derivative matching: networks fitted to slopes of smoothed data, no ODE solved."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from effgen.collocation.modeling.problem import (
    Model,
    Problem,
    as_numbers,
    as_trained,
    flat_bounds,
)
from effgen.collocation.program.nlp import ravel, unravel
from effgen.collocation.program.transcription import Transcription
from effgen.collocation.solvers.scaling import sizes_of
from effgen.collocation.states.inference import inferred
from effgen.collocation.states.mesh import Mesh
from effgen.collocation.states.solution import Solution, same_mesh, solution_on
from effgen.core.contract.counts import check_count
from effgen.core.contract.state import Metrics, TrainState
from effgen.core.contract.trainer import AbstractTrainer
from effgen.core.contract.update import apply_gradients, init_opt_state
from effgen.core.data.batches import Minibatches
from effgen.core.running.verbs import fit

from .bounded import check_kept, data_alone, in_bounds, started


_MOST_ROWS = 4_096
_OFF = 1e-3  # how far inside of bounds, in parts of a size or of the width


class Slopes(NamedTuple):
    """Rows to fit: times, states, inputs, and the states' derivatives.

    Attributes:
        ts: The times, `(rows,)`.
        states: The states, `(rows, state)`, in their units.
        inputs: The known inputs, `(rows, inputs)`; no columns without inputs.
        slopes: The states' derivatives by time, `(rows, state)`.
    """

    ts: Float[Array, " rows"]
    states: Float[Array, "rows state"]
    inputs: Float[Array, "rows inputs"]
    slopes: Float[Array, "rows state"]


def slopes_of(solution: Solution, mesh: Mesh) -> Slopes:
    """Return the nodes of a solution with its polynomials' derivatives.

    Around switches the times are those that they have in the solution.

    Arguments:
        solution: The states, such as `transcription.guess()`.
        mesh: The mesh of the solution, such as `transcription.mesh`.

    Returns:
        One row for each node of all trajectories; the time where an interval ends is of
        just before, and a trajectory's start of after a dose there.

    Raises:
        ValueError: For a solution of another mesh.
    """
    if not same_mesh(solution, mesh):
        raise ValueError(
            "`solution` is of another mesh than `mesh`: pass that of its transcription."
        )
    found = [solution.rows_at_nodes(i) for i in range(len(mesh.edges))]
    ts, slopes = (np.concatenate(parts) for parts in zip(*found, strict=True))
    states = np.array(solution.positions)
    after = solution.at_points(mesh.first_intervals)[:, 0]  # a dose, as slopes are
    states[mesh.starts] = after
    parts = (ts, states, mesh.inputs, slopes)
    return Slopes(*map(jnp.asarray, parts))


class DerivativeMatchingTrainer(AbstractTrainer):
    """The baseline without an ODE: `vector_field` fitted to estimated slopes.

        loss = mean of ((slopes - vector_field(t, x, u, p, nets)) / scale)^2 / 2
               + penalty(p, nets) + weight_decay |nets|^2 / 2

    over the differential components. It is biased if data are noisy or states are not
    measured, but it gives a good first guess. After each step parameters are moved into
    their bounds. No trajectory is solved, so `state_bounds` and `initial` have no
    effect.

    Arguments:
        optim: The optax optimizer.
        problem: The problem, of which the batches replace the data.
        scale: The slopes' standard deviation, one number for each state, in the
            states' units by time.

    Raises:
        ValueError: For a problem with constraints, switches, `priors`, `lagrange` or
            `mayer`, or a `scale` that is not one positive number for each state.

    Source:
        Varah (1982); with networks, Roesch, Rackauckas and Stumpf (2021).
    """

    optim: optax.GradientTransformation
    problem: Problem
    scale: tuple[float, ...]

    def __init__(
        self,
        optim: optax.GradientTransformation,
        problem: Problem,
        *,
        scale: Sequence[float],
    ) -> None:
        """Keep the problem without its data, which the batches have."""
        left_out = ("constraints", "switches", "priors", "lagrange", "mayer")
        check_kept(problem, "DerivativeMatchingTrainer", left_out)
        self.optim, self.scale = optim, tuple(np.ravel(scale).astype(float).tolist())
        good = all(0 < s < np.inf for s in self.scale)
        if len(self.scale) != problem.num_states or not good:
            raise ValueError(
                f"`scale` is {self.scale}: pass {problem.num_states} positive numbers, "
                "one for each state."
            )
        self.problem = problem.without_data()

    def init(self, model: PyTree, memory: Any = None) -> TrainState:
        """Return the first state.

        Arguments:
            model: A `Model`, a pair `(parameters, networks)`, or networks alone.
            memory: Kept as it is; the trainer does not use it.

        Returns:
            The state at step 0.

        Raises:
            TypeError: For complex parameters.
            ValueError: For `parameter_bounds` that cross or are not like parameters.
        """
        model = started(self.problem, as_numbers(model))
        return TrainState.start(model, init_opt_state(self.optim, model), memory)

    def step(
        self, state: TrainState, batch: Slopes, *, key: PRNGKeyArray
    ) -> tuple[TrainState, Metrics]:
        """Take one gradient step.

        Arguments:
            state: The state before.
            batch: The rows to fit.
            key: Not used.

        Returns:
            The state one step later, and the metrics `loss` and `grad_norm`.
        """
        loss, gradients = eqx.filter_value_and_grad(self._loss)(state.model, batch)
        model, opt_state = apply_gradients(
            self.optim,
            gradients,
            state.opt_state,
            state.model,
            value=loss,
            value_fn=lambda model: self._loss(model, batch),
        )
        model = in_bounds(self.problem, model)
        metrics = {"loss": loss, "grad_norm": optax.tree.norm(gradients)}
        return state.advance(model, opt_state, state.memory), metrics

    def _loss(self, model: Model, batch: Slopes) -> Float[Array, ""]:
        problem = self.problem
        given = (model.parameters, model.networks)
        field = lambda t, x, u: jnp.asarray(problem.vector_field(t, x, u, *given))
        found = jax.vmap(field)(batch.ts, batch.states, batch.inputs)
        num = problem.num_states - problem.num_algebraic
        error = (found - batch.slopes)[:, :num] / jnp.asarray(self.scale)[None, :num]
        loss = 0.5 * jnp.mean(error**2)
        if problem.penalty is not None:
            loss += jnp.reshape(problem.penalty(*given), ())
        return loss + problem.decay(model.networks)


def _told(transcription: Transcription, model: Model) -> Solution:
    """Return the guess by a model.

    Raises:
        ValueError: For a state of which neither data nor slopes tell.
    """
    positions, known = inferred(transcription.problem, transcription.mesh, model)
    if not known.all():
        i, state = np.argwhere(~known)[0].tolist()
        raise ValueError(
            f"state {state} of trajectory {i} is not measured, and neither `observe` "
            "nor the slope of a measured state tells it, so its slope is not known: "
            "leave `pretrain` out, and begin at `transcription.simulated(model)`."
        )
    return solution_on(transcription.mesh, positions)


def pretrain(
    model: PyTree,
    transcription: Transcription,
    *,
    key: PRNGKeyArray,
    num_steps: int = 1_000,
    rate: float = 1e-2,
) -> Model:
    """Return the model fitted to the slopes of the guess by it, in float64.

    The optimizer is Adam with a cosine schedule. The model stays inside of the
    problem's bounds. Costs, `penalty` and constraints are left to the trainer that
    solves the problem. States that are not measured are those of
    `transcription.guess(model)`. Networks that begin near the law reduce Ipopt's
    iterations.

    Arguments:
        model: A `Model`, a pair `(parameters, networks)`, or networks alone.
        transcription: The problem on its mesh.
        key: The JAX random key of the minibatches.
        num_steps: The number of gradient steps.
        rate: The first step size, in parts of the size of each parameter; weights of
            networks count as of size one.

    Returns:
        The fitted model.

    Raises:
        TypeError: For complex parameters.
        ValueError: For `parameter_bounds` that cross or are not like the parameters, no
            number of steps, a rate that is not positive, or a state of which neither
            data nor slopes tell.
    """
    check_count("num_steps", num_steps)
    if not 0 < rate < np.inf:
        raise ValueError(f"`rate` is {rate}: pass a positive number.")
    problem, trained = transcription.problem, as_trained(model)
    rows = slopes_of(_told(transcription, trained), transcription.mesh)
    spread = np.asarray(rows.slopes).std(0)
    scale = np.where(spread > 0, spread, 1.0)
    bounds = flat_bounds(problem.parameter_bounds, trained.parameters)
    size = sizes_of(trained, problem.parameter_nominal, bounds)
    inside = _inside(bounds, size, ravel(trained))
    optim = _scaled(
        optax.adam(optax.cosine_decay_schedule(rate, num_steps)), trained, size, inside
    )
    trained = unravel(trained, jnp.clip(ravel(trained), *inside))
    trainer = DerivativeMatchingTrainer(
        optim, data_alone(problem), scale=scale.tolist()
    )
    data = Minibatches(rows, min(len(rows.ts), _MOST_ROWS))
    state, _ = fit(
        trainer,
        trainer.init(trained),
        data,
        key=key,
        num_steps=num_steps,
        every=num_steps,
    )
    return state.model


def _inside(
    bounds: tuple[np.ndarray, np.ndarray], size: np.ndarray, flat: Array
) -> tuple[Array, Array]:
    """Return bounds of the raveled model, off the problem's own: laws end there."""
    lower, upper = bounds
    width = np.where(np.isfinite(upper - lower), upper - lower, np.inf)
    gap = _OFF * np.minimum(size, width)
    free = np.full(len(flat) - len(lower), np.inf)
    ends = (np.concatenate([lower + gap, -free]), np.concatenate([upper - gap, free]))
    return jnp.asarray(ends[0]), jnp.asarray(ends[1])


def _scaled(
    optim: optax.GradientTransformation,
    model: Model,
    size: np.ndarray,
    bounds: tuple[Array, Array],
) -> optax.GradientTransformation:
    """Return an optimizer of the model in units of its sizes, inside of bounds."""
    units = jnp.concatenate(
        [jnp.asarray(size), jnp.ones(len(ravel(model)) - len(size))]
    )
    arrays = eqx.filter(model, eqx.is_inexact_array)
    _, back = jax.flatten_util.ravel_pytree(arrays)
    flat = lambda tree: jax.flatten_util.ravel_pytree(tree)[0]

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        here = flat(params)
        found, state = optim.update(flat(updates) * units, state, here / units)
        there = jnp.clip(here + jnp.asarray(found) * units, *bounds)
        return back(there - here), state

    def init(params: Any) -> Any:
        return optim.init(flat(params) / units)

    return optax.GradientTransformation(init, update)
