"""Records of dates or pandas, as numbers for fits, and back for forecasts."""

from typing import Any, NamedTuple

import numpy as np

from effgen.neural_sde.data.clock import Clock, as_times, clock_of
from effgen.neural_sde.data.frames import Labels, as_values, labels_of
from effgen.neural_sde.data.series import check_no_written_dates


class Dated(NamedTuple):
    """A record in numbers, and what its forecasts are given back by.

    Attributes:
        ts: Times: for dates their number of units since the first.
        ys: Values, NaN where missing.
        clock: `None` where times are numbers as they are.
        labels: The names of times and columns.
    """

    ts: np.ndarray
    ys: np.ndarray
    clock: Clock | None
    labels: Labels


def dated(ts: Any, ys: Any, unit: str) -> Dated:
    """Return a record in numbers.

    Raises:
        ValueError: For missing dates, numbers such as 20240131, a `unit` that has no
            length, and an index that is not that of the values.
    """
    labels, clock = labels_of(ts, ys), clock_of(ts, unit)
    if clock is None or clock.unit is None:
        check_no_written_dates(np.asarray(ts))
    numbers = as_times(ts) if clock is None else clock.numbers(ts)
    return Dated(numbers, np.asarray(as_values(ys)), clock, labels)


def as_asked(times: Any, numbers: Any, clock: Clock | None) -> Any:
    """Return times asked for as the user has them."""
    return numbers if clock is None else np.atleast_1d(as_times(times))
