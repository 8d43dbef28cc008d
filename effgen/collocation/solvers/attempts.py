"""A solve as one or a few attempts by Ipopt: in scaled units, and with less barrier."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from effgen.collocation.program.compiled import misfit_of
from effgen.collocation.program.nlp import NLP
from effgen.collocation.program.points import Functions, Limits, Point, Solved, Trace

from . import ipopt
from .scaling import Scaling, scaling


_WORSE, _SMALL_BARRIER = 4.0, 1e-4


def sound(solved: Solved) -> bool:
    """Return whether Ipopt found an optimum, exactly or acceptably."""
    return solved.status in (0, 1)


def after(before: Solved, solved: Solved) -> Solved:
    """Return a solve that continued from another's end, as one."""
    trace = Trace(*(a + b for a, b in zip(before.trace, solved.trace)))
    return solved._replace(
        trace=trace,
        seconds=before.seconds + solved.seconds,
        evaluating=before.evaluating + solved.evaluating,
    )


def solve(
    nlp: NLP,
    functions: Functions,
    limits: Limits,
    start: Point,
    options: Mapping[str, Any],
    *,
    deadline: float = np.inf,
    stop: Callable[[Trace], bool],
) -> Solved:
    """Solve; go on in scaled units where they differ; try again where it fits badly.

    A gradient by a parameter of 1e9 is small, whatever is left of the misfit. Where the
    data hardly determine a direction, Ipopt's first barrier is larger than the misfit
    and carries parameters to the middle of their bounds. The law then fits worse than
    the smoothed data, and a smaller barrier is tried. The lower objective is kept.
    Nothing more begins after `deadline`, in seconds of `time.perf_counter`.
    """

    def attempt(start: Point, scales: Scaling | None, **more: Any) -> Any:
        left = deadline - time.perf_counter()
        chosen = ipopt.time_limit(left) | dict(options) | more
        return ipopt.solve(functions, limits, start, chosen, scales=scales, stop=stop)

    solved = attempt(start, None)
    scales = scaling(nlp, functions, limits, start.z) if sound(solved) else None
    if scales is not None and time.perf_counter() < deadline:
        solved = _better(solved, attempt(solved.point, scales))
    badly = sound(solved) and start.constraints is None
    badly = badly and (scales is not None or _bounded(limits))
    badly = badly and "mu_init" not in options and time.perf_counter() < deadline
    if badly and misfit_of(nlp, solved.point.z) > _WORSE * misfit_of(nlp, start.z):
        solved = _better(solved, attempt(start, scales, mu_init=_SMALL_BARRIER))
    return solved


def _bounded(limits: Limits) -> bool:
    free = limits.lower < limits.upper
    finite = np.isfinite(limits.lower) | np.isfinite(limits.upper)
    return bool(np.any(free & finite))


def _better(first: Solved, second: Solved) -> Solved:
    """Return the solve of the lower objective, with the time and trace of both."""
    if sound(second) and second.objective <= first.objective:
        return after(first, second)
    return after(second, first)
