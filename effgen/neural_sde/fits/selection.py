"""Structures that a record may have, and the one that its evidence chooses."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import ArrayLike

from effgen.neural_sde.data.grid import usual_gap
from effgen.neural_sde.data.series import (
    Series,
    as_series,
    check_no_dates,
    check_season,
    check_times,
)
from effgen.neural_sde.modeling.checks import check_positive
from effgen.neural_sde.modeling.model import LatentSDE
from effgen.neural_sde.modeling.structure import (
    Structure,
    cycle,
    level,
    ou,
    periodic,
    season,
    trend,
)

from .peak import Maximum, maximum
from .structural_models import structural


_LONG = 10.0  # usual gaps: a longer one is a hole, in which no oscillation is seen


class Candidate(NamedTuple):
    """A structure that was fitted, and its evidence less what its parameters cost.

    Attributes:
        structure: As it was given.
        peak: Its fit.
        criterion: As `ranked` defines it, in nats. The most is best.
    """

    structure: Structure
    peak: Maximum
    criterion: float

    @property
    def model(self) -> LatentSDE:
        """The fitted model."""
        return self.peak.model


def candidates(
    ts: ArrayLike,
    ys: ArrayLike,
    mask: ArrayLike | None = None,
    *,
    season_period: float | None = None,
) -> tuple[Structure, ...]:
    """Return the structures that are commonly fitted to a record.

    They are a level; a process that returns to its mean; both; a trend with such a
    process; one or two cycles with it; and a periodic function with it. The function
    and the first cycle begin at the record's strongest period, after a line and the
    season are subtracted. The second cycle begins at half of that period.

    Arguments:
        ts: Times of one series, numbers, shape `(obs,)`.
        ys: Values, shape `(obs,)` or `(obs, sensors)`.
        mask: Where there is a value, of the shape of `ts` or `ys`. NaN are missing too.
        season_period: The period of a season of two harmonics that is added to each, in
            the unit of time, or `None` for no season.

    Returns:
        Seven structures, not yet started from the data.

    Raises:
        ValueError: For values at fewer than three times, or times that are not finite
            or not sorted, and a `season_period` that they can't show.
    """
    period = strongest_period(ts, ys, mask, season_period=season_period)
    turn = cycle(period)
    sums = (
        level(),
        ou(),
        level() + ou(),
        trend() + ou(),
        turn + ou(),
        turn + cycle(period / 2) + ou(),
        periodic(period) + ou(),
    )
    if season_period is None:
        return sums
    return tuple(structure + season(season_period, 2) for structure in sums)


def ranked(
    structures: Sequence[Structure],
    ts: ArrayLike,
    ys: ArrayLike,
    mask: ArrayLike | None = None,
) -> tuple[Candidate, ...]:
    """Fit every structure by its exact evidence; return them, the best first.

        criterion = log p(y) - parameters log(values) / 2 - log(periods)

    `periods` is how many the record can tell apart, `span / (8 gap)` and one at least,
    for a structure with a `periodic` part: its period was the best of these, and its
    prior is about that one alone.

    Source:
        Schwarz (1978).
    """
    series = as_series((ts, ys, mask))
    count = max(int(np.sum(series.mask)), 2)
    searched = _searched(series)
    found = []
    for structure in structures:
        peak = maximum(structural(structure, ts, ys, mask), ts, ys, mask)
        criterion = peak.log_evidence - 0.5 * peak.x.size * np.log(count)
        criterion -= structure.names.count("periodic") * searched
        found.append(Candidate(structure, peak, criterion))
    return tuple(sorted(found, key=lambda c: -c.criterion))


def _searched(series: Series) -> float:
    """Return the logarithm of how many periods a record tells apart.

    They are a turn apart over the span, and not below four gaps; the prior of a
    periodic part's period is about as wide as two.
    """
    times = np.asarray(series.ts, np.float64)[np.asarray(series.mask).any(axis=1)]
    span, gap = _span(times)
    return float(np.log(max(span / (8 * gap), 1.0)))


def strongest_period(
    ts: ArrayLike,
    ys: ArrayLike,
    mask: ArrayLike | None = None,
    *,
    season_period: float | None = None,
) -> float:
    """Return the period of the oscillation that, with a line, fits a record best.

    Periods are from four gaps to the span, without what gaps are longer than ten usual
    ones; multiples of the season's frequency are fitted beside.
    """
    check_no_dates(np.asarray(ts))
    check_times(np.asarray(ts), None)
    series = as_series((ts, ys, mask))
    there = np.asarray(series.mask)
    seen = there.any(axis=1)
    if len(np.unique(np.asarray(series.ts)[seen])) < 3:
        raise ValueError("values are at fewer than three times: a period needs more.")
    times = np.asarray(series.ts, np.float64)[seen]
    y = _over_sensors(np.asarray(series.ys, np.float64), there)[seen]
    times = times - times[0]
    span, gap = _span(times)
    basis = [np.ones_like(times), times / max(span, 1e-30)]
    turns = lambda f: [np.cos(2 * np.pi * f * times), np.sin(2 * np.pi * f * times)]
    if season_period is not None:
        check_positive("season_period", season_period)
        check_season("season_period", season_period, times)
        basis += turns(1 / season_period) + turns(2 / season_period)
    left = _off(np.stack([y], axis=1), np.stack(basis, axis=1))[:, 0]
    frequencies = np.arange(2.0, max(span / (2 * gap), 3.0)) / (2 * span)
    off = lambda f: _off(left[:, None], np.stack(turns(f), axis=1))[:, 0]
    power = lambda f: np.sum((left - off(f)) ** 2)
    near = np.linspace(-0.5, 0.5, 21) / (2 * span) + _most(frequencies, power)
    return float(1 / _most(near, power))


def _most(values: np.ndarray, function: Callable[[float], float]) -> float:
    """Return the value at which a function is largest."""
    return values[int(np.argmax([function(value) for value in values]))]


def _span(times: np.ndarray) -> tuple[float, float]:
    """Return how long a record is without its holes, and its usual gap."""
    gaps, gap = np.diff(times), usual_gap(times)
    return float(np.sum(gaps) - np.sum(np.maximum(gaps - _LONG * gap, 0))), gap


def _over_sensors(ys: np.ndarray, there: np.ndarray) -> np.ndarray:
    """Return the mean over the sensors that are there, each less its own mean."""
    counts = np.maximum(there.sum(axis=0), 1)
    centered = np.where(there, ys - np.where(there, ys, 0).sum(axis=0) / counts, 0)
    return centered.sum(axis=1) / np.maximum(there.sum(axis=1), 1)


def _off(y: np.ndarray, basis: np.ndarray) -> np.ndarray:
    """Return what least squares leave of `y`."""
    return y - basis @ np.linalg.lstsq(basis, y, rcond=None)[0]
