"""Where a law switches inside of intervals: found along a solution, by bisection."""

from typing import NamedTuple

import numpy as np
from jaxtyping import PyTree

from effgen.collocation.modeling.inputs import inputs_at
from effgen.collocation.modeling.model import as_model
from effgen.collocation.modeling.problem import Problem
from effgen.collocation.states.solution import Solution

from .mesh_errors import field_at


_PARTS = 16  # of an interval, between which the law's values are compared
_HALVINGS = 50
_EDGE = 1e-9  # a switch at an edge is in its place
_STAYS, _LEAST, _SMALL = 0.5, 1e-3, 1e-6


class Switches(NamedTuple):
    """Times at which a law jumps along a trajectory's states.

    Attributes:
        ts: The first time after each jump.
        timed: Whether the time alone makes it, or the state's way across a surface,
            which moves with the model.
    """

    ts: np.ndarray
    timed: np.ndarray


def switches(
    problem: Problem,
    model: PyTree,
    solution: Solution,
    trajectory: int,
    intervals: np.ndarray,
) -> Switches:
    """Return where `vector_field` jumps inside of some intervals of a trajectory."""
    model = as_model(model)
    nothing = Switches(np.zeros(0), np.zeros(0, bool))
    if not len(intervals):
        return nothing

    def law(ts: np.ndarray, at: np.ndarray | None = None) -> np.ndarray:
        states = solution.on_mesh(ts if at is None else at, trajectory)
        inputs = inputs_at(problem.data[trajectory], ts if at is None else at)
        found = field_at(problem.mesh_field, model, ts, states, inputs)
        return found / problem.nominal

    edges = np.asarray(solution.edges[trajectory])
    lower, upper = edges[intervals, None], edges[intervals + 1, None]
    grid = lower + (upper - lower) * np.linspace(_EDGE, 1 - _EDGE, _PARTS + 1)
    values = law(grid.ravel()).reshape(*grid.shape, -1)
    changes = np.abs(np.diff(values, axis=1)).max(axis=2)
    row, part = np.nonzero(changes > _SMALL * np.abs(values).max())
    if not len(row):
        return nothing
    change = changes[row, part]
    first, last = grid[row, part], grid[row, part + 1]
    low, high = values[row, part], values[row, part + 1]
    for _ in range(_HALVINGS):
        middle = (first + last) / 2
        value = law(middle)
        before = np.abs(value - low).max(axis=1) > np.abs(high - value).max(axis=1)
        open_ = (first < middle) & (middle < last)
        first = np.where(open_ & ~before, middle, first)
        last = np.where(open_ & before, middle, last)
        low = np.where((open_ & ~before)[:, None], value, low)
        high = np.where((open_ & before)[:, None], value, high)
    left = np.abs(high - low).max(axis=1)
    jumps = left > _LEAST * change
    if not jumps.any():
        return nothing
    # With the state held where it was before, a switch by the time alone remains.
    held = np.abs(law(last, first) - law(first, first)).max(axis=1)
    timed = held > _STAYS * left
    return Switches(last[jumps], timed[jumps])
