"""The solver in the loop: trajectories cut into segments, and training through them."""

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from effgen.collocation.modeling.inputs import jumps, knots, sampled_inputs
from effgen.collocation.modeling.priors import prior_loss
from effgen.collocation.modeling.problem import Model, Problem, as_numbers
from effgen.collocation.states.integration import (
    NO_ALGEBRAIC,
    Integration,
    Sampled,
    integrated,
)
from effgen.collocation.states.solution import Solution
from effgen.core.contract.counts import check_count
from effgen.core.contract.state import Metrics, TrainState
from effgen.core.contract.trainer import AbstractTrainer
from effgen.core.contract.update import apply_gradients, init_opt_state

from .bounded import check_kept, in_bounds, started


class Segments(NamedTuple):
    """Pieces of trajectories, each integrated from a start of its own.

    Attributes:
        first: The time at which each begins, `(segments,)`.
        last: The time at which each ends, `(segments,)`.
        ts: The times of its samples, `(segments, obs)`, padded by `last`.
        ys: The samples, `(segments, obs, outputs)`; zero where there is none.
        mask: Whether a value is measured, `(segments, obs, outputs)`.
        grid: Times between which inputs are linear, `(segments, grid)`.
        inputs: The inputs at these, `(segments, grid, inputs)`.
        observed: The inputs of its samples, `(segments, obs, inputs)`.
        stops: Times at which steps end, for inputs that are short: those of samples.
        jumps: Times at which inputs jump.
        trajectory: The trajectory of each, `(segments,)`.
        joined: Whether the next one continues where it ends, `(segments,)`.
    """

    first: Float[Array, " segments"]
    last: Float[Array, " segments"]
    ts: Float[Array, "segments obs"]
    ys: Float[Array, "segments obs outputs"]
    mask: Bool[Array, "segments obs outputs"]
    grid: Float[Array, "segments grid"]
    inputs: Float[Array, "segments grid inputs"]
    observed: Float[Array, "segments obs inputs"]
    stops: Float[Array, "segments stops"]
    jumps: Float[Array, "segments jumps"]
    trajectory: Int[Array, " segments"]
    joined: Bool[Array, " segments"]


def segments_of(problem: Problem, per_trajectory: int = 1) -> Segments:
    """Cut every trajectory into as many segments of equal length.

    Arguments:
        problem: The problem with its data.
        per_trajectory: How many segments a trajectory has.

    Returns:
        The segments of all trajectories in turn.

    Raises:
        ValueError: For no number of segments, algebraic states, or doses.
    """
    check_count("per_trajectory", per_trajectory)
    if problem.num_algebraic:
        raise ValueError(NO_ALGEBRAIC)
    if any(trajectory.doses for trajectory in problem.data):
        raise ValueError("`doses` are for collocation: shooting knows no impulses.")
    rows: list[tuple[Any, ...]] = []
    for i, trajectory in enumerate(problem.data):
        assert trajectory.span is not None
        edges = np.linspace(*trajectory.span, per_trajectory + 1)
        owner = np.searchsorted(edges[1:-1], trajectory.ts, side="left")
        grid, values = knots(trajectory)
        at_samples = sampled_inputs(trajectory)
        stops = (np.unique(trajectory.ts), jumps(trajectory))
        for k in range(per_trajectory):
            mine = owner == k
            samples = (trajectory.ts[mine], trajectory.ys[mine])
            where = (edges[k], edges[k + 1], i, k + 1 < per_trajectory)
            rows.append((*samples, grid, values, at_samples[mine], *stops, *where))
    ts, ys, grids, inputs, at, stops, jumped, *where = zip(*rows, strict=True)
    first, last, index, joined = where
    ends = np.asarray(last)
    values = _padded(ys, np.full(len(rows), np.nan))
    found = (
        np.asarray(first),
        ends,
        _padded(ts, ends),
        np.nan_to_num(values),
        ~np.isnan(values),
        # Inputs stay at their last value, past the times that they are given for.
        _padded(grids, [grid[-1] for grid in grids]),
        _padded(inputs, [values[-1] for values in inputs]),
        _padded(at, [values[-1] for values in inputs]),
        _padded(stops, ends),
        _padded(jumped, ends),
        np.asarray(index),
        np.asarray(joined),
    )
    return Segments(*map(jnp.asarray, found))


def _padded(parts: Any, fill: Any) -> Any:
    most = max(len(part) for part in parts)
    rows = []
    for part, value in zip(parts, fill, strict=True):
        shape = (most - len(part), *part.shape[1:])
        rows.append(np.concatenate([part, np.full(shape, value)]))
    return np.stack(rows)


class Shot(eqx.Module):
    """What `ShootingTrainer` trains: the model, and where the segments start.

    Attributes:
        model: The model.
        starts: Each segment's start divided by `nominal`, `(segments, state)`.
    """

    model: Model
    starts: Float[Array, "segments state"]


class ShootingTrainer(AbstractTrainer):
    """The baseline with an ODE solver in the loop, single or multiple shooting.

        loss = objective of the problem
               + continuity * mean |(end of a segment - start of the next) / nominal|^2

    Batches are `[segments_of(problem, n)] * num_steps`; with `n = 1` it is single
    shooting. Starts are trained with the model, but for what `initial` fixes. After
    each step parameters are moved into their bounds. The integral of `lagrange` is one
    more state of the solver.

    Arguments:
        optim: The optax optimizer.
        problem: The problem, of which the batches replace the data.
        continuity: The weight of the jumps between segments.
        solver: Diffrax's solver; by default `Tsit5`.
        adjoint: Diffrax's adjoint; by default `RecursiveCheckpointAdjoint`.
        rtol: The relative tolerance of the solver.
        atol: The absolute tolerance, in units of the problem's `nominal`; without one,
            of a smaller start.
        max_steps: The most steps of one solve; past them the loss is NaN.

    Raises:
        ValueError: For a problem with constraints, switches or bounds of states, and
            for settings out of range.

    Source:
        Chen, Rubanova, Bettencourt and Duvenaud (2018); Bock and Plitt (1984).
    """

    watched: ClassVar[tuple[str, ...]] = ("loss", "gap")

    optim: optax.GradientTransformation
    problem: Problem
    continuity: float
    solver: diffrax.AbstractSolver
    adjoint: diffrax.AbstractAdjoint
    rtol: float
    atol: float
    max_steps: int

    def __init__(
        self,
        optim: optax.GradientTransformation,
        problem: Problem,
        *,
        continuity: float = 1.0,
        solver: diffrax.AbstractSolver | None = None,
        adjoint: diffrax.AbstractAdjoint | None = None,
        rtol: float = 1e-6,
        atol: float = 1e-6,
        max_steps: int = 4_096,
    ) -> None:
        """Keep the problem without its data, which the batches have."""
        left_out = ("constraints", "switches", "state_bounds")
        check_kept(problem, "ShootingTrainer", left_out)
        self.optim, self.continuity = optim, continuity
        self.problem = problem.without_data()
        default = Integration()
        self.solver = default.solver if solver is None else solver
        self.adjoint = default.adjoint if adjoint is None else adjoint
        for name, value in (("rtol", rtol), ("atol", atol)):
            if not 0 < value < np.inf:
                raise ValueError(f"`{name}` is {value}: pass a positive number.")
        if not 0 <= continuity < np.inf:
            raise ValueError(f"`continuity` is {continuity}: pass a number from 0 on.")
        self.rtol, self.atol = rtol, atol
        check_count("max_steps", max_steps)
        self.max_steps = int(max_steps)

    @property
    def integration(self) -> Integration:
        """How segments are solved."""
        rest = (self.rtol, self.atol, self.max_steps)
        return Integration(self.solver, self.adjoint, *rest)

    def init(
        self, model: PyTree, memory: tuple[Segments, Solution] | None = None
    ) -> TrainState:
        """Return the first state, with the segments' starts from a guess.

        Arguments:
            model: A `Model`, a pair `(parameters, networks)`, or networks alone.
            memory: `(segments, guess)`, the guess a `Solution`.

        Returns:
            The state at step 0, whose model is a `Shot`.

        Raises:
            TypeError: Without `memory`.
            ValueError: For `parameter_bounds` that cross or are not like parameters.
        """
        if memory is None:
            raise TypeError(
                "pass `(segments, guess)` as `memory`: where segments start, such as "
                "`(segments_of(problem), transcribe(problem).guess())`."
            )
        segments, guess = memory
        starts = [
            guess(float(t), int(i))[0] / self.problem.nominal
            for t, i in zip(segments.first, segments.trajectory, strict=True)
        ]
        first = started(self.problem, as_numbers(model))
        shot = Shot(first, jnp.asarray(np.stack(starts)))
        return TrainState.start(shot, init_opt_state(self.optim, shot), None)

    def step(
        self, state: TrainState, batch: Segments, *, key: PRNGKeyArray
    ) -> tuple[TrainState, Metrics]:
        """Take one gradient step through the solver.

        Arguments:
            state: The state before.
            batch: All segments.
            key: Not used.

        Returns:
            The next state, and the metrics `loss`, `misfit`, `gap` (the root mean
                square of the jumps) and `grad_norm`.
        """
        (loss, parts), gradients = eqx.filter_value_and_grad(self._loss, has_aux=True)(
            state.model, batch
        )
        shot, opt_state = apply_gradients(
            self.optim,
            gradients,
            state.opt_state,
            state.model,
            value=loss,
            value_fn=lambda shot: self._loss(shot, batch)[0],
        )
        shot = Shot(in_bounds(self.problem, shot.model), shot.starts)
        norm = optax.tree.norm(gradients)
        metrics = {"loss": loss, "misfit": parts[0], "gap": parts[1], "grad_norm": norm}
        return state.advance(shot, opt_state, None), metrics

    def check(self, state: TrainState, batch: Segments, source: Any) -> None:
        """Raise unless a batch is all segments, as the starts are.

        Arguments:
            state: The state of the run.
            batch: A batch, or its shapes.
            source: Not used.

        Raises:
            ValueError: For another number of segments.
        """
        if len(batch.first) != len(state.model.starts):
            raise ValueError(
                f"a batch has {len(batch.first)} segments and the state "
                f"{len(state.model.starts)} starts: pass all segments in one batch."
            )

    def _loss(self, shot: Shot, batch: Segments) -> tuple[Array, tuple[Array, Array]]:
        problem = self.problem
        nominal = jnp.asarray(problem.nominal)
        starts = self._starts(shot, batch) * nominal[None]
        found, ends, spent = jax.vmap(lambda x, row: self._solved(shot.model, x, row))(
            starts, batch
        )
        error = (found - batch.ys) / jnp.asarray(problem.scale)[None, None]
        error = jnp.where(batch.mask, error, 0)
        counted = jnp.maximum(jnp.sum(batch.mask), 1)
        misfit = jnp.sum(problem.misfit(error)) / counted
        jumps = (ends - jnp.roll(starts, -1, axis=0)) / nominal[None]
        jumps = jnp.where(batch.joined[:, None], jumps, 0)
        gap = jnp.sum(jumps**2) / jnp.maximum(jnp.sum(batch.joined), 1)
        loss = misfit + self._prior(starts, batch) / counted + self.continuity * gap
        given = (shot.model.parameters, shot.model.networks)
        loss += prior_loss(problem.priors, *given) / counted
        loss += jnp.sum(spent) + self._costs(shot.model, starts, ends, batch)
        return loss, (misfit, jnp.sqrt(gap))

    def _prior(self, starts: Array, batch: Segments) -> Float[Array, ""]:
        """Return what `initial` with a scale says of where trajectories start."""
        initial = self.problem.initial
        if initial is None or initial.scale is None:
            return jnp.zeros(())
        values, scale = (
            _by_segment(value, starts, batch)
            for value in (initial.values, initial.scale)
        )
        known = _begins(batch)[:, None] & ~jnp.isnan(values)
        error = jnp.where(known, (starts - jnp.where(known, values, 0)) / scale, 0)
        return 0.5 * jnp.sum(error**2)

    def _costs(
        self, model: Model, starts: Array, ends: Array, batch: Segments
    ) -> Float[Array, ""]:
        """Return the costs but for the integral: of the model, and of the ends."""
        problem = self.problem
        given = (model.parameters, model.networks)
        cost = problem.decay(model.networks)
        if problem.penalty is not None:
            cost += jnp.reshape(problem.penalty(*given), ())
        if problem.mayer is None:
            return cost
        mayer = problem.mayer
        same = batch.trajectory[:, None] == batch.trajectory[None]
        first = jnp.argmax(same, axis=1)
        last = len(same) - 1 - jnp.argmax(same[:, ::-1], axis=1)
        each = jax.vmap(lambda x, y: jnp.reshape(mayer(x, y, *given), ()))
        return cost + jnp.sum(each(starts[first], ends[last]) * ~batch.joined)

    def _starts(self, shot: Shot, batch: Segments) -> Float[Array, "segments state"]:
        initial = self.problem.initial
        if initial is None or initial.scale is not None:
            return shot.starts
        rows = _by_segment(initial.values, shot.starts, batch)
        fixed = _begins(batch)[:, None] & ~jnp.isnan(rows)
        held = rows / jnp.asarray(self.problem.nominal)[None]
        return jnp.where(fixed, jnp.where(fixed, held, 0), shot.starts)

    def _solved(
        self, model: Model, x: Array, row: Segments
    ) -> tuple[Array, Array, Array]:
        """Return a segment's outputs, its last state, and its integral of costs."""
        inputs = Sampled(row.grid, row.inputs)
        ts = jnp.concatenate([row.ts, row.last[None]])
        problem, size = self.problem, len(x)
        if problem.lagrange is not None:
            law = _WithCost(problem.mesh_field, problem.lagrange)
            problem = eqx.tree_at(lambda p: p.mesh_field, problem, law)
            x = jnp.concatenate([x, jnp.zeros(1, x.dtype)])
        stops = (row.stops, row.jumps) if row.inputs.shape[1] else None
        found = integrated(
            problem, self.integration, model, x, row.first, ts, inputs, stops
        )
        states, spent = found[:, :size], jnp.sum(found[-1, size:])
        given = (model.parameters, model.networks)
        outputs = jax.vmap(lambda t, x, u: self.problem.outputs(t, x, u, *given))(
            row.ts, states[:-1], row.observed
        )
        return outputs, states[-1], spent


class _WithCost(eqx.Module):
    """A law with one more state, the integral of a cost by time."""

    vector_field: Callable[..., Array]
    lagrange: Callable[..., Array]

    def __call__(self, t: Any, x: Array, *rest: Any) -> Array:
        """Return the states' derivatives, and the cost by time."""
        slopes = jnp.asarray(self.vector_field(t, x[:-1], *rest))
        cost = jnp.reshape(self.lagrange(t, x[:-1], *rest), 1)
        return jnp.concatenate([slopes, cost.astype(slopes.dtype)])


def _begins(batch: Segments) -> Bool[Array, " segments"]:
    """Return which segments begin a trajectory."""
    return jnp.concatenate([jnp.ones(1, bool), ~batch.joined[:-1]])


def _by_segment(
    value: Any, starts: Array, batch: Segments
) -> Float[Array, "segments state"]:
    """Return a number, `(state,)` or `(trajectories, state)`, of each segment."""
    array = jnp.asarray(value, starts.dtype)
    rows = array[batch.trajectory] if array.ndim == 2 and len(array) > 1 else array
    return jnp.broadcast_to(rows, starts.shape)
