"""The grid of one series: equal steps, no longer than `dt`, from time to time."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int


# A gap that is a whole number of `dt` but for rounding is not given one more step.
_SLACK = 1e-4


def usual_gap(ts: ArrayLike) -> float:
    """Return the median of the gaps between times, along the last axis, above zero.

    One, where there is no gap.
    """
    gaps = np.diff(np.asarray(ts, np.float64))
    there = gaps[gaps > 0]
    return float(np.median(there)) if there.size else 1.0


class Grid(NamedTuple):
    """`steps` steps between `steps + 1` nodes; past the series' end, of length zero.

    Attributes:
        starts: Of each step.
        lengths: Of each step.
        gap: The gap between observations that each step lies in (`obs` past the end).
        gap_starts: Of a step in each gap.
        gap_lengths: Of a step in each gap, with one more of length 0.
        nodes: The node of each observation.
        until_next: Time from each step's start to the next observation that has values;
            zero after the last.
        fits: Whether `steps` are enough for `dt`; if not, later observations are put at
            the last node.
    """

    starts: Float[Array, " steps"]
    lengths: Float[Array, " steps"]
    gap: Int[Array, " steps"]
    gap_starts: Float[Array, " gaps"]
    gap_lengths: Float[Array, " gaps"]
    nodes: Int[Array, " obs"]
    until_next: Float[Array, " steps"]
    fits: Bool[Array, ""]


def make_grid(
    ts: Float[Array, " obs"],
    seen: Bool[Array, " obs"],
    *,
    dt: float,
    num_steps: int,
    t0: float | None,
) -> Grid:
    """Return the grid of a series from `t0`, or its first time if that is `None`."""
    first = ts[:1] if t0 is None else jnp.full(1, t0, ts.dtype)
    before = jnp.concatenate([first, ts[:-1]])
    gaps = ts - before
    counts = jnp.ceil(gaps / dt - _SLACK).astype(jnp.int32)
    counts = jnp.where(gaps > 0, jnp.maximum(counts, 1), 0)
    ends = jnp.cumsum(counts)
    index = jnp.arange(num_steps)
    gap = jnp.searchsorted(ends, index, side="right")
    inside = gap < len(ts)
    at = jnp.where(inside, gap, 0)
    sizes = gaps / jnp.maximum(counts, 1)
    done = index - (ends - counts)[at]
    last = ts[-1]
    return Grid(
        starts=jnp.where(inside, before[at] + done * sizes[at], last),
        lengths=jnp.where(inside, sizes[at], 0),
        gap=gap,
        gap_starts=jnp.concatenate([before, last[None]]),
        gap_lengths=jnp.concatenate([sizes, jnp.zeros(1, ts.dtype)]),
        nodes=jnp.minimum(ends, num_steps),
        until_next=_until_next(ts, seen, before, sizes, at, done, inside),
        fits=ends[-1] <= num_steps,
    )


def _until_next(
    ts: Array,
    seen: Array,
    before: Array,
    sizes: Array,
    at: Array,
    done: Array,
    inside: Array,
) -> Array:
    times = jnp.where(seen, ts, jnp.inf)
    upcoming = jax.lax.cummin(times, reverse=True)[at]
    left = upcoming - before[at] - done * sizes[at]
    return jnp.where(inside & jnp.isfinite(upcoming), left, 0)


def steps_needed(ts: np.ndarray, *, dt: float, t0: float | None) -> int:
    """Return how many steps the longest of the series needs; at least one.

    Rounded up to a multiple of eight, so that alike data share a program.
    """
    ts = np.atleast_2d(np.asarray(ts, np.float64))
    first = ts[:, :1] if t0 is None else np.full((len(ts), 1), t0)
    gaps = np.diff(np.concatenate([first, ts], axis=1), axis=1)
    counts = np.ceil(gaps / dt - _SLACK)
    most = int(np.where(gaps > 0, np.maximum(counts, 1), 0).sum(1).max())
    return 8 * max(1, -(-most // 8))
