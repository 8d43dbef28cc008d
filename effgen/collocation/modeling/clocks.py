"""Times of users and times of the mesh, whose clock is stretched around switches.

A row of `switches` is `(time, before, at, after)`: the switch at `time` stands at `at`
on the mesh, and between `before` and `after` either side is linear. None is no switch.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, PyTree

from .phases import Bracket


def switches_of(
    brackets: Sequence[Bracket], parameters: PyTree
) -> Float[np.ndarray, "switches 4"] | None:
    """Return where switches are, and where they stand on the mesh."""
    if not brackets:
        return None
    times = [float(np.asarray(bracket.time(parameters))) for bracket in brackets]
    return np.array([(t, *b[1:]) for t, b in zip(times, brackets, strict=True)])


def mesh_times(
    switches: Float[np.ndarray, "switches 4"] | None, ts: np.ndarray, first: float
) -> tuple[Float[np.ndarray, " ts"], Float[np.ndarray, " ts"]]:
    """Return times on the mesh's clock, and its rate `ds/dt`.

    For `first` see `mesh_rates`.
    """
    s = np.array(ts)
    for time, before, at, after in () if switches is None else switches:
        early = (at - before) / max(time - before, np.finfo(float).tiny)
        late = (after - at) / max(after - time, np.finfo(float).tiny)
        left, right = (ts > before) & (ts <= time), (ts > time) & (ts < after)
        s = np.where(left, at + (ts - time) * early, s)
        s = np.where(right, at + (ts - time) * late, s)
    return s, mesh_rates(switches, s, first)


def mesh_rates(
    switches: Float[np.ndarray, "switches 4"] | None, s: np.ndarray, first: float
) -> Float[np.ndarray, " ts"]:
    """Return the rate `ds/dt` of the mesh's clock, at times on it.

    At an edge, the rate is that of the interval that ends there. At the trajectory's
    `first` edge it is that of the first interval.
    """
    rate = np.ones(len(s))
    for time, before, at, after in () if switches is None else switches:
        early = (at - before) / max(time - before, np.finfo(float).tiny)
        late = (after - at) / max(after - time, np.finfo(float).tiny)
        begins = s == first
        rate = np.where(_within(s, before, at, begins), early, rate)
        rate = np.where(_within(s, at, after, begins), late, rate)
    return rate


def _within(
    s: np.ndarray, lower: float, upper: float, begins: np.ndarray
) -> Bool[np.ndarray, " ts"]:
    inside = (s > lower) & (s < upper)
    return inside | np.where(begins, s == lower, s == upper)


def true_times(
    switches: Float[np.ndarray, "switches 4"] | None, s: np.ndarray
) -> Float[np.ndarray, " ts"]:
    """Return the times that times on the mesh's clock stand for."""
    ts = np.array(s)
    for time, before, at, after in () if switches is None else switches:
        left, right = (s > before) & (s <= at), (s > at) & (s < after)
        ts = np.where(left, time + (s - at) * (time - before) / (at - before), ts)
        ts = np.where(right, time + (s - at) * (after - time) / (after - at), ts)
    return ts
