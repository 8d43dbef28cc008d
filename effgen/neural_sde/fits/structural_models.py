"""Structural models of a record: start values from its span and spread."""

import numpy as np
from jaxtyping import ArrayLike

from effgen.neural_sde.data.clock import Clock, clock_of
from effgen.neural_sde.data.frames import as_values, check_aligned
from effgen.neural_sde.data.grid import usual_gap
from effgen.neural_sde.data.series import (
    as_series,
    check_mask,
    check_season,
    check_shapes,
    check_times,
    check_values,
)
from effgen.neural_sde.filters import cautions
from effgen.neural_sde.modeling.checks import check_rounding
from effgen.neural_sde.modeling.model import LatentSDE
from effgen.neural_sde.modeling.parts import Cycle, Measures, Periodic, Season
from effgen.neural_sde.modeling.structure import Structure
from effgen.neural_sde.observing.counts import NegativeBinomial, Poisson
from effgen.neural_sde.observing.decoders import Decoder
from effgen.neural_sde.observing.likelihoods import AbstractLikelihood, Bernoulli


def structural(
    structure: Structure,
    ts: ArrayLike,
    ys: ArrayLike,
    mask: ArrayLike | None = None,
    *,
    loadings: ArrayLike = 1.0,
    likelihood: AbstractLikelihood | None = None,
    unit: str = "s",
) -> LatentSDE:
    """Return a structural model with start values from a record's span and spread.

    The offset is the values' mean. Each sensor's noise starts at 0.3 of its standard
    deviation, or of what it shows of the sum if that is more. A model with a
    `likelihood` is trained by `LatentSDETrainer`, not by `fit_linear`.

    Arguments:
        structure: A sum of parts, such as `level() + season(1.0)`.
        ts: Times, shape `(obs,)` or `(series, obs)`, numbers or dates.
        ys: Values, shape `(obs,)`, `(obs, sensors)` or with an axis of series before.
        mask: Where there is a value, of the shape of `ts` or `ys`. NaN are missing too.
        loadings: How much of the sum each sensor shows, shape `(sensors,)`, or one
            number for all.
        likelihood: The law of the values given the sum of the parts, such as
            `NegativeBinomial()`, by default normal noise. Of counts the sum is the
            logarithm of their mean.
        unit: The unit of time where `ts` are dates: periods and lengths are in it.

    Returns:
        The model, not yet fitted.

    Raises:
        ValueError: For fewer than two values, a sensor without any, times or shapes
            that do not fit together, infinite values, and a season that the times can't
            show.
        TypeError: For a first argument that is no sum of parts.

    Warns:
        RunWarning: For a period that is shorter than the median gap, and for sensors
            whose sizes are not those of `loadings`.
    """
    if not isinstance(structure, Structure):
        raise TypeError(
            f"`structure` is a {type(structure).__name__}: pass a sum of parts, such "
            "as `level() + season(1.0)`."
        )
    check_aligned(ts, ys, "ys")
    clock = clock_of(ts, unit)
    ts = ts if clock is None else clock.numbers(ts)
    ts, ys = (np.asarray(x) for x in (ts, as_values(ys)))
    check_shapes(ts, ys, None if mask is None else np.asarray(mask), None)
    check_times(ts, None)
    if mask is not None:
        check_mask(np.asarray(mask))
    series = as_series((ts, ys, mask))
    check_values(np.asarray(series.ys), np.asarray(series.mask))
    values = np.where(series.mask, np.asarray(series.ys, np.float64), np.nan)
    if np.sum(np.isfinite(values)) < 2:
        raise ValueError("`ys` has fewer than two values: start values need more.")
    flat = _linked(likelihood, values.reshape(-1, values.shape[-1]))
    empty = np.flatnonzero(np.all(np.isnan(flat), axis=0))
    if len(empty):
        raise ValueError(f"`ys` has no value in column {empty[0]}: leave it out.")
    if likelihood is None:
        given = np.asarray(ys, np.float64).reshape(flat.shape)
        given = np.where(np.isfinite(flat), given, np.nan)
        check_rounding(np.nanmin(given, axis=0), np.nanmax(given, axis=0))
    rows = _rows(loadings, flat.shape[1])
    own = np.nanstd(flat, axis=0)
    spread = _spread(flat, own, rows)
    measures = _measures(np.asarray(series.ts), spread)
    structure = structure.started(measures)
    _check_periods(structure, np.asarray(series.ts), measures.gap, clock)
    mean = np.nanmean(flat, axis=0)
    noise = 0.3 * np.maximum(own, np.abs(rows) * spread)
    if likelihood is not None:
        decoder = Decoder(structure.readout(offset=mean, loadings=rows), likelihood)
        return LatentSDE(structure, decoder, frozen=("decoder.network",))
    return LatentSDE(structure, structure.decoder(noise, offset=mean, loadings=rows))


def _rows(loadings: ArrayLike, num: int) -> np.ndarray:
    """Return the loading of each sensor on the sum.

    Raises:
        ValueError: For another shape, values that are not finite, and zeros alone.
    """
    rows = np.asarray(loadings, np.float64)
    if rows.shape not in ((), (num,)) or not (np.all(np.isfinite(rows)) and rows.any()):
        raise ValueError(
            f"`loadings` are {rows.tolist()}: pass a number, or {num} of them, not all "
            "zero."
        )
    return np.broadcast_to(rows, (num,))


def _spread(values: np.ndarray, own: np.ndarray, rows: np.ndarray) -> float:
    """Return the standard deviation of the sum; one if no sensor varies."""
    shown = rows != 0
    sizes = own[shown] / np.abs(rows[shown])
    spread = float(np.mean(sizes))
    if spread <= 1e-12 * np.nanmax(np.abs(values[:, shown] / rows[shown])):
        return 1.0  # but for rounding they are constant
    most = np.nanmax(np.abs(values[:, shown]), axis=0)
    varies = own[shown] > 1e-6 * most  # and not by the rounding of float32
    cautions.of_sizes(sizes[varies])
    return spread


def _check_periods(
    structure: Structure, ts: np.ndarray, gap: float, clock: Clock | None
) -> None:
    """Raise or warn if the times do not resolve a season, its harmonics or a cycle."""
    unit = None if clock is None else clock.unit
    for name, part in zip(structure.names, structure.parts, strict=True):
        if isinstance(part, Season):
            for k in range(1, part.harmonics + 1):
                check_season("period", part.period / k, ts)
            cautions.of_period(name, part.period, gap, unit)
        if isinstance(part, Cycle | Periodic):
            period = float(part.parameters()["period"])
            cautions.of_period(name, period, gap, unit)


def _linked(likelihood: AbstractLikelihood | None, values: np.ndarray) -> np.ndarray:
    """Return values in the likelihood's parameter: logarithms of counts, log-odds."""
    if isinstance(likelihood, Poisson | NegativeBinomial):
        return np.log(values + 0.5)
    if isinstance(likelihood, Bernoulli):
        return 2 * (2 * values - 1)
    return values


def _measures(ts: np.ndarray, spread: float) -> Measures:
    ts = np.atleast_2d(ts).astype(np.float64)
    span = float(np.max(ts[:, -1] - ts[:, 0]))
    return Measures(span or 1.0, usual_gap(ts), spread)  # of one time: 1
