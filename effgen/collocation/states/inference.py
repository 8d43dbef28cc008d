"""States that are not measured, inferred from outputs and slopes of those that are."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree

from effgen.collocation.modeling.doses import pieces
from effgen.collocation.modeling.model import Model, as_model
from effgen.collocation.modeling.problem import Problem, Trajectory

from .guesses import between_doses, interpolated, measured
from .mesh import Mesh
from .smoothing import smoothed
from .solution import solution_on


_STEPS = 30
_PRIOR = 1e-3  # of the distance to the nominal value, beside a slope's deviation
_TOLD = 1e-6


def inferred(
    problem: Problem, mesh: Mesh, model: PyTree
) -> tuple[Float[np.ndarray, "nodes state"], Bool[np.ndarray, "trajectories state"]]:
    """Return the data at the nodes, with other states from what the law says of them.

    Where `observe` or the derivative of a known state depends on a state that is not
    known, the latter is found by least squares at each node. This is repeated with what
    is found, until nothing more is determined. All other states are as in
    `interpolated`. The second array says which states are measured or determined.
    """
    x, model = interpolated(problem, mesh), as_model(model)
    lower, upper = (np.broadcast_to(b, x.shape[1:]) for b in problem.state_bounds)
    owner = np.repeat(np.arange(len(mesh.starts)), [len(t) for t in mesh.times])
    found_of = np.zeros((len(mesh.starts), problem.num_states), bool)
    for i in range(len(mesh.starts)):
        here, known = owner == i, measured(problem, i)
        first = mesh.shifts[mesh.first_intervals[i]]
        ts = _after(mesh.ts[here], first)
        if problem.observe is not None:
            x, told = _from_outputs(problem, mesh, model, x, i, here)
            known = known | told
        while not known.all():
            slopes = solution_on(mesh, x).derivative_on_mesh(mesh.ts[here], i)
            rows = known & (np.arange(len(known)) < _differential(problem))
            x[mesh.starts[i]] += first  # slopes there are of after a dose
            found, told = _solved(
                problem, problem.mesh_field, model, mesh, here, x, slopes, rows, known
            )
            for j in np.flatnonzero(told):
                column = _smoothed_pieces(problem.data[i], ts, found[:, j])
                x[here, j] = np.clip(column, lower[j], upper[j])
            x[mesh.starts[i]] -= first
            if not told.any():
                break
            known = known | told
        found_of[i] = known
    return x, found_of


def _differential(problem: Problem) -> int:
    return problem.num_states - problem.num_algebraic


def _from_outputs(
    problem: Problem, mesh: Mesh, model: Model, x: np.ndarray, i: int, here: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the states with those that outputs tell, and which these are."""
    trajectory = problem.data[i]
    first = mesh.shifts[mesh.first_intervals[i]]
    if np.any(pieces(trajectory, trajectory.ts) == 0):
        first = np.zeros_like(first)  # a sample is of before the dose
    ts = _after(mesh.ts[here], first)
    columns = [between_doses(trajectory, y, ts) for y in trajectory.ys.T]
    rows = np.array([c is not None for c in columns])
    ys = np.stack([np.zeros(len(ts)) if c is None else c for c in columns], axis=1)
    none = np.zeros(problem.num_states, bool)
    x[mesh.starts[i]] += first
    found, told = _solved(
        problem, problem.outputs, model, mesh, here, x, ys, rows, none
    )
    lower, upper = problem.state_bounds
    x[here] = np.clip(np.where(told, found, x[here]), lower, upper)
    x[mesh.starts[i]] -= first
    return x, told


def _after(ts: np.ndarray, first: np.ndarray) -> np.ndarray:
    """Return nodes' times, the start after a dose there, which adds `first`."""
    later = np.nextafter(ts[0], np.inf) if np.any(first) else ts[0]
    return np.concatenate([[later], ts[1:]])


def _smoothed_pieces(
    trajectory: Trajectory, ts: np.ndarray, values: np.ndarray
) -> np.ndarray:
    """Return values at nodes, smoothed from one dose to the next."""
    owner, found = pieces(trajectory, ts), values.copy()
    for piece in np.unique(owner):
        ours = owner == piece
        column = smoothed(ts[ours], values[ours], ts[ours])
        found[ours] = values[ours] if column is None else column
    return found


def _solved(
    problem: Problem,
    function: Any,
    model: Model,
    mesh: Mesh,
    here: np.ndarray,
    x: np.ndarray,
    wanted: np.ndarray,
    rows: np.ndarray,
    known: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Return states with which `function` is as wanted, and which of them it tells."""
    if not rows.any():
        return x[here], np.zeros(len(known), bool)
    spread = wanted.std(axis=0)
    given = (x[here], mesh.ts[here], mesh.inputs[here], wanted)
    scale = (np.where(spread > 0, spread, 1.0), problem.nominal)
    which = (np.flatnonzero(rows), np.flatnonzero(~known))
    arrays = jax.tree.map(jnp.asarray, (given, scale, which))
    found, size = map(np.asarray, _least_squares(function, model, *arrays))
    good = np.all(np.isfinite(found)) and np.all(np.isfinite(size))
    told = np.zeros(len(known), bool)
    told[~known] = (np.median(size, axis=0) > _TOLD) & good
    return found, told


@eqx.filter_jit
def _least_squares(
    function: Any, model: Model, given: Any, scale: Any, which: Any
) -> tuple[Array, Array]:
    """Minimize by steps of Levenberg and Marquardt at every node."""
    (spread, nominal), (rows, free) = scale, which

    def one(x: Array, t: Array, u: Array, wanted: Array) -> tuple[Array, Array]:
        def put(h: Array) -> Array:
            return x.at[free].add(h * nominal[free])

        def misfit(h: Array) -> Array:
            value = jnp.asarray(
                function(t, put(h), u, model.parameters, model.networks)
            )
            return ((value - wanted) / spread)[rows]

        def residual(h: Array) -> Array:
            return jnp.concatenate([misfit(h), _PRIOR * h])

        def step(_: Any, carry: tuple[Array, Array]) -> tuple[Array, Array]:
            h, damping = carry
            now, slope = residual(h), jax.jacfwd(residual)(h)
            curvature = slope.T @ slope
            curvature = curvature + damping * jnp.diag(jnp.diag(curvature))
            there = h - jnp.linalg.solve(curvature, slope.T @ now)
            better = jnp.sum(residual(there) ** 2) < jnp.sum(now**2)
            return jnp.where(better, there, h), jnp.where(
                better, damping / 10, damping * 10
            )

        h = jnp.zeros(free.shape)
        h, _ = jax.lax.fori_loop(0, _STEPS, step, (h, jnp.asarray(1e-3)))
        return put(h), jnp.linalg.norm(jax.jacfwd(misfit)(h), axis=0)

    return jax.vmap(one)(*given)
