"""Records and answers as pandas has them; pandas itself is imported to answer alone."""

from collections.abc import Mapping
from typing import Any

import equinox as eqx
import numpy as np

from effgen.core.contract.masked import with_nan
from effgen.core.outcome.extras import needed


_ROUNDING = 1e-3  # of a unit, such as what numbers leave of dates
_OF_TIMES = ("to_pydatetime", "to_timestamp")  # indices of dates and of periods


class Labels(eqx.Module):
    """What a record's frame calls its times and columns, given back with answers.

    Attributes:
        columns: The names of the columns.
        name: The index's name.
        zone: Its time zone.
        unit: Its resolution.
        period: The frequency of an index of periods.
        inputs: The names of the inputs.
    """

    columns: tuple[Any, ...] | None = eqx.field(static=True, default=None)
    name: Any = eqx.field(static=True, default=None)
    zone: Any = eqx.field(static=True, default=None)
    unit: str | None = eqx.field(static=True, default=None)
    period: str | None = eqx.field(static=True, default=None)
    inputs: tuple[Any, ...] | None = eqx.field(static=True, default=None)

    def check_inputs(self, times: Any, inputs: Any) -> None:
        """Raise `ValueError` for inputs of other times, or in another order."""
        check_aligned(times, inputs, "inputs", of="times")
        names = names_of(inputs)
        if None not in (names, self.inputs) and names != self.inputs:
            raise ValueError(
                f"`inputs` are {list(names or ())}, and those of the record "
                f"{list(self.inputs or ())}: pass them by name in this order."
            )

    def index(self, ts: Any) -> Any:
        """Return times as an index of the record's kind."""
        pd = needed("pandas", by="to_pandas()", extra="plots")
        ts = np.asarray(ts)
        index = pd.Index(ts, name=self.name)
        if self.period is not None:
            periods = index.to_period(self.period)
            return periods if (periods.to_timestamp() == index).all() else index
        if self.unit is not None and hasattr(index, "as_unit"):
            rounded = index.round(self.unit)
            off = abs(index - rounded) / pd.Timedelta(1, self.unit)
            # Of times between those of the record's unit the unit stays their own.
            index = rounded.as_unit(self.unit) if np.all(off < _ROUNDING) else index
        if self.zone is not None:
            index = index.tz_localize("UTC").tz_convert(self.zone)
        return index

    def table(self, ts: Any, statistics: Mapping[str, Any]) -> Any:
        """Return statistics as a frame: a row for each time, a column for each.

        Of several columns of the record each has its own statistics, by two levels of
        names. Of a batch the index has the series' number before the time.

        Raises:
            ValueError: For values that are no numbers of columns, as pictures.
        """
        pd = needed("pandas", by="to_pandas()", extra="plots")
        ts = np.asarray(ts)
        found = {name: np.asarray(value) for name, value in statistics.items()}
        if ts.ndim == 2:
            frames = [
                self.table(ts[i], {name: value[i] for name, value in found.items()})
                for i in range(len(ts))
            ]
            return pd.concat(dict(enumerate(frames)), names=["series"])
        values = np.stack(list(found.values()), axis=-1)
        if values.ndim != 3:
            raise ValueError(
                f"values have shape {values.shape[1:-1]} a time: only columns of "
                "numbers make a table."
            )
        size = values.shape[1]
        columns = range(size) if self.columns is None else self.columns
        names = pd.MultiIndex.from_product([list(columns), list(found)])
        if size == 1:
            names = pd.Index(list(found))
        return pd.DataFrame(
            values.reshape(len(ts), -1), index=self.index(ts), columns=names
        )


_REMEDIES = {
    "ts": "`ys.index`, and `{0}.reindex(ys.index)`",
    "times": "`{0}.reindex(times)`",
}


def labels_of(ts: Any, ys: Any) -> Labels:
    """Return the names of a record that is pandas'.

    Raises:
        ValueError: For an index of times and values of other times.
    """
    columns = None
    if hasattr(ys, "to_numpy"):
        columns = tuple(ys.columns) if hasattr(ys, "columns") else (ys.name,)
        check_aligned(ts, ys, "ys")
    times = getattr(ts, "array", ts) if hasattr(ts, "to_numpy") else ts
    period = str(times.freqstr) if hasattr(times, "to_timestamp") else None
    return Labels(
        columns,
        getattr(ts, "name", None),
        getattr(times, "tz", None),
        getattr(times, "unit", None),
        period,
    )


def _has_times(ts: Any, name: str) -> bool:
    return hasattr(ts, name) or getattr(ts, "dtype", np.dtype(bool)).kind == "M"


def _equal(index: Any, ts: Any) -> bool:
    """Return whether an index has the times of an array, or of a list."""
    own = np.asarray(index.to_timestamp() if hasattr(index, "to_timestamp") else index)
    ts = np.asarray(ts)
    return own.shape == ts.shape and bool(np.all(own == ts))


def names_of(values: Any) -> tuple[Any, ...] | None:
    """Return the names of a frame's columns, `None` of what is no frame."""
    has = hasattr(values, "to_numpy") and hasattr(values, "columns")
    return tuple(values.columns) if has else None


def check_aligned(ts: Any, values: Any, name: str, *, of: str = "ts") -> None:
    """Raise `ValueError` where the values' own index has other times than `of`."""
    if not hasattr(values, "to_numpy") or not hasattr(values, "index"):
        return
    own = values.index
    if any(hasattr(own, x) and _has_times(ts, x) for x in _OF_TIMES):
        same = own.equals(ts) if hasattr(ts, "equals") else _equal(own, ts)
        if not same:
            raise ValueError(
                f"`{of}` and the index of `{name}` are not the same times: pass "
                f"{_REMEDIES[of].format(name)}."
            )


def as_values(ys: Any) -> Any:
    """Return values as numbers, NaN where pandas or a masked array has none."""
    if not hasattr(ys, "to_numpy"):
        return with_nan(ys)
    return ys.to_numpy(dtype=np.float64, na_value=np.nan)


def as_doubles(ys: Any) -> np.ndarray:
    """Return values as numbers in float64, NaN where there are none."""
    return np.asarray(as_values(ys), np.float64)
