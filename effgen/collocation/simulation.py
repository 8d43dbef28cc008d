"""A trained model simulated from any start, stiff or algebraic as well."""

from collections.abc import Sequence
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, PyTree

from .doses import check_amount, checked_doses, with_doses
from .integration import Integration, integrate, no_inputs
from .model import as_model
from .problem import Problem
from .stepping import stepped


_integrate = eqx.filter_jit(integrate)  # compiled once for all simulations


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
        problem: The problem whose law is simulated.
        model: The trained model.
        start: The state at the first time, `(state,)`, in its units.
        ts: Two or more times that rise, `(ts,)`.
        inputs: A function of the time to `(inputs,)` that JAX can trace. Steps end at
            `ts`, so a pulse that is longer than their gaps is not passed over.
        doses: Pairs of a time and an amount, `(state,)`, that is added at once.
        solver: Diffrax's solver; by default `Tsit5`, and where that does not reach the
            end `Kvaerno5`, for stiff models. Not used with algebraic states.
        rtol: The relative tolerance.
        atol: The absolute tolerance, in the states' units; with algebraic states in
            units of `nominal`.

    Returns:
        The states at `ts`, `(ts, state)`; at the time of a dose those of just before.

    Raises:
        RuntimeError: If the solver fails, with what to do.
        TypeError: For `inputs` that JAX cannot trace.
        ValueError: For a start, times or doses that cannot be.

    Source:
        Hairer, Lubich and Roche (1989), of Radau's scheme for algebraic states.
    """
    x, times = np.asarray(start, float), np.asarray(ts, float)
    if x.shape != (problem.num_states,):
        raise ValueError(
            f"`start` has shape {x.shape}: pass ({problem.num_states},), a number for "
            "each state."
        )
    if times.ndim != 1 or len(times) < 2 or np.any(np.diff(times) <= 0):
        raise ValueError(f"`ts` is {times}: pass two or more times that rise.")
    _check_clock(problem, times)
    if inputs is not None and not traceable(inputs):
        raise TypeError(
            "`inputs` is no function of the time that JAX can trace: write it in "
            "`jax.numpy`, such as `lambda t: jnp.interp(t, ts, u)[None]`."
        )
    bare, model = problem.without_data(), as_model(model)
    given = no_inputs if inputs is None else inputs
    how = Integration(rtol=rtol, atol=atol)
    solvers = (diffrax.Tsit5(), diffrax.Kvaerno5()) if solver is None else (solver,)

    def solve(x: np.ndarray, first: float, ts: np.ndarray) -> np.ndarray:
        every = np.unique(np.concatenate([[first], ts]))
        rows = np.searchsorted(every, ts)
        if problem.num_algebraic:
            return stepped(bare, model, x, every, given, how)[rows]
        states = np.full((len(every), len(x)), np.nan)
        for chosen in solvers:
            if not np.all(np.isfinite(states)):
                rest = (jnp.asarray(x), jnp.asarray(every), inputs)
                how_far = {"solver": chosen, "rtol": rtol, "atol": atol}
                states = np.asarray(_integrate(bare, model, *rest, **how_far))
        return states[rows]

    pulses = checked_doses(0, doses, (float(times[0]), float(times[-1])))
    check_amount(0, pulses, problem.num_states)
    states = with_doses(solve, x, float(times[0]), times, pulses)
    return _reached(jnp.asarray(states), times)


def _check_clock(problem: Problem, times: np.ndarray) -> None:
    for _, before, at, after in problem.brackets:
        if np.any((times > before) & (times < after) & (times != at)):
            raise ValueError(
                f"`ts` has times from {before:.6g} to {after:.6g}, where the problem's "
                "clock is that of a switch: pass times outside, or a problem without "
                "`switches`."
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
        "steps: the model is unstable there, or stiffer than the tolerances allow; "
        "shorten `ts`, loosen `rtol`, or pass another `solver`."
    )
