"""First guesses of the states at the nodes."""

import warnings

import numpy as np
import scipy.interpolate
from jaxtyping import Float

from .mesh import Mesh
from .problem import Problem, Trajectory


_FEWEST = 5  # what a smoothing spline needs


def interpolated(problem: Problem, mesh: Mesh) -> Float[np.ndarray, "nodes state"]:
    """Return the data at the nodes, smoothed; what is not measured is constant.

    By splines whose smoothness is chosen by generalized cross-validation. States that
    are not measured begin at their initial values, or else at zero.
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
    values = np.zeros((len(ts), problem.num_states))
    if problem.initial is not None:
        shape = (len(problem.data), problem.num_states)
        start = np.broadcast_to(np.asarray(problem.initial.values, float), shape)[i]
        values += np.where(np.isnan(start), 0.0, start)
    if problem.observe is None:
        columns = [smoothed(trajectory.ts, y, ts) for y in trajectory.ys.T]
        values = np.stack(
            [v if c is None else c for v, c in zip(values.T, columns, strict=True)], 1
        )
    return values


def smoothed(
    ts: np.ndarray, ys: np.ndarray, at: np.ndarray
) -> Float[np.ndarray, " at"] | None:
    """Return one column at other times, smoothed if it is long; `None` of nothing."""
    seen = ~np.isnan(ys)
    ts, index = np.unique(ts[seen], return_index=True)
    ys = ys[seen][index]
    if len(ts) == 0:
        return None
    inside = np.clip(at, ts[0], ts[-1])
    if len(ts) < _FEWEST:
        return np.interp(inside, ts, ys)
    with warnings.catch_warnings():  # noise-free data: the smoothness goes to zero
        warnings.simplefilter("ignore")
        return scipy.interpolate.make_smoothing_spline(ts, ys)(inside)
