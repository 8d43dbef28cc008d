"""Known inputs: their values at any time, and where they jump.

At a jump a value is two: the limit from the left, where an interval ends, and from the
right, where the next one begins.
"""

from typing import Literal

import numpy as np
from jaxtyping import Float

from .trajectories import Trajectory


Side = Literal["left", "right"]

_GRID = 1_001  # where jumps of inputs that are functions are looked for
_GRIDS = (1_001, 8_001, 64_001)  # on which such inputs are linear
_CHECKED, _LINEAR = 501, 3e-3  # times, and the error in parts of the inputs' range
_AWAY = 1e-9  # how far from a jump its limits are, in parts of the trajectory
_HALVINGS = 45
_CURVED, _STAYS, _SMALL = 0.2, 0.5, 1e-9


def knots(
    trajectory: Trajectory,
) -> tuple[Float[np.ndarray, " knots"], Float[np.ndarray, "knots inputs"]]:
    """Return times and values between which inputs are linear; a jump has two.

    Inputs that are held until the next sample jump there. Functions of the time are
    evaluated on a grid that is fine enough for them.

    Raises:
        ValueError: For a function that moves faster than the finest grid.
    """
    ts, inputs = trajectory.ts, trajectory.inputs
    assert trajectory.span is not None
    if inputs is None:
        return np.asarray(trajectory.span), np.zeros((2, 0))
    if callable(inputs):
        return _resolved(trajectory)
    if trajectory.hold != "previous":
        return _held_on(ts, inputs)
    held = np.repeat(inputs, 2, axis=0)[:-1]
    return _held_on(np.repeat(ts, 2)[1:], held)


def _held_on(
    ts: np.ndarray, values: np.ndarray
) -> tuple[Float[np.ndarray, " knots"], Float[np.ndarray, "knots inputs"]]:
    """Return knots with one more where the last jumps: its value holds from there."""
    if len(ts) < 2 or ts[-1] > ts[-2]:
        return ts, values
    later = ts[-1] + (ts[-1] - ts[0] or 1.0)
    return np.append(ts, later), np.append(values, values[-1:], axis=0)


def _resolved(trajectory: Trajectory) -> tuple[np.ndarray, np.ndarray]:
    """Return a function's values on the first grid between whose points it is linear.

    It is compared at times that no grid has in common.
    """
    assert trajectory.span is not None
    first, last = trajectory.span
    at = np.sort(np.random.default_rng(0).uniform(first, last, _CHECKED))
    exact = inputs_at(trajectory, at)
    for num in _GRIDS:
        grid, values = _on_grid(trajectory, num)
        rows = np.clip(np.searchsorted(grid, at), 1, len(grid) - 1)
        share = ((at - grid[rows - 1]) / (grid[rows] - grid[rows - 1]))[:, None]
        error = np.abs(values[rows - 1] * (1 - share) + values[rows] * share - exact)
        every = np.concatenate([exact, values])
        size = _LINEAR * np.ptp(every, axis=0) + _SMALL * np.abs(every).max(axis=0)
        if np.all(error <= size):
            return grid, values
    raise ValueError(
        f"`inputs` is a function that is not linear between {_GRIDS[-1]} points of its "
        "span, on which it is evaluated here: pass samples at the times where it turns."
    )


def _on_grid(trajectory: Trajectory, num: int) -> tuple[np.ndarray, np.ndarray]:
    assert trajectory.span is not None
    found = jumps(trajectory)
    grid = np.sort(np.concatenate([np.linspace(*trajectory.span, num), found, found]))
    later = np.append(False, np.diff(grid) == 0)
    left, right = (inputs_at(trajectory, grid, side) for side in ("left", "right"))
    return grid, np.where(later[:, None], right, left)


def inputs_at(
    trajectory: Trajectory, ts: np.ndarray, side: Side = "left"
) -> Float[np.ndarray, "ts inputs"]:
    """Return the known inputs at `ts`, at jumps from one side; none have no columns."""
    if callable(trajectory.inputs):
        return _evaluated(trajectory, _moved(trajectory, ts, side))
    times, values = knots(trajectory)
    if len(times) == 1:
        return np.broadcast_to(values[0], (len(ts), values.shape[1]))
    at = np.clip(np.searchsorted(times, ts, side=side), 1, len(times) - 1)
    gap = times[at] - times[at - 1]
    share = (ts - times[at - 1]) / np.where(gap > 0, gap, 1.0)
    share = np.clip(share, 0, 1)[:, None]
    # Exact if both ends are equal: an input may be an index, such as in `numbered`.
    between = values[at - 1] + share * (values[at] - values[at - 1])
    return np.where(share < 1, between, values[at])


def sampled_inputs(trajectory: Trajectory) -> Float[np.ndarray, "samples inputs"]:
    """Return the inputs at samples, where a time stands twice each sample's own."""
    if isinstance(trajectory.inputs, np.ndarray):
        return trajectory.inputs
    return inputs_at(trajectory, trajectory.ts, "right")


def _evaluated(trajectory: Trajectory, ts: np.ndarray) -> np.ndarray:
    function = trajectory.inputs
    found = np.stack([np.atleast_1d(np.asarray(function(t), float)) for t in ts])
    bad = np.flatnonzero(~np.all(np.isfinite(found), axis=1))
    if len(bad):
        raise ValueError(
            f"`inputs` is {found[bad[0]]} at t = {ts[bad[0]]:.6g}: pass a function to "
            "finite numbers, everywhere in the `span`."
        )
    return found


def _moved(trajectory: Trajectory, ts: np.ndarray, side: Side) -> np.ndarray:
    """Return times, those at a jump a little to one side of it."""
    found, away = jumps(trajectory), _away(trajectory)
    if not len(found):
        return ts
    nearest = found[np.argmin(np.abs(ts[:, None] - found), axis=1)]
    near = np.abs(ts - nearest) <= away
    return np.where(near, nearest + (away if side == "right" else -away), ts)


def _away(trajectory: Trajectory) -> float:
    assert trajectory.span is not None
    first, last = trajectory.span
    # Of times such as 1.7e9 the rounding is larger: both limits would be one time.
    return max(_AWAY * (last - first), 4 * np.spacing(max(abs(first), abs(last))))


def jumps(trajectory: Trajectory) -> Float[np.ndarray, " jumps"]:
    """Return the times inside of the span at which the trajectory's inputs jump.

    Those that `jumps` and `doses` name; samples at which a held input changes, or that
    stand twice with different inputs. For functions of the time see `found_jumps`.
    """
    assert trajectory.span is not None
    named = np.array([*trajectory.jumps, *(t for t, _ in trajectory.doses)], float)
    if trajectory.inputs is None or callable(trajectory.inputs):
        times = named
    else:
        times, values = knots(trajectory)
        twice = np.append(np.diff(times) == 0, False)
        changes = np.append(np.any(np.diff(values, axis=0) != 0, axis=1), False)
        times = np.concatenate([named, times[twice & changes]])
    first, last = trajectory.span
    away = _away(trajectory)
    return np.unique(times[(times > first + away) & (times < last - away)])


def with_found_jumps(trajectory: Trajectory) -> Trajectory:
    """Return a trajectory whose `jumps` are those found of its inputs too."""
    found = (*trajectory.jumps, *found_jumps(trajectory))
    return trajectory._replace(jumps=found)


def found_jumps(trajectory: Trajectory) -> tuple[float, ...]:
    """Return where an input that is a function of the time jumps, by bisection.

    Between samples and the points of a grid. A pulse that is shorter than their gaps is
    not seen: name its times by `Trajectory(jumps=...)`.
    """
    assert trajectory.span is not None
    if not callable(trajectory.inputs):
        return ()
    grid = np.linspace(*trajectory.span, _GRID // 4)
    grid = np.unique(np.concatenate([grid, trajectory.ts]))
    values = _evaluated(trajectory, grid)
    middle = _evaluated(trajectory, (grid[1:] + grid[:-1]) / 2)
    change = np.abs(np.diff(values, axis=0)).max(axis=1, initial=0)
    curved = np.abs(middle - (values[1:] + values[:-1]) / 2).max(axis=1, initial=0)
    size = np.abs(values).max(initial=0)
    where = (change > _SMALL * size) & (curved > _CURVED * change)
    pairs = zip(grid[:-1][where], grid[1:][where])
    found = [_bisected(trajectory, a, b) for a, b in pairs]
    return tuple(t for t in found if t is not None)


def _bisected(trajectory: Trajectory, first: float, last: float) -> float | None:
    """Return where most of the change between two times is at once, if it is."""
    ends = np.array([first, last])
    low, high = _evaluated(trajectory, ends)
    whole = np.abs(high - low).max()
    for _ in range(_HALVINGS):
        middle = (first + last) / 2
        if not first < middle < last:
            break
        value = _evaluated(trajectory, np.array([middle]))[0]
        if np.abs(value - low).max() > np.abs(high - value).max():
            last, high = middle, value
        else:
            first, low = middle, value
    return float(last) if np.abs(high - low).max() > _STAYS * whole else None
