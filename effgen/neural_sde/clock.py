"""The clock of a record: times as users have them, and numbers that a float holds."""

import warnings
from typing import Any, NamedTuple

import jax
import numpy as np

from effgen.core.results import RunWarning


# A gap may lose this share of its length to the rounding of the times around it.
_MOST_LOST = 1e-3


class Clock(NamedTuple):
    """How times become numbers: `(ts - origin) / unit`, in float64 on the host.

    **Attributes:** `origin`, a number, for dates of nanoseconds since 1970; `unit`, of
    dates, `"s"` or any other of NumPy's, `None` for times that are numbers.
    """

    origin: float | int
    unit: str | None

    def numbers(self, ts: Any) -> np.ndarray:
        """Return times since the origin.

        **Raises:** `TypeError` for numbers where the record has dates, or the converse.
        """
        ts = np.asarray(ts)
        dates = np.issubdtype(ts.dtype, np.datetime64)
        if dates != (self.unit is not None):
            kind = "dates" if dates else "numbers"
            other = "numbers" if dates else "dates"
            raise TypeError(f"`times` are {kind}; the record has {other}: pass these.")
        if self.unit is None:
            return ts.astype(np.float64) - self.origin
        since = ts.astype("datetime64[ns]") - np.datetime64(int(self.origin), "ns")
        return since / np.timedelta64(1, self.unit)

    def times(self, numbers: Any) -> np.ndarray:
        """Return what `numbers` are times of."""
        numbers = np.asarray(numbers, np.float64)
        if self.unit is None:
            return numbers + self.origin
        nanoseconds = np.timedelta64(1, self.unit) / np.timedelta64(1, "ns")
        since = np.round(numbers * nanoseconds).astype("timedelta64[ns]")
        return np.datetime64(int(self.origin), "ns") + since


def clock_of(ts: Any, unit: str) -> Clock | None:
    """Return the clock that a record needs, or `None` where its times will do.

    Dates need one, and numbers whose gaps the working precision would round by more
    than a thousandth: Unix seconds in float32, which are 128 s apart.
    """
    if isinstance(ts, jax.Array):
        return None
    ts = np.asarray(ts)
    if np.issubdtype(ts.dtype, np.datetime64):
        return Clock(int(ts.min().astype("datetime64[ns]").astype(np.int64)), unit)
    if not loses_gaps(ts):
        return None
    return Clock(float(np.min(ts)), None)


def loses_gaps(ts: np.ndarray) -> bool:
    """Return whether the working precision rounds gaps between times away.

    Of times that it has rounded already, whether a gap is below eight of its steps.
    """
    if ts.dtype.kind not in "iuf" or ts.size < 2:
        return False
    if ts.dtype in (np.float32, np.float16):
        gaps, steps = np.abs(np.diff(ts, axis=-1)), np.spacing(np.abs(ts[..., 1:]))
        return bool(np.any((gaps > 0) & (gaps < 8 * steps)))
    whole = ts.astype(np.float64)
    short = whole.astype(jax.dtypes.canonicalize_dtype(np.float64))
    gaps = np.diff(whole, axis=-1)
    lost = np.abs(np.diff(short.astype(np.float64), axis=-1) - gaps)
    return bool(np.any(lost > _MOST_LOST * np.abs(gaps)))


def warn_of_origin(clock: Clock) -> None:
    """Say from where a model that depends on the time will see it."""
    warnings.warn(
        f"times are taken from {clock.times(0.0)} on, since the working precision or a "
        "number can't hold them: `drift` and the linear part see the time since then.",
        RunWarning,
        stacklevel=4,
    )
