"""A record to forecast from several origins, and what a forecaster sees of it."""

from typing import NamedTuple

import numpy as np


class Record(NamedTuple):
    """A record, how far it is forecast, and its season's period, if it has one."""

    ts: np.ndarray
    ys: np.ndarray
    horizon: int
    season: float | None = None

    def origins(self, num: int) -> list[int]:
        """Return the first rows of the forecasts; the last ends with the record."""
        last = len(self.ys)
        return [last - i * self.horizon for i in range(num, 0, -1)]


class Past(NamedTuple):
    """What a forecaster sees: values are NaN from the origin on."""

    ts: np.ndarray
    ys: np.ndarray
    origin: int
    horizon: int
    season: float | None

    @property
    def until(self) -> tuple[np.ndarray, np.ndarray]:
        """Times and values before the origin."""
        return self.ts[: self.origin], self.ys[: self.origin]

    @property
    def times(self) -> np.ndarray:
        """The times that are forecast."""
        return self.ts[self.origin : self.origin + self.horizon]

    @property
    def gap(self) -> float:
        """The usual gap of the times."""
        return float(np.median(np.diff(self.ts)))


def past_of(record: Record, origin: int) -> Past:
    """Return what is known before an origin.

    Records keep their length, so all origins share one program.
    """
    ys = np.where(np.arange(len(record.ys)) < origin, record.ys, np.nan)
    return Past(record.ts, ys, origin, record.horizon, record.season)
