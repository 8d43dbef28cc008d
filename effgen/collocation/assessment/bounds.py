"""Bounds and constraints that hold a solution back."""

from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from effgen.collocation.program.elimination import Eliminated, columns
from effgen.collocation.program.points import Limits, Point


def held_rows(through: Eliminated, limits: Limits) -> Float[np.ndarray, "rows free"]:
    """Return the rows of equations between variables, and of states held fixed."""
    num = through.rows.shape[0]
    lower, upper = limits.constraints_lower, limits.constraints_upper
    equal = (lower == upper)[len(lower) - num :]
    return np.concatenate(
        [_pulled(through, through.rows[equal]), pulled_units(through, through.fixed)]
    )


def _pulled(through: Eliminated, rows: Any) -> np.ndarray:
    return through.pulled(rows.toarray().T).T


def pulled_units(through: Eliminated, variables: np.ndarray) -> np.ndarray:
    """Return the rows of some variables, as they move with what is free."""
    units = np.zeros((through.size, len(variables)))
    units[variables, np.arange(len(variables))] = 1
    return through.pulled(units).T


def active_rows(
    through: Eliminated,
    limits: Limits,
    point: Point,
    roots: np.ndarray,
    values: np.ndarray,
    most: np.ndarray,
) -> tuple[Int[np.ndarray, " bounds"], Float[np.ndarray, "rows free"]]:
    """Return the bounds that hold the solution back, and the rows of constraints."""
    z, rows = point.z, point.constraints
    assert rows is not None
    assert point.lower is not None
    assert point.upper is not None
    num = through.rows.shape[0]
    variance, of_rows = np.zeros(len(z)), np.zeros(num)
    for c in columns(roots.shape[1]):
        moved = through.moved(roots[:, c])
        variance += np.sum(moved**2, axis=1)
        of_rows += np.sum((through.rows @ moved) ** 2, axis=1)
    sides = (limits.lower, limits.upper, point.lower, point.upper)
    bounds = _beyond(z, *sides, variance, most)
    first = len(rows) - num
    lower, upper = limits.constraints_lower[first:], limits.constraints_upper[first:]
    rows = rows[first:]
    given = (values[first:], lower, upper, np.maximum(-rows, 0), np.maximum(rows, 0))
    held = _beyond(*given, of_rows, np.maximum(np.abs(given[0]), 1.0))
    return np.flatnonzero(bounds), _pulled(through, through.rows[held])


def _beyond(
    value: np.ndarray,
    lower: np.ndarray,
    upper: np.ndarray,
    by_lower: np.ndarray,
    by_upper: np.ndarray,
    variance: np.ndarray,
    most: np.ndarray,
) -> Bool[np.ndarray, " values"]:
    """Return what would be past a bound without it: multiplier against distance.

    The multiplier times the inverse curvature is how far the value would go. Where that
    tells little or nothing, `most`, the value's own size, stands for the curvature.
    """
    move = np.where(variance > 0, np.minimum(variance, most**2), most**2)
    past = by_lower * move > np.maximum(value - lower, 0)
    past |= by_upper * move > np.maximum(upper - value, 0)
    return past & (lower < upper)
