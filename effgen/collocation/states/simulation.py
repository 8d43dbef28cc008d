"""A trained model simulated from any start, stiff or algebraic as well."""

from collections.abc import Sequence
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, PyTree

from effgen.collocation.modeling.doses import check_amount, checked_doses, with_doses
from effgen.collocation.modeling.inputs import jumps, knots, with_found_jumps
from effgen.collocation.modeling.model import Model, as_model
from effgen.collocation.modeling.phases import (
    followers,
    in_true_time,
    span_of,
    times_of,
)
from effgen.collocation.modeling.problem import Problem
from effgen.collocation.modeling.trajectories import Trajectory, as_trajectories

from .integration import (
    Integration,
    Sampled,
    check_num_inputs,
    check_times,
    check_tolerances,
    integrated,
    no_inputs,
)
from .stepping import stepped


_integrated = eqx.filter_jit(integrated)  # compiled once for all simulations


def simulate(
    problem: Problem,
    model: PyTree,
    start: ArrayLike,
    ts: ArrayLike,
    inputs: Any = None,
    *,
    doses: Sequence[tuple[float, ArrayLike]] = (),
    solver: diffrax.AbstractSolver | None = None,
    rtol: float = 1e-8,
    atol: float = 1e-8,
) -> Float[Array, "ts state"]:
    """Return the states at `ts` of a trained model, from `start` at the first of them.

    Algebraic states are simulated by steps of Radau's scheme, of index 1, 2 or 3, with
    the error of the differential states below the tolerances. The start's algebraic
    states are solved for. They stay as given where the start's equations do not
    determine them, as of index 2 and 3. The differential states must then fulfill the
    constraint and its derivatives.

    Arguments:
        problem: The problem whose law is simulated. Of phases one at a time: a
            `LinkConstraint` does not tell where the next begins.
        model: The trained model.
        start: The state at the first time, `(state,)`, in its units.
        ts: Two or more times that rise, `(ts,)`.
        inputs: A function of the time to `(inputs,)` that JAX can trace, or a
            `Trajectory`, whose samples are linear in time or held, as its `hold` says,
            by default as the data's. Its `ys` are not used. Steps end at `ts` and where
            samples jump, so a pulse that is longer than the gaps of `ts` is not passed
            over.
        doses: Pairs of a time and an amount, `(state,)`, that is added at once.
        solver: Diffrax's solver; by default `Tsit5`, and where that does not reach the
            end `Kvaerno5`, for stiff models. Not used with algebraic states.
        rtol: The relative tolerance.
        atol: The absolute tolerance, in units of the problem's `nominal`; without one,
            of a smaller start.

    Returns:
        The states at `ts`, `(ts, state)`; at the time of a dose those of just before.

    Raises:
        RuntimeError: If the solver fails, with what to do.
        TypeError: For `inputs` that JAX cannot trace.
        ValueError: For a start, times, doses or tolerances that cannot be, inputs that
            are missing, of another number than the data's, or not known at all of
            `ts`, or times on both sides of where one phase follows another.

    Source:
        Hairer, Lubich and Roche (1989), of Radau's scheme for algebraic states.
    """
    x, times = np.asarray(start, float), np.asarray(ts, float)
    if x.shape != (problem.num_states,) or not np.all(np.isfinite(x)):
        raise ValueError(
            f"`start` has shape {x.shape} and is {start}: pass "
            f"({problem.num_states},), a finite number for each state."
        )
    check_times(times)
    check_tolerances(rtol=rtol, atol=atol)
    inputs, held = _function_of(problem, inputs, times)
    check_num_inputs(problem, inputs)
    model = as_model(model)
    _check_phases(problem, model, times)
    at = np.concatenate([times_of(problem.brackets, model.parameters), held])
    at = np.unique(at)
    bare = _in_true_time(problem)
    given = no_inputs if inputs is None else inputs
    solvers = (diffrax.Tsit5(), diffrax.Kvaerno5()) if solver is None else (solver,)

    def solve(x: np.ndarray, first: float, ts: np.ndarray) -> np.ndarray:
        inside = at[(at > first) & (at < ts[-1])]
        every = np.unique(np.concatenate([[first], ts, inside]))
        rows = np.searchsorted(every, ts)
        if problem.num_algebraic:
            how = Integration(rtol=rtol, atol=atol)
            return stepped(bare, model, x, every, given, how)[rows]
        stops = None
        if inputs is not None or len(inside):
            stops = (jnp.asarray(every), jnp.asarray(inside))
        states = np.full((len(every), len(x)), np.nan)
        for chosen in solvers:
            if not np.all(np.isfinite(states)):
                how = Integration(chosen, rtol=rtol, atol=atol)
                at_first, all_ts = jnp.asarray(first), jnp.asarray(every)
                rest = (jnp.asarray(x), at_first, all_ts, given, stops)
                states = np.asarray(_integrated(bare, how, model, *rest))
        return states[rows]

    pulses = checked_doses(0, doses, (float(times[0]), float(times[-1])))
    check_amount(0, pulses, problem.num_states, problem.num_algebraic)
    states = with_doses(solve, x, float(times[0]), times, pulses)
    return _reached(jnp.asarray(states), times)


def _function_of(
    problem: Problem, inputs: Any, ts: np.ndarray
) -> tuple[Any, Float[np.ndarray, " jumps"]]:
    """Return inputs as a function that JAX can trace, and where they jump."""
    if not isinstance(inputs, Trajectory):
        if inputs is None or traceable(inputs):
            return inputs, np.zeros(0)
        raise TypeError(
            "`inputs` is no function of the time that JAX can trace: write it in "
            "`jax.numpy`, such as `lambda t: jnp.interp(t, ts, u)[None]`, or pass a "
            "`Trajectory` with samples of them."
        )
    hold = None if callable(inputs.inputs) else _hold(problem)
    (given,) = as_trajectories([inputs], hold if inputs.hold is None else None)
    given = with_found_jumps(given)
    assert given.span is not None
    if given.doses:
        raise ValueError(
            "`inputs` is a `Trajectory` with doses, which are no inputs: pass them as "
            "`doses`, and `inputs._replace(doses=())`."
        )
    if given.inputs is None:
        return None, jumps(given)
    if ts[0] < given.span[0] or ts[-1] > given.span[1]:
        raise ValueError(
            f"`inputs` is known from t = {given.span[0]:.6g} to {given.span[1]:.6g}, "
            f"and `ts` goes from {ts[0]:.6g} to {ts[-1]:.6g}: pass inputs for all of "
            "it, or fewer times."
        )
    if traceable(given.inputs):
        return given.inputs, jumps(given)
    return Sampled(*map(jnp.asarray, knots(given))), jumps(given)


def _hold(problem: Problem) -> str | None:
    """Return how all sampled inputs of the data continue, if they do so alike."""
    holds = {t.hold for t in problem.data if isinstance(t.inputs, np.ndarray)}
    return holds.pop() if len(holds) == 1 else None


def _in_true_time(problem: Problem) -> Problem:
    """Return the problem without data, its law in time and not on the mesh's clock."""
    law, rest = in_true_time(problem.mesh_field), problem.without_data()
    return eqx.tree_at(lambda p: (p.mesh_field, p.brackets), rest, (law, ()))


def _check_phases(problem: Problem, model: Model, times: np.ndarray) -> None:
    """Raise `ValueError` for times on both sides of a link.

    The law does not say how a phase starts there. The times are allowed if another
    trajectory covers that time without a link.
    """
    found = {
        b.at: float(np.asarray(b.time(model.parameters))) for b in problem.brackets
    }
    spans = [span_of(trajectory) for trajectory in problem.data]
    for i in followers(problem.data):
        at = spans[i][0]
        on = any(first < at < last for first, last in spans)
        there = found.get(at, at)
        if not on and times[0] < there < times[-1]:
            raise ValueError(
                f"`ts` has times on both sides of t = {there:.6g}, where trajectory "
                f"{i} follows another as a `LinkConstraint` says: simulate each phase "
                "alone, the next one from the state where it begins."
            )


def traceable(inputs: Any) -> bool:
    """Return whether JAX can trace a function of the time; numpy's it cannot."""
    if not callable(inputs):
        return False
    try:
        jax.eval_shape(lambda t: jnp.asarray(inputs(t)), jnp.zeros(()))
    except (jax.errors.JAXTypeError, TypeError):
        return False
    return True


def _reached(states: Array, ts: np.ndarray) -> Array:
    if bool(jnp.all(jnp.isfinite(states))):
        return states
    raise RuntimeError(
        f"the solver could not reach t = {float(ts[-1])} in {Integration().max_steps} "
        "steps and more: the model is unstable there, or stiffer than the tolerances "
        "allow; shorten `ts`, loosen `rtol`, or pass another `solver`."
    )
