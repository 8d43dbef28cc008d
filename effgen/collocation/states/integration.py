"""Initial value problems of a law, solved by diffrax inside of JAX's programs."""

from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float, PyTree

from effgen.collocation.modeling.phases import TrueTimed, on_mesh_clock
from effgen.collocation.modeling.problem import Model, Problem, as_model
from effgen.collocation.modeling.trajectories import Trajectory, num_inputs


NO_ALGEBRAIC = (
    "algebraic states are for collocation: there is no ODE solver for them. `simulate` "
    "takes them."
)
_STEPS_BETWEEN_STOPS = 32  # at most on average, beside `max_steps`


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
    controller = diffrax.PIDController(integration.rtol, _atol(problem, integration, x))
    if stops is not None:
        steps, jumps = (part if len(part) else None for part in stops)
        controller = diffrax.ClipStepSizeController(controller, steps, jumps)
    pieces = sum(map(len, stops or ()))
    given = (model.parameters, model.networks)
    field = lambda t, x, args: problem.mesh_field(t, x, inputs(t), *given)
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
        max_steps=integration.max_steps + pieces * _STEPS_BETWEEN_STOPS,
        throw=False,
    )
    ys = solution.ys
    assert ys is not None
    good = solution.result == diffrax.RESULTS.successful
    return jnp.where(good, ys, jnp.nan)


def sizes(problem: Problem, x: Array) -> Float[Array, " state"]:
    """Return what the absolute tolerance is in units of: `nominal`, where it is said.

    Its default beside `observe` is one, which says nothing of states: of a smaller
    start, its largest state.
    """
    nominal = jnp.asarray(problem.nominal)
    if problem.is_sized:
        return nominal
    most = jnp.max(jnp.abs(jax.lax.stop_gradient(x)), initial=0.0)
    return jnp.where(most > 0, jnp.minimum(most, nominal), nominal)


def _atol(problem: Problem, integration: Integration, x: Array) -> Array:
    """Return the absolute tolerance of each state; one beside them is an integral."""
    num = problem.num_states
    whole = jnp.ones_like(x).at[:num].set(sizes(problem, x[:num]))
    return integration.atol * whole


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

    Of a problem with switches it is differentiable by their times as well, and NaN
    where one is not between the samples around its `near`.

    Arguments:
        problem: The problem whose law is integrated.
        model: The trained model.
        start: The state at the first time, `(state,)`, in its units.
        ts: Times that rise, `(ts,)`, of one phase where the problem has phases.
        inputs: A function of the time to `(inputs,)` that JAX can trace.
        solver: Diffrax's; `Tsit5` by default, `Kvaerno5()` for stiff models.
        adjoint: Diffrax's; by default reverse, `ForwardMode()` for forward derivatives.
        rtol: The relative tolerance.
        atol: The absolute tolerance, in units of the problem's `nominal`; without one,
            of a smaller start.

    Returns:
        The states at `ts`, `(ts, state)`.

    Raises:
        TypeError: For `inputs` that are a `Trajectory`.
        ValueError: For a problem with algebraic states, a start of another shape, times
            that do not rise, tolerances that are not positive, or another number of
            inputs than the data have.
    """
    if problem.num_algebraic:
        raise ValueError(NO_ALGEBRAIC)
    check_num_inputs(problem, inputs)
    if np.shape(start) != (problem.num_states,):
        raise ValueError(
            f"`start` has shape {np.shape(start)}: pass ({problem.num_states},), a "
            "number for each state."
        )
    check_tolerances(rtol=rtol, atol=atol)
    if not any(isinstance(t, Tracer) for t in jax.tree.leaves(ts)):
        check_times(np.asarray(ts, float))
    chosen = Integration().adjoint if adjoint is None else adjoint
    solver = Integration().solver if solver is None else solver
    integration = Integration(solver, adjoint=chosen, rtol=rtol, atol=atol)
    model, known = as_model(model), no_inputs if inputs is None else inputs
    x, ts, stops = jnp.asarray(start, float), jnp.asarray(ts, float), None
    good = jnp.ones((), bool)
    if problem.brackets:
        known = TrueTimed(known, problem.brackets, model.parameters)
        there = on_mesh_clock(problem.brackets, ts, model.parameters)
        good = jnp.all(jnp.isfinite(there))
        ts = jnp.where(good, there, ts)
        edges = jnp.asarray([t for b in problem.brackets for t in b[1:]])
        steps = jax.lax.stop_gradient(ts if inputs is not None else ts[:0])
        stops = (steps, edges)
    elif inputs is not None:
        stops = (ts, ts[:0])
    states = integrated(problem, integration, model, x, ts[0], ts, known, stops)
    return jnp.where(good, states, jnp.nan)


def check_num_inputs(problem: Problem, inputs: Any) -> None:
    """Raise for a `Trajectory`, or another number of inputs than the data have."""
    if isinstance(inputs, Trajectory):
        raise TypeError(
            "`inputs` is a `Trajectory`: `simulate` takes it; here pass a function of "
            "the time that JAX can trace."
        )
    if not problem.data:
        return
    wanted = num_inputs(problem.data[0])
    found = 0
    if inputs is not None:
        at = jnp.zeros(())
        found = jax.eval_shape(lambda t: jnp.ravel(jnp.asarray(inputs(t))), at).size
    if found == wanted:
        return
    if inputs is None:
        raise ValueError(
            f"`inputs` is missing, and the data have {wanted} for each time: pass a "
            "function of the time to them, or a `Trajectory` that has them."
        )
    raise ValueError(
        f"`inputs` has {found} values for each time, and the data have {wanted}: the "
        "law would read others than it was trained with."
    )


def check_times(ts: np.ndarray) -> None:
    """Raise `ValueError` unless these are two or more times that rise."""
    rise = ts.ndim == 1 and len(ts) > 1 and np.all(np.diff(ts) > 0)
    if not (rise and np.all(np.isfinite(ts))):
        raise ValueError(f"`ts` is {ts}: pass two or more times that rise.")


def check_tolerances(**tolerances: Any) -> None:
    """Raise `ValueError` for tolerances that are not positive."""
    for name, value in tolerances.items():
        if not 0 < value < np.inf:
            raise ValueError(f"`{name}` is {value}: pass a positive number.")
