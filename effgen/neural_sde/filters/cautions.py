"""What fits and answers warn of: few paths, paths not finite, steps long or many."""

import warnings
from typing import Any

import jax
import numpy as np
from jax.core import Tracer
from jaxtyping import Array

from effgen.core.outcome.results import RunWarning

from .evidence import Evidence


_FEWEST = 0.05
_MANY_STEPS = 1_000  # in a gap: between units, seconds for hours and longer
_UNLIKE = 100.0  # times
_MANY = 10**9  # steps of paths: minutes
_TOO_MANY = 10**11  # numbers that are held: 400 GB in float32


def _known(*values: Any) -> bool:
    return not any(isinstance(x, Tracer) for x in jax.tree.leaves(values))


def _warn(text: str) -> None:
    warnings.warn(text, RunWarning, stacklevel=5)


def of_few(ess: Array, num_paths: int, ts: Any) -> None:
    """Warn where an answer rests on fewer than one in twenty of its paths."""
    if not _known(ess):
        return
    sizes = np.atleast_2d(np.asarray(ess))
    if sizes.size and np.min(sizes) < _FEWEST * num_paths:
        i, j = np.unravel_index(np.argmin(sizes), sizes.shape)
        time = np.atleast_2d(np.asarray(ts))[i, j]
        _warn(
            f"at {time} in series {i} the answer rests on {sizes[i, j]:.1f} of its "
            f"{num_paths} paths, and its error is that of so few. Train longer, draw "
            "more paths, or lower `dt`."
        )


def of_many_steps(dt: float, steps: int, num_paths: int, size: int) -> None:
    """Warn of an answer that takes minutes, before it is computed.

    Arguments:
        dt: The step.
        steps: How many there are of one path.
        num_paths: The number of paths of all series.
        size: How many numbers are kept of each path at each step.

    Raises:
        ValueError: For more numbers than any machine holds.
    """
    work = steps * num_paths
    if work < _MANY:
        return
    what = (
        f"the answer takes {steps:,} steps of `dt` {dt:.3g} of each of {num_paths:,} "
        "paths"
    )
    remedy = (
        "Ask for nearer `times` or fewer paths, or pass a longer `dt` to `posterior`."
    )
    if work * size > _TOO_MANY:
        raise ValueError(f"{what}, more than can be held. {remedy}")
    _warn(f"{what}, which is slow. {remedy}")


def of_constants(ys: Array, mask: Array) -> None:
    """Warn of sensors that do not vary in any series: their scales are undetermined.

    Arguments:
        ys: Values, shape `(obs, sensors)` or `(series, obs, sensors)`.
        mask: Where there is a value, of the same shape.
    """
    if not _known(ys, mask):
        return
    values, there = np.asarray(ys, np.float64), np.asarray(mask)
    low = np.min(values, axis=-2, initial=np.inf, where=there)
    high = np.max(values, axis=-2, initial=-np.inf, where=there)
    size = np.maximum(np.abs(low), np.abs(high))
    several = np.atleast_2d(np.sum(there, axis=-2) > 1)
    varies = np.atleast_2d(high - low > 1e-12 * size) & several
    for i in np.flatnonzero(several.any(0) & ~varies.any(0)):
        _warn(
            f"`ys` does not vary in time in column {i}: nothing determines its scales, "
            "and the fit makes them zero. Leave the column out, or fix its scales by "
            'the model\'s `frozen`, such as "decoder.log_scale".'
        )


def lost(positions: Array) -> bool:
    """Return whether a path is not finite."""
    return _known(positions) and not bool(np.all(np.isfinite(np.asarray(positions))))


def of_lost(dt: float, holding: float | None) -> None:
    """Warn of paths that are not finite, and say by which step they are."""
    remedy = (
        f"none is with `dt` {holding:.3g}" if holding is not None else "nor at a 64th"
    )
    _warn(
        f"paths are not finite: steps of {dt:.3g} are too long for the drift; {remedy}."
    )


def of_unit(dt: float, ts: np.ndarray, unit: str) -> None:
    """Warn of dates whose unit seems to differ from the model's.

    Arguments:
        dt: The model's own step, zero where it has none.
        ts: Times in the unit, shape `(obs,)` or `(series, obs)`.
        unit: The unit.
    """
    gap = float(np.max(np.diff(np.atleast_2d(ts), axis=1), initial=0))
    if dt > 0 and gap > _MANY_STEPS * dt:
        _warn(
            f"in `unit` {unit!r} times are up to {gap:.3g} apart, and the model's step "
            f"is {dt:.3g}: pass the `unit` in which the model was made, or the `dt` "
            "that is meant."
        )


def of_period(name: str, period: float, gap: float, unit: str | None) -> None:
    """Warn of a period that is shorter than the time between observations."""
    if period < gap:
        where = "" if unit is None else f" in `unit` {unit!r}"
        _warn(
            f"`period` of `{name}` is {period:.3g} and times are {gap:.3g} apart"
            f"{where}: the times cannot show it. Pass it in the unit of `ts`."
        )


def of_sizes(sizes: np.ndarray) -> None:
    """Warn of sensors of one sum whose sizes differ after division by the loadings."""
    if len(sizes) and np.max(sizes) > _UNLIKE * np.min(sizes):
        _warn(
            f"columns of `ys` vary by {np.min(sizes):.3g} to {np.max(sizes):.3g}, and "
            "all show one sum: pass `loadings`, how much of it each column shows, or "
            "one column at a time."
        )


def of_held_inputs(later: np.ndarray) -> None:
    """Warn where a forecast holds the last known inputs."""
    if np.any(later):
        _warn(
            "`times` go past the last observation and `inputs` are not given: the last "
            "known are held. Pass `inputs`, one row for each of `times`."
        )


def of_evidence(found: Evidence, fine: Evidence, dt: float) -> None:
    """Warn of an evidence of few paths, or of steps that are too long."""
    if not _known(found, fine):
        return
    explodes = np.asarray(found.num_lost)
    if np.any(explodes > 0):
        remedy = "half of it holds" if not np.any(fine.num_lost) else "nor half of it"
        _warn(
            f"{int(explodes.max())} paths of a series are not finite: `dt` {dt:.3g} is "
            f"too long for the drift, {remedy}."
        )
    few = int(np.sum(np.asarray(found.ess) < 10))
    if few:
        _warn(
            f"fewer than 10 paths count in {few} series: the evidence is too low "
            "there. Train longer, draw more paths, or use `smoother`."
        )
    above = np.asarray(found.elbo.value - fine.evidence.value)
    errors = np.hypot(found.elbo.standard_error, fine.evidence.standard_error)
    faulty = above > 4 * errors + 1e-3 * np.abs(np.asarray(fine.evidence.value))
    if np.any(faulty & (np.asarray(fine.ess) >= 10)):
        i = int(np.argmax(np.where(faulty, above, -np.inf)))
        _warn(
            f"in series {i} the bound is {above[i]:.3g} nats above the evidence at "
            f"half the step: steps of {dt} are too long for the drift. Lower `dt`."
        )
