"""First guesses of the states at the nodes."""

from typing import Any

import diffrax
import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, PyTree

from effgen.collocation.modeling.doses import pieces, with_doses
from effgen.collocation.modeling.inputs import jumps, knots
from effgen.collocation.modeling.problem import Model, Problem, Trajectory, as_model

from .integration import Integration, Sampled, integrated, no_inputs
from .mesh import Mesh
from .simulation import traceable
from .smoothing import smoothed
from .stepping import stepped


def interpolated(problem: Problem, mesh: Mesh) -> Float[np.ndarray, "nodes state"]:
    """Return the data at the nodes, smoothed; what is not measured is constant.

    By splines whose smoothness is chosen by generalized cross-validation. States that
    are not measured begin at their initial values, or else at their nominal ones: at
    zero, products of states have no derivatives.
    """
    found = [
        _one(problem, i, trajectory, ts)
        for i, (trajectory, ts) in enumerate(zip(problem.data, mesh.times, strict=True))
    ]
    lower, upper = problem.state_bounds
    return np.clip(np.concatenate(found), lower, upper)


def _one(
    problem: Problem, i: int, trajectory: Trajectory, ts: np.ndarray
) -> Float[np.ndarray, "ts state"]:
    values = np.broadcast_to(problem.nominal, (len(ts), problem.num_states))
    if problem.initial is not None:
        shape = (len(problem.data), problem.num_states)
        start = np.broadcast_to(np.asarray(problem.initial.values, float), shape)[i]
        values = np.where(np.isnan(start), values, start)
    if problem.observe is None:
        amounts = np.array([amount for _, amount in trajectory.doses], float)
        amounts = amounts.reshape(-1, problem.num_states)
        columns = [
            between_doses(trajectory, y, ts, added)
            for y, added in zip(trajectory.ys.T, amounts.T, strict=True)
        ]
        values = np.stack(
            [v if c is None else c for v, c in zip(values.T, columns, strict=True)], 1
        )
    return values


def between_doses(
    trajectory: Trajectory,
    ys: np.ndarray,
    at: np.ndarray,
    added: np.ndarray | None = None,
) -> Float[np.ndarray, " at"] | None:
    """Return one column, smoothed between doses; of pieces without samples, of all.

    With what doses add to the column, `added`, a sample just before a dose tells what
    is there after it, and samples after the first dose what was there before.
    """
    ts = trajectory.ts
    if not trajectory.doses:
        return smoothed(ts, ys, at)
    here, there = (pieces(trajectory, x) for x in (ts, at))
    found = smoothed(ts, ys, at)
    for piece in np.unique(there):
        ours, own = there == piece, here == piece
        known = ts[own], ys[own]
        if added is not None and piece > 0:
            time = trajectory.doses[piece - 1][0]
            known = (
                np.r_[ts[ts == time], ts[own]],
                np.r_[ys[ts == time] + added[piece - 1], ys[own]],
            )
        mine = smoothed(*known, at[ours])
        if mine is None and added is not None and piece == 0:
            mine = smoothed(ts[here == 1], ys[here == 1], at[ours])
            mine = None if mine is None else mine - added[0]
        if mine is not None and found is not None:
            found[ours] = mine
    return found


def measured(problem: Problem, i: int) -> Any:
    """Return which states trajectory `i` has samples of."""
    if problem.observe is not None:
        return np.zeros(problem.num_states, bool)
    return np.any(~np.isnan(problem.data[i].ys), axis=0)


def at_start(problem: Problem, i: int) -> Float[np.ndarray, " state"]:
    """Return where trajectory `i` is thought to start."""
    trajectory = problem.data[i]
    assert trajectory.span is not None
    first = _one(problem, i, trajectory, np.array(trajectory.span[:1]))[0]
    if problem.initial is not None:
        shape = (len(problem.data), problem.num_states)
        known = np.broadcast_to(np.asarray(problem.initial.values, float), shape)[i]
        first = np.where(np.isnan(known), first, known)
    return first


def simulated(
    problem: Problem,
    mesh: Mesh,
    model: PyTree,
    solver: diffrax.AbstractSolver,
) -> Float[np.ndarray, "nodes state"]:
    """Return simulations of an untrained model at the nodes, from the data's start.

    States that are measured are the data, smoothed; so is what is not reached.
    """
    found = interpolated(problem, mesh)
    for i, (first, ts) in enumerate(zip(mesh.starts, mesh.times, strict=True)):
        start = at_start(problem, i)
        states = simulated_at(problem, as_model(model), i, start, ts, solver)
        here = slice(first, first + len(ts))
        ours = np.isfinite(states) & ~measured(problem, i)
        found[here] = np.where(ours, states, found[here])
    return np.clip(found, *problem.state_bounds)


_integrated = eqx.filter_jit(integrated)  # compiled once for trajectories alike


def simulated_at(
    problem: Problem,
    model: Model,
    i: int,
    start: np.ndarray,
    ts: np.ndarray,
    solver: diffrax.AbstractSolver,
) -> Float[np.ndarray, "ts state"]:
    """Simulate trajectory `i` with its inputs; NaN if the solver fails."""
    trajectory = problem.data[i]
    assert trajectory.span is not None
    inputs = trajectory.inputs
    if inputs is None:
        inputs = no_inputs
    elif not traceable(inputs):
        inputs = Sampled(*(jnp.asarray(part) for part in knots(trajectory)))
    how = Integration(solver)
    if problem.num_algebraic:

        def step(x: np.ndarray, first: float, times: np.ndarray) -> np.ndarray:
            every = np.unique([first, *times])
            found = stepped(problem, model, x, every, inputs, how)
            return found[np.searchsorted(every, times)]

        return with_doses(step, start, trajectory.span[0], ts, trajectory.doses)
    bare = problem.without_data()
    stops = None
    if trajectory.inputs is not None or trajectory.jumps:
        steps = jnp.asarray(np.unique(trajectory.ts))
        stops = (steps, jnp.asarray(jumps(trajectory)))

    def solve(x: np.ndarray, first: float, times: np.ndarray) -> np.ndarray:
        at = (jnp.asarray(x), jnp.asarray(first), jnp.asarray(times))
        return np.asarray(_integrated(bare, how, model, *at, inputs, stops))

    return with_doses(solve, start, trajectory.span[0], ts, trajectory.doses)
