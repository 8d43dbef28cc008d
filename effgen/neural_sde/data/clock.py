"""The clock of a record: times as users have them, and numbers that a float holds."""

import warnings
from typing import Any, NamedTuple

import jax
import numpy as np

from effgen.core.contract.masked import with_nan
from effgen.core.outcome.results import RunWarning


# A gap may lose this share of its length to the rounding of the times around it.
_MOST_LOST = 1e-3

# Gaps of times that are float32 already, in steps of their precision: lost, rounded.
_FEWEST_STEPS, _MANY_STEPS = 8, 64

_UNITS = ("W", "D", "h", "m", "s", "ms", "us", "ns")

# Nanoseconds since 1970 in 64 bits end in the years 1677 and 2262.
_FIRST, _LAST = np.datetime64("1678-01-01"), np.datetime64("2262-01-01")


class Clock(NamedTuple):
    """How times become numbers: `(ts - origin) / unit`, in float64 on the host.

    Attributes:
        origin: A number, for dates of `resolution` since 1970.
        unit: Of dates, `"s"` or another of NumPy's; `None` for times that are numbers.
        resolution: Nanoseconds, or microseconds for dates that these do not reach.
        zone: The record's time zone, if it has one.
    """

    origin: float | int
    unit: str | None
    resolution: str = "ns"
    zone: Any = None

    def numbers(self, ts: Any) -> np.ndarray:
        """Return times since the origin.

        Raises:
            TypeError: For numbers where the record has dates, or the converse, and for
                dates without a time zone where the record has one, or the converse.
            ValueError: For dates that are missing.
        """
        named, zone = _zone_of(ts)
        ts = as_times(ts)
        dates = np.issubdtype(ts.dtype, np.datetime64)
        if dates != (self.unit is not None):
            kind = "dates" if dates else "numbers"
            other = "numbers" if dates else "dates"
            raise TypeError(f"`times` are {kind}; the record has {other}: pass these.")
        if self.unit is None:
            return ts.astype(np.float64) - self.origin
        if named and (zone is None) != (self.zone is None):
            lack, has = ("no", "one") if zone is None else ("a", "none")
            raise TypeError(f"`times` have {lack} time zone and the record has {has}.")
        _check_dates("times", ts)
        finer = self.resolution if _in_reach(ts) else "us"
        origin = self._date
        kind = f"datetime64[{finer}]"
        return (ts.astype(kind) - origin.astype(kind)) / _one(self.unit)

    def times(self, numbers: Any) -> np.ndarray:
        """Return what `numbers` are times of; of a time zone, in UTC."""
        numbers = np.asarray(numbers, np.float64)
        if self.unit is None:
            return numbers + self.origin
        steps = _one(self.unit) / _one(self.resolution)
        since = np.round(numbers * steps).astype(f"timedelta64[{self.resolution}]")
        return self._date + since

    @property
    def _date(self) -> np.datetime64:
        return np.datetime64(int(self.origin), self.resolution)  # pyright: ignore


def as_times(ts: Any) -> np.ndarray:
    """Return times as NumPy's: pandas' too, in UTC, and the starts of its periods.

    Raises:
        TypeError: For objects that are no dates without a time zone.
    """
    ts = _of_pandas(ts)
    if isinstance(ts, list | tuple) and any(hasattr(t, "to_datetime64") for t in ts):
        ts = [t.to_datetime64() if hasattr(t, "to_datetime64") else t for t in ts]
    ts = np.asarray(with_nan(ts))
    if ts.dtype != object:
        return ts
    if any(getattr(t, "tzinfo", None) is not None for t in ts.flat):
        raise TypeError("times with a zone must be an index of pandas, or in UTC.")
    try:
        return ts.astype("datetime64[us]")
    except (TypeError, ValueError) as error:
        raise TypeError(
            "times must be numbers, dates of NumPy, or an index of pandas; got objects "
            f"such as {next(ts.flat, None)!r}."
        ) from error


def _of_pandas(ts: Any) -> Any:
    """Return pandas' times as dates without a zone, and anything else as it is."""
    ts = getattr(ts, "array", ts) if hasattr(ts, "to_numpy") else ts
    if hasattr(ts, "to_timestamp"):
        ts = ts.to_timestamp()
    if getattr(ts, "tz", None) is not None and hasattr(ts, "tz_localize"):
        ts = ts.tz_convert("UTC").tz_localize(None)
    return ts.to_datetime64() if hasattr(ts, "to_datetime64") else ts


def _zone_of(ts: Any) -> tuple[bool, Any]:
    """Return whether times may have a time zone, and which."""
    if isinstance(ts, list | tuple) and len(ts):
        ts = ts[0]
    ts = getattr(ts, "array", ts) if hasattr(ts, "to_numpy") else ts
    return hasattr(ts, "tz"), getattr(ts, "tz", None)


def clock_of(ts: Any, unit: str) -> Clock | None:
    """Return the clock that a record needs, or `None` where its times will do.

    Dates need one, and numbers whose gaps the working precision would round by more
    than a thousandth: Unix seconds in float32, which are 128 s apart.

    Raises:
        ValueError: For dates that are missing, or a unit that has no length.
    """
    if isinstance(ts, jax.Array):
        return None
    zone = _zone_of(ts)[1]
    ts = as_times(ts)
    if np.issubdtype(ts.dtype, np.datetime64):
        if unit not in _UNITS:
            raise ValueError(f"`unit` is {unit!r}: pass one of {list(_UNITS)}.")
        _check_dates("ts", ts)
        resolution = "ns" if _in_reach(ts) else "us"
        first = ts.min().astype(f"datetime64[{resolution}]")
        return Clock(int(first.astype(np.int64)), unit, resolution, zone)
    if not loses_gaps(ts):
        return None
    return Clock(float(np.min(ts)), None)


def _check_dates(name: str, ts: np.ndarray) -> None:
    missing = np.argwhere(np.isnat(ts))
    if not ts.size or len(missing):
        what = f"missing at {tuple(missing[0].tolist())}" if ts.size else "empty"
        raise ValueError(f"`{name}` are {what}: a missing value is NaN in `ys`.")


def _in_reach(ts: np.ndarray) -> bool:
    """Return whether nanoseconds reach all dates."""
    return bool(np.all((ts > _FIRST) & (ts < _LAST)))


def loses_gaps(ts: np.ndarray) -> bool:
    """Return whether the working precision rounds gaps between times away.

    Of times that it has rounded already, whether a gap is below eight of its steps.
    """
    if ts.dtype.kind not in "iuf" or ts.size < 2:
        return False
    if ts.dtype in (np.float32, np.float16):
        return _coarsest(ts) < _FEWEST_STEPS
    whole = ts.astype(np.float64)
    short = whole.astype(jax.dtypes.canonicalize_dtype(np.float64))
    gaps = np.diff(whole, axis=-1)
    lost = np.abs(np.diff(short.astype(np.float64), axis=-1) - gaps)
    return bool(np.any(lost > _MOST_LOST * np.abs(gaps)))


def _coarsest(ts: np.ndarray) -> float:
    """Return how many steps of the times' own precision the shortest gap has."""
    gaps, steps = np.abs(np.diff(ts, axis=-1)), np.spacing(np.abs(ts[..., 1:]))
    return float(np.min(gaps / steps, initial=np.inf, where=gaps > 0))


def warn_of_rounded(ts: Any) -> None:
    """Warn of times in float32 whose gaps are rounded by more than a hundredth."""
    ts = np.asarray(ts)
    if ts.dtype not in (np.float32, np.float16) or ts.shape[-1:] in ((), (0,), (1,)):
        return
    count = _coarsest(ts)
    if count < _MANY_STEPS:
        warnings.warn(
            f"`ts` are {ts.dtype} and about {np.max(np.abs(ts)):.6g}: gaps are rounded "
            f"by up to {100 / count:.2g} %. Pass them in float64, or less the first.",
            RunWarning,
            stacklevel=5,
        )


def warn_of_origin(clock: Clock) -> None:
    """Say from where a model that depends on the time will see it."""
    warnings.warn(
        f"times are taken from {clock.times(0.0)} on, since the working precision or a "
        "number can't hold them: `drift` and the linear part see the time since then.",
        RunWarning,
        stacklevel=5,
    )


def _one(unit: Any) -> np.timedelta64:
    """Return one of `unit`, such as `"D"`."""
    return np.timedelta64(1, unit)
