"""The solver in the loop: simulation by diffrax, and training through it."""

from typing import Any, ClassVar, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, ArrayLike, Bool, Float, Int, PRNGKeyArray, PyTree

from effgen.core.state import Metrics, TrainState
from effgen.core.trainer import AbstractTrainer
from effgen.core.update import apply_gradients, init_opt_state

from .inputs import knots
from .problem import Model, Problem, as_model, as_numbers
from .solution import Solution


NO_ALGEBRAIC = (
    "algebraic states are for collocation: there is no ODE solver for them. `simulate` "
    "takes them."
)


class Integration(NamedTuple):
    """How diffrax is to solve."""

    solver: diffrax.AbstractSolver = diffrax.Tsit5()
    adjoint: diffrax.AbstractAdjoint = diffrax.RecursiveCheckpointAdjoint()
    rtol: float = 1e-6
    atol: float = 1e-6
    max_steps: int = 4_096


class Sampled(eqx.Module):
    """Inputs as a function of the time, linear between samples."""

    grid: Float[Array, " grid"]
    values: Float[Array, "grid inputs"]

    def __call__(self, t: Array) -> Float[Array, " inputs"]:
        """Return the inputs at `t`."""
        return jax.vmap(lambda u: jnp.interp(t, self.grid, u))(self.values.T)


def no_inputs(t: Array) -> Float[Array, " 0"]:
    """Return what a problem without inputs has of them."""
    return jnp.zeros(0)


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
        trajectory: The trajectory of each, `(segments,)`.
        joined: Whether the next one goes on where it ends, `(segments,)`.
    """

    first: Float[Array, " segments"]
    last: Float[Array, " segments"]
    ts: Float[Array, "segments obs"]
    ys: Float[Array, "segments obs outputs"]
    mask: Bool[Array, "segments obs outputs"]
    grid: Float[Array, "segments grid"]
    inputs: Float[Array, "segments grid inputs"]
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
        ValueError: For fewer than one segment, algebraic states, or doses.
    """
    if per_trajectory < 1:
        raise ValueError(f"`per_trajectory` is {per_trajectory}: pass at least 1.")
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
        for k in range(per_trajectory):
            mine = owner == k
            samples = (trajectory.ts[mine], trajectory.ys[mine])
            where = (edges[k], edges[k + 1], i, k + 1 < per_trajectory)
            rows.append((*samples, grid, values, *where))
    ts, ys, grids, inputs, first, last, index, joined = zip(*rows, strict=True)
    ends = np.asarray(last)
    values = _padded(ys, np.full(len(rows), np.nan))
    found = (
        np.asarray(first),
        ends,
        _padded(ts, ends),
        np.nan_to_num(values),
        ~np.isnan(values),
        _padded(grids, ends),
        _padded(inputs, np.zeros(len(rows))),
        np.asarray(index),
        np.asarray(joined),
    )
    return Segments(*map(jnp.asarray, found))


def _padded(parts: Any, fill: np.ndarray) -> Any:
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

        loss = misfit of the problem + weight_decay |nets|^2 / 2
               + continuity * mean |(end of a segment - start of the next) / nominal|^2

    Batches are `[segments_of(problem, n)] * num_steps`; with `n = 1` it is single
    shooting. Starts are trained with the model, but for what `initial` fixes. Costs,
    constraints, bounds, `penalty` and the scale of `initial` are not used.

    Arguments:
        optim: The optax optimizer.
        problem: The problem, of which the batches replace the data.
        continuity: The weight of the jumps between segments.
        solver: Diffrax's solver; by default `Tsit5`.
        adjoint: Diffrax's adjoint; by default `RecursiveCheckpointAdjoint`.
        rtol: The relative tolerance of the solver.
        atol: The absolute tolerance, in the states' units.
        max_steps: The most steps of one solve; past them the loss is NaN.

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
        self.optim, self.continuity = optim, continuity
        self.problem = problem.without_data()
        default = Integration()
        self.solver = default.solver if solver is None else solver
        self.adjoint = default.adjoint if adjoint is None else adjoint
        self.rtol, self.atol, self.max_steps = rtol, atol, max_steps

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
        shot = Shot(as_numbers(model), jnp.asarray(np.stack(starts)))
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
        found, ends = jax.vmap(lambda x, row: self._solved(shot.model, x, row))(
            starts, batch
        )
        error = (found - batch.ys) / jnp.asarray(problem.scale)[None, None]
        error = jnp.where(batch.mask, error, 0)
        misfit = 0.5 * jnp.sum(error**2) / jnp.maximum(jnp.sum(batch.mask), 1)
        jumps = (ends - jnp.roll(starts, -1, axis=0)) / nominal[None]
        jumps = jnp.where(batch.joined[:, None], jumps, 0)
        gap = jnp.sum(jumps**2) / jnp.maximum(jnp.sum(batch.joined), 1)
        loss = misfit + self.continuity * gap + problem.decay(shot.model.networks)
        return loss, (misfit, jnp.sqrt(gap))

    def _starts(self, shot: Shot, batch: Segments) -> Float[Array, "segments state"]:
        initial = self.problem.initial
        if initial is None or initial.scale is not None:
            return shot.starts
        values = jnp.asarray(initial.values, shot.starts.dtype)
        rows = jnp.broadcast_to(
            values if values.ndim == 1 else values[batch.trajectory], shot.starts.shape
        )
        first = jnp.concatenate([jnp.ones(1, bool), ~batch.joined[:-1]])
        fixed = first[:, None] & ~jnp.isnan(rows)
        held = rows / jnp.asarray(self.problem.nominal)[None]
        return jnp.where(fixed, jnp.where(fixed, held, 0), shot.starts)

    def _solved(self, model: Model, x: Array, row: Segments) -> tuple[Array, Array]:
        inputs = Sampled(row.grid, row.inputs)
        ts = jnp.concatenate([row.ts, row.last[None]])
        states = integrated(
            self.problem, self.integration, model, x, row.first, ts, inputs
        )
        given = (model.parameters, model.networks)
        outputs = jax.vmap(lambda t, x: self.problem.outputs(t, x, inputs(t), *given))(
            row.ts, states[:-1]
        )
        return outputs, states[-1]


def integrated(
    problem: Problem,
    integration: Integration,
    model: Model,
    x: Array,
    first: Array,
    ts: Array,
    inputs: Any,
    stops: tuple[Array, Array] | None = None,
) -> Float[Array, "ts state"]:
    """Solve to the last of `ts`; NaN if that fails. Steps end at `stops` (pulses)."""
    controller = diffrax.PIDController(integration.rtol, integration.atol)
    if stops is not None:
        steps, jumps = (part if len(part) else None for part in stops)
        controller = diffrax.ClipStepSizeController(controller, steps, jumps)
    given = (model.parameters, model.networks)
    field = lambda t, x, args: problem.vector_field(t, x, inputs(t), *given)
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(field),
        integration.solver,
        t0=first,
        t1=ts[-1],
        dt0=None,
        y0=x,
        saveat=diffrax.SaveAt(ts=ts),
        stepsize_controller=controller,
        adjoint=integration.adjoint,
        max_steps=integration.max_steps + sum(map(len, stops or ())),
        throw=False,
    )
    ys = solution.ys
    assert ys is not None
    good = solution.result == diffrax.RESULTS.successful
    return jnp.where(good, ys, jnp.nan)


def integrate(
    problem: Problem,
    model: PyTree,
    start: ArrayLike,
    ts: ArrayLike,
    inputs: Any = None,
    *,
    solver: diffrax.AbstractSolver | None = None,
    adjoint: diffrax.AbstractAdjoint | None = None,
    rtol: float = 1e-8,
    atol: float = 1e-8,
) -> Float[Array, "ts state"]:
    """Return what `simulate` does, for JAX to transform; NaN where the solver fails.

    Arguments:
        problem: The problem whose law is integrated.
        model: The trained model.
        start: The state at the first time, `(state,)`, in its units.
        ts: Times that rise, `(ts,)`.
        inputs: A function of the time to `(inputs,)` that JAX can trace.
        solver: Diffrax's; `Tsit5` by default, `Kvaerno5()` for stiff models.
        adjoint: Diffrax's; by default reverse, `ForwardMode()` for forward derivatives.
        rtol: The relative tolerance.
        atol: The absolute tolerance, in the states' units.

    Returns:
        The states at `ts`, `(ts, state)`.

    Raises:
        ValueError: For a problem with algebraic states.
    """
    if problem.num_algebraic:
        raise ValueError(NO_ALGEBRAIC)
    known = no_inputs if inputs is None else inputs
    chosen = Integration().adjoint if adjoint is None else adjoint
    solver = Integration().solver if solver is None else solver
    integration = Integration(solver, adjoint=chosen, rtol=rtol, atol=atol)
    x, ts = jnp.asarray(start, float), jnp.asarray(ts, float)
    stops = None if inputs is None else (ts, ts[:0])
    return integrated(problem, integration, as_model(model), x, ts[0], ts, known, stops)
