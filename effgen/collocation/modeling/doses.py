"""Doses: impulses of the state at known times."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from .trajectories import Trajectory


def checked_doses(
    i: int, doses: Any, span: tuple[float, float]
) -> tuple[tuple[float, np.ndarray], ...]:
    """Return times and amounts in order of the time.

    Raises:
        ValueError: For times outside of the span, or that stand twice.
    """
    found = []
    for dose in doses:
        try:
            time, amount = dose
            pair = (float(time), np.asarray(amount, np.float64).reshape(-1))
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"`doses` of trajectory {i} has {dose!r}: pass pairs of a time and an "
                "amount, a number for each state, `(state,)`."
            ) from error
        found.append(pair)
    found.sort(key=lambda pair: pair[0])
    times = np.array([time for time, _ in found])
    amounts = [amount for _, amount in found]
    if not all(np.all(np.isfinite(amount)) for amount in amounts):
        raise ValueError(f"`doses` of trajectory {i} has an amount that is not finite.")
    if not np.all((times >= span[0]) & (times < span[1])):
        raise ValueError(
            f"`doses` of trajectory {i} are at {times.tolist()}: pass times from "
            f"{span[0]} on and before {span[1]}, its `span`."
        )
    if np.any(np.diff(times) == 0):
        raise ValueError(
            f"`doses` of trajectory {i} has a time twice, in {times.tolist()}: add the "
            "amounts up."
        )
    return tuple(found)


def check_amount(
    i: int, doses: Sequence[tuple[float, Any]], num_states: int, num_algebraic: int
) -> None:
    """Raise `ValueError` for doses that are no numbers, or of algebraic states."""
    for time, amount in doses:
        if amount.shape != (num_states,):
            raise ValueError(
                f"the dose of trajectory {i} at t = {time:.6g} is {len(amount)} "
                f"numbers: pass one for each of the {num_states} states."
            )
        if np.any(amount[num_states - num_algebraic :] != 0):
            raise ValueError(
                f"the dose of trajectory {i} at t = {time:.6g} is {amount.tolist()}, "
                "of which an algebraic state would have a part. Its equation sets that "
                "state: pass zero there."
            )


def shifts_at(
    trajectory: Trajectory, starts: Float[np.ndarray, " intervals"], num_states: int
) -> Float[np.ndarray, "intervals state"]:
    """Return what is added to the state where each interval starts."""
    found = np.zeros((len(starts), num_states))
    for time, amount in trajectory.doses:
        found[starts == time] = amount
    return found


def pieces(trajectory: Trajectory, ts: np.ndarray) -> np.ndarray:
    """Return how many doses were before each time; a dose at that time is after it."""
    times = np.array([time for time, _ in trajectory.doses])
    return np.searchsorted(times, ts, side="left")


def with_doses(
    solve: Callable[[np.ndarray, float, np.ndarray], np.ndarray],
    start: np.ndarray,
    first: float,
    ts: np.ndarray,
    doses: Sequence[tuple[float, Any]],
) -> Float[np.ndarray, "ts state"]:
    """Return states at `ts`, solved from one dose to the next.

    `solve(start, first, ts)` returns the states at times of which the least may be
    `first` itself. At the time
    of a dose the states are those of just before.
    """
    x, found = np.asarray(start, float), np.zeros((len(ts), len(start)))
    times = np.array([time for time, _ in doses if first <= time < ts[-1]])
    amounts = [amount for time, amount in doses if first <= time < ts[-1]]
    owner = np.searchsorted(times, ts, side="left")
    for piece in range(len(times) + 1):
        mine = owner == piece
        wanted = ts[mine]
        if piece < len(times):
            wanted = np.append(wanted, times[piece])
        states = np.broadcast_to(x, (len(wanted), len(x)))
        if np.any(wanted > first):
            states = solve(x, first, wanted)
        found[mine] = states[: mine.sum()]
        if piece < len(times):
            x, first = states[-1] + amounts[piece], float(times[piece])
    return found
