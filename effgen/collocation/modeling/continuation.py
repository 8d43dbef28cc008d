"""Easier problems that lead to the one asked: data in growing windows."""

from collections.abc import Sequence

import equinox as eqx
import numpy as np

from .phases import followers
from .problem import Problem, Trajectory


def windows(
    problem: Problem, shares: Sequence[float] = (0.25, 0.5, 1.0)
) -> list[Problem]:
    """Return problems of the first part of every trajectory, growing to the whole.

    Each ends at a sample. Their transcriptions are the data of one run. A level begins
    from the states and multipliers of the window before, and past that window from the
    smoothed data. Scales are those of all data.

    Arguments:
        problem: The problem of the whole trajectories.
        shares: Which parts of each trajectory's span, growing, the last one 1.

    Returns:
        One problem for each share.

    Raises:
        ValueError: Unless `shares` are positive and grow to 1; for phases, of which the
            first part of each is no beginning of the whole.
    """
    if len(followers(problem.data)):
        raise ValueError(
            "the problem has phases, trajectories with `follows=True`: a window of "
            "each would part them; pass a problem of the first phases, then of more."
        )
    shares = list(shares)
    grow = list(shares) == sorted(set(shares)) and len(shares) > 0
    if not grow or not 0 < shares[0] or shares[-1] != 1:
        raise ValueError(f"`shares` is {list(shares)}: pass growing numbers up to 1.")
    cut = lambda share: tuple(_first(t, share) for t in problem.data)
    return [eqx.tree_at(lambda p: p.data, problem, cut(share)) for share in shares]


def _first(trajectory: Trajectory, share: float) -> Trajectory:
    if share == 1 or len(trajectory.ts) < 2:
        return trajectory
    assert trajectory.span is not None
    first, last = trajectory.span
    wanted = np.searchsorted(trajectory.ts, first + share * (last - first))
    # A window has a length: its last sample is not where the trajectory begins.
    later = np.flatnonzero(trajectory.ts > first)
    end = int(np.clip(wanted, later[0] if len(later) else 0, len(trajectory.ts) - 1))
    inputs = trajectory.inputs
    if inputs is not None and not callable(inputs):
        inputs = inputs[: end + 1]
    ts, ys = trajectory.ts[: end + 1], trajectory.ys[: end + 1]
    last = float(ts[-1])
    doses = [dose for dose in trajectory.doses if dose[0] < last]
    jumps = [time for time in trajectory.jumps if time <= last]
    rest = (trajectory.hold, jumps, doses)
    return Trajectory(ts, ys, inputs, (first, last), *rest)
