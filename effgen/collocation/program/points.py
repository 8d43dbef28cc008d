"""What a program and a solver tell each other: functions, points, limits, the trace."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from .pattern import Pattern


class Functions(NamedTuple):
    """The program as Ipopt calls it, on numpy's arrays; `hessian` may be `None`."""

    objective: Callable[[np.ndarray], float]
    gradient: Callable[[np.ndarray], np.ndarray]
    constraints: Callable[[np.ndarray], np.ndarray]
    jacobian: Callable[[np.ndarray], np.ndarray]
    hessian: Callable[[np.ndarray, np.ndarray, float], np.ndarray] | None
    jacobian_pattern: Pattern
    hessian_pattern: Pattern | None


class Point(NamedTuple):
    """A point and its multipliers: of constraints, and of lower and upper bounds."""

    z: Float[np.ndarray, " variables"]
    constraints: Float[np.ndarray, " rows"] | None = None
    lower: Float[np.ndarray, " variables"] | None = None
    upper: Float[np.ndarray, " variables"] | None = None


class Limits(NamedTuple):
    """Bounds of variables and of constraints."""

    lower: Float[np.ndarray, " variables"]
    upper: Float[np.ndarray, " variables"]
    constraints_lower: Float[np.ndarray, " rows"]
    constraints_upper: Float[np.ndarray, " rows"]


class Trace(NamedTuple):
    """Ipopt's report, one number an iteration."""

    objective: list[float]
    primal_infeasibility: list[float]
    dual_infeasibility: list[float]
    barrier: list[float]
    step_norm: list[float]
    step_size: list[float]
    regularization: list[float]


class Solved(NamedTuple):
    """How a solve ended. `seconds` is all of it, `evaluating` that in our functions."""

    point: Point
    status: int
    message: str
    objective: float
    trace: Trace
    seconds: float
    evaluating: float
