"""What is known of the states where trajectories start."""

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import numpy as np


class Initial(eqx.Module):
    """What is known of the states where trajectories start.

        objective + sum over trajectories and states of ((x - values) / scale)^2 / (2 n)

    With a `scale`, each start counts like one more of the `n` measured values. So
    `scale` is the standard deviation of a prior, if the problem's `scale` is that of
    the noise. Pass the latter: by default a problem divides by more than the noise.

    Arguments:
        values: The states, `(state,)` or `(trajectories, state)`, in their units; NaN
            where free. `(state,)` is of the trajectories that follow no other: where
            phases begin, only `(trajectories, state)` tells.
        scale: `None` holds them fixed. A number, `(state,)` or `(trajectories, state)`
            is how far starts may be from them, a standard deviation in their units.
    """

    values: Any
    scale: Any = None


def of_first_phases(initial: Initial, follows: Sequence[bool]) -> Initial:
    """Return the known starts of all trajectories; those of later phases are free."""
    values = np.asarray(initial.values, float)
    if not any(follows) or values.ndim > 1:
        return initial
    rows = np.atleast_2d(values)
    later = np.asarray(follows)[:, None]
    return Initial(
        np.where(later, np.nan, np.tile(rows, (len(later), 1))), initial.scale
    )


def check_initial(
    initial: Initial, shape: tuple[int, int], bounds: tuple[np.ndarray, np.ndarray]
) -> None:
    """Raise `ValueError` for starts that do not fit the states or their bounds."""
    for name, value in (("values", initial.values), ("scale", initial.scale)):
        given = np.asarray(0.0 if value is None else value, float)
        try:
            np.broadcast_to(given, shape)
        except ValueError as error:
            raise ValueError(
                f"`initial.{name}` has shape {given.shape}: pass ({shape[1]},), a "
                f"number for each state, or {shape}."
            ) from error
    if np.any(np.isinf(np.asarray(initial.values, float))):
        raise ValueError(
            f"`initial.values` is {initial.values}: pass finite numbers, or NaN where "
            "free."
        )
    if initial.scale is not None and not np.all(np.asarray(initial.scale) > 0):
        raise ValueError(
            f"`initial.scale` is {initial.scale}: pass positive numbers, or `None` to "
            "hold the starts fixed."
        )
    if initial.scale is None:
        values = np.asarray(initial.values, float)
        past = (values < bounds[0]) | (values > bounds[1])
        if np.any(past):
            state = int(np.argwhere(past)[0][-1]) if past.ndim else 0
            raise ValueError(
                f"`initial.values` is {values} and state {state} is outside of its "
                f"bounds, {bounds[0][state]} to {bounds[1][state]}: move one of them."
            )


def checked_initial(
    initial: Initial | None,
    follows: Sequence[bool],
    num_states: int,
    bounds: tuple[np.ndarray, np.ndarray],
) -> Initial | None:
    """Return the known starts, checked, or `None` if none are known."""
    if initial is None:
        return None
    if not isinstance(initial, Initial):
        raise TypeError(
            f"`initial` is a {type(initial).__name__}: pass `Initial(values)`, or "
            "`Initial(values, scale)`."
        )
    check_initial(initial, (len(follows), num_states), bounds)
    return of_first_phases(initial, follows)
