"""Distances to bounds: the barrier of them, and how far a step may go."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from .ipopt import Limits


_PUSH = 1e-2


class Bounds(NamedTuple):
    """A number for the lower and the upper bound of each variable."""

    lower: Float[np.ndarray, " variables"]
    upper: Float[np.ndarray, " variables"]


class Iterate(NamedTuple):
    """A point and its multipliers: zero where there is no bound."""

    z: Float[np.ndarray, " variables"]
    rows: Float[np.ndarray, " rows"]
    bounds: Bounds


class Barrier(NamedTuple):
    """Distances to the bounds at a point, infinite where there is none."""

    lower: Float[np.ndarray, " variables"]
    upper: Float[np.ndarray, " variables"]

    @classmethod
    def at(cls, limits: Limits, z: np.ndarray) -> "Barrier":
        """Return the distances; what is fixed has none."""
        fixed = limits.lower == limits.upper
        far = lambda d: np.where(fixed, np.inf, d)
        return cls(far(z - limits.lower), far(limits.upper - z))

    def value(self, mu: float) -> float:
        """Return `-mu sum(log(distances))`."""
        near = np.concatenate([self.lower, self.upper])
        near = near[np.isfinite(near)]
        if np.any(near <= 0):
            return np.inf
        return -mu * float(np.sum(np.log(near)))

    def gradient(self, mu: float) -> np.ndarray:
        """Return its gradient."""
        return -mu / self.lower + mu / self.upper

    def reach(self, step: np.ndarray, tau: float) -> float:
        """Return the longest step that keeps `1 - tau` of every distance."""
        return min(longest(self.lower, step, tau), longest(self.upper, -step, tau))


def longest(distance: np.ndarray, step: np.ndarray, tau: float) -> float:
    """Return the longest step, at most one, that keeps `1 - tau` of the distances."""
    with np.errstate(divide="ignore", invalid="ignore"):
        most = np.where(step < 0, -tau * distance / step, np.inf)
    return float(min(1.0, most.min(initial=1.0)))


def pushed(limits: Limits, z: np.ndarray) -> np.ndarray:
    """Return a point inside of its bounds."""
    lower, upper = limits.lower, limits.upper
    width = upper - lower
    with np.errstate(invalid="ignore"):
        low = lower + np.minimum(_PUSH * np.maximum(1, np.abs(lower)), _PUSH * width)
        high = upper - np.minimum(_PUSH * np.maximum(1, np.abs(upper)), _PUSH * width)
    low = np.where(np.isneginf(lower), lower, low)
    high = np.where(np.isposinf(upper), upper, high)
    return np.where(lower == upper, lower, np.clip(z, low, high))
