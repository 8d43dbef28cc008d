"""Phases: switches of a law at unknown times, and trajectories that follow another.

A switch time between two samples moves no sample. So the mesh stays where it is, and
the clock between these samples is stretched: on either side of the switch, time is
linear in the mesh's clock, and the law is multiplied by its rate.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from .inputs import inputs_at
from .trajectories import Trajectory


_TINY = 4e-16
_ROOM = 1e-3  # of the gap between two samples: nearer, a switch is at one of them
_GRID = 9
_PAST = 1e-6  # of the gap: as far as a solution may pass the samples around a switch


class Switch(NamedTuple):
    """A time that is a parameter: where the law switches, or one phase follows another.

    The time stays between the two samples around `near`.

    Arguments:
        time: `p`, the parameters, to the time.
        near: A first guess between two samples; of phases, where their `span` ends and
            begins on the mesh.
    """

    time: Callable[[PyTree], Any]
    near: float


class Bracket(NamedTuple):
    """A switch with the samples around it: `before < at < after`."""

    time: Callable[[PyTree], Any]
    before: float
    at: float
    after: float


class Retimed(eqx.Module):
    """A function of `(t, x, u, p, nets)` on the mesh's clock, times the clock's rate.

        t = time(p) + (s - at) (time(p) - before) / (at - before)    before < s <= at
        t = time(p) + (s - at) (after - time(p)) / (after - at)      at < s < after
        t = s                                                        elsewhere

    The first `rated` values are multiplied by `dt/ds`.
    """

    function: Callable[..., Array]
    brackets: tuple[Bracket, ...]
    rated: int

    def __call__(self, s: Any, x: Any, u: Any, p: PyTree, nets: PyTree) -> Array:
        """Return the values at `s` of the mesh's clock."""
        t, rate = clock(self.brackets, s, p)
        found = jnp.asarray(self.function(t, x, u, p, nets))
        if not found.ndim:
            return rate * found if self.rated else found
        return jnp.where(jnp.arange(found.shape[0]) < self.rated, rate * found, found)


def clock(brackets: Sequence[Bracket], s: Any, p: PyTree) -> tuple[Array, Array]:
    """Return the time at `s` of the mesh's clock, and its rate `dt/ds`."""
    t, rate = jnp.asarray(s), jnp.ones(())
    for time, before, at, after in brackets:
        there = jnp.reshape(jnp.asarray(time(p)), ())
        early = (there - before) / (at - before)
        late = (after - there) / (after - at)
        # Where the interval ends at the switch, the law is still the old one.
        just = jnp.minimum((s - at) * early, -_TINY * max(abs(before), abs(after)))
        left, right = (s > before) & (s <= at), (s > at) & (s < after)
        t = jnp.where(left, there + just, jnp.where(right, there + (s - at) * late, t))
        rate = jnp.where(left, early, jnp.where(right, late, rate))
    return t, rate


def times_of(brackets: Sequence[Bracket], p: PyTree) -> Array:
    """Return the times of switches, `(switches,)`."""
    times = [jnp.reshape(jnp.asarray(b.time(p), float), ()) for b in brackets]
    return jnp.stack([*times, jnp.zeros(())])[:-1]


def on_mesh_clock(brackets: Sequence[Bracket], ts: Array, p: PyTree) -> Array:
    """Return times on the mesh's clock, for JAX to transform.

    NaN where a switch is not between its samples, as that clock would run backward.
    """
    s, good = ts, jnp.ones((), bool)
    for there, (_, before, at, after) in zip(times_of(brackets, p), brackets):
        room = _PAST * (after - before)
        good &= (there >= before - room) & (there <= after + room)
        early, late = there - before, after - there
        early = (at - before) / jnp.where(early > 0, early, 1.0)
        late = (after - at) / jnp.where(late > 0, late, 1.0)
        left, right = (ts > before) & (ts <= there), (ts > there) & (ts < after)
        s = jnp.where(left, at + (ts - there) * early, s)
        s = jnp.where(right, at + (ts - there) * late, s)
    return jnp.where(good, s, jnp.nan)


class TrueTimed(eqx.Module):
    """Inputs as a function of the mesh's clock, of those of the time."""

    function: Callable[[Any], Any]
    brackets: tuple[Bracket, ...]
    parameters: PyTree

    def __call__(self, s: Any) -> Any:
        """Return the inputs at `s` of the mesh's clock."""
        return self.function(clock(self.brackets, s, self.parameters)[0])


def in_true_time(function: Any) -> Any:
    """Return a law that `on_clock` has put on the mesh's clock, in time again."""
    return function.function if isinstance(function, Retimed) else function


def on_clock(function: Any, brackets: tuple[Bracket, ...], rated: int) -> Any:
    """Return a function, or `None`, on the mesh's clock."""
    if function is None or not brackets:
        return function
    return Retimed(function, brackets, rated)


def brackets_of(
    switches: Sequence[Switch], data: Sequence[Trajectory]
) -> tuple[Bracket, ...]:
    """Return the switches with the samples around them, in order.

    Raises:
        ValueError: For a switch that is at a sample or outside of all, that shares its
            samples with another, or near which inputs move.
    """
    found = sorted((_bracket(s, data) for s in switches), key=lambda b: b.at)
    for one, other in itertools.pairwise(found):
        if one.after > other.before:
            raise ValueError(
                f"`switches` has two with no sample between them, near {one.at:.6g} "
                f"and {other.at:.6g}: the data do not tell them apart."
            )
    return tuple(found)


def _bracket(switch: Switch, data: Sequence[Trajectory]) -> Bracket:
    if not (isinstance(switch, Switch) and callable(switch.time)):
        raise ValueError(
            f"`switches` has {switch!r}: pass `Switch(lambda p: p[...], near=time)`."
        )
    near = float(switch.near)
    inside = [t for t in data if span_of(t)[0] <= near <= span_of(t)[1]]
    times = np.concatenate(
        [np.array([*span_of(t), *_seen(t)]) for t in inside] or [np.zeros(0)]
    )
    ends = np.concatenate([np.array(span_of(t)) for t in inside] or [np.zeros(0)])
    measured = np.concatenate([_seen(t) for t in inside] or [np.zeros(0)])
    before, after = times[times < near], times[times > near]
    inside_of = len(before) and len(after)
    room = _ROOM * (after.min() - before.max()) if inside_of else 0.0
    if not inside_of or np.any(np.abs(measured - near) <= room):
        raise ValueError(
            f"`switches` has one near {near:.6g}, which is at a sample or where no "
            "trajectory goes on: pass a time between two samples."
        )
    bracket = Bracket(switch.time, float(before.max()), near, float(after.min()))
    for t in inside:
        _check_still(t, bracket)
    if np.any((ends > bracket.before) & (ends < bracket.after) & (ends != near)):
        raise ValueError(
            f"a trajectory's `span` ends between the samples around the switch near "
            f"{near:.6g}: let it end there, or at a sample."
        )
    return bracket


def _check_still(trajectory: Trajectory, bracket: Bracket) -> None:
    first = max(bracket.before, span_of(trajectory)[0])
    last = min(bracket.after, span_of(trajectory)[1])
    at = np.linspace(first, last, _GRID)[1:-1]
    known = inputs_at(trajectory, at)
    moves = known != known[:1]
    doses = [time for time, _ in trajectory.doses if first < time < last]
    if np.any(moves) or doses:
        raise ValueError(
            f"an input or a dose changes between the samples around the switch near "
            f"{bracket.at:.6g}, and would move with it: pass samples closer together, "
            'or inputs with `hold="previous"`.'
        )


def with_edges(trajectory: Trajectory, brackets: Sequence[Bracket]) -> Trajectory:
    """Return the trajectory with intervals that end around switches."""
    first, last = span_of(trajectory)
    edges = [t for b in brackets for t in b[1:] if first < t < last]
    return trajectory._replace(jumps=(*trajectory.jumps, *edges))


def followers(data: Sequence[Trajectory]) -> np.ndarray:
    """Return which trajectories follow the one before them."""
    return np.flatnonzero([t.follows for t in data])


def _seen(trajectory: Trajectory) -> np.ndarray:
    return trajectory.ts[np.any(~np.isnan(trajectory.ys), axis=1)]


def span_of(trajectory: Trajectory) -> tuple[float, float]:
    """Return a trajectory's first and last time."""
    assert trajectory.span is not None
    return trajectory.span
