"""The record that a posterior is of: series, clock, names, and times asked for."""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float

from effgen.core.contract.counts import check_count
from effgen.core.contract.keys import check_key
from effgen.core.contract.masked import with_nan
from effgen.neural_sde.data.clock import Clock, as_times, clock_of, warn_of_origin
from effgen.neural_sde.data.frames import (
    Labels,
    as_values,
    check_aligned,
    labels_of,
    names_of,
)
from effgen.neural_sde.data.rows import with_rows
from effgen.neural_sde.data.series import Series, as_series, last_seen
from effgen.neural_sde.filters import cautions
from effgen.neural_sde.modeling.checks import check_batch, check_series
from effgen.neural_sde.modeling.model import LatentSDE


_DEFAULT_STEPS = 200


class Record(eqx.Module):
    """Series as a batch, and how answers return to what the user has.

    Attributes:
        series: The batch, at times that the model sees.
        single: Whether the user has one series, without a leading axis.
        clock: `None` where times are numbers as they are.
        own: The times as the user has them, where there is a clock or an index of
            pandas.
        labels: The names of times and columns.
    """

    series: Series
    single: bool = eqx.field(static=True)
    clock: Clock | None = eqx.field(static=True, default=None)
    own: np.ndarray | None = None
    labels: Labels = Labels()

    def out(self, tree: Any) -> Any:
        """Return an answer without the axis of series where the user has one."""
        return jax.tree.map(lambda x: x[0], tree) if self.single else tree

    def times(self, numbers: Any) -> Any:
        """Return times as the user has them."""
        return numbers if self.clock is None else self.clock.times(numbers)

    def asked(self, times: Any, numbers: Any) -> Any:
        """Return times asked for, or the record's own for `None`, as the user has them.

        Those of a clock, or of pandas, are the user's own: `numbers` are rounded.
        """
        if self.own is None:
            return numbers
        found = self.own if times is None else np.atleast_1d(as_times(times))
        return np.broadcast_to(np.asarray(found), np.shape(numbers))

    def keys(self, key: Array, num_paths: int, *, name: str = "num_paths") -> Array:
        """Return a key for each series, once paths have been checked by their name.

        Raises:
            TypeError: For no key.
            ValueError: For no paths.
        """
        check_key(key)
        check_count(name, num_paths)
        return jax.random.split(key, self.series.ts.shape[0])

    def rows(self, times: Any) -> np.ndarray:
        """Return times asked for as numbers, `(series, times)`.

        Raises:
            TypeError: For traced times, and ones of another kind than the record's.
            ValueError: For ones that are not finite, or of a shape that does not fit.
        """
        if isinstance(times, Tracer):
            raise TypeError("`times` are traced: pass them as NumPy arrays.")
        rows = np.asarray(times) if self.clock is None else self.clock.numbers(times)
        if rows.dtype.kind in "iuf":  # rounded as the record's: equal times stay equal
            rows = rows.astype(self.series.ts.dtype)
        if rows.dtype.kind != "f" or not np.all(np.isfinite(rows)):
            raise ValueError("`times` must be finite numbers, as those of the series.")
        rows = np.atleast_1d(rows)
        num = len(self.series.ts)
        if rows.ndim > 2 or (rows.ndim == 2 and len(rows) not in (1, num)):
            raise ValueError(
                f"`times` have shape {rows.shape}: pass (times,) or ({num}, times)."
            )
        if rows.shape[-1] == 0:
            raise ValueError("`times` are empty: pass at least one.")
        return np.broadcast_to(rows, (num, rows.shape[-1]))

    @property
    def last_values(self) -> Float[np.ndarray, " series"]:
        """When each series has its last value; its first time, where it has none."""
        ts, seen = np.asarray(self.series.ts), self.series.seen
        if isinstance(seen, Tracer):
            return ts[:, -1]
        return np.maximum(last_seen(ts, np.asarray(seen)), ts[:, 0])

    def check_later(self, times: Any, last: Float[np.ndarray, " series"]) -> None:
        """Raise `ValueError` for times that are before a series' last observation."""
        rows = self.rows(times)
        early = rows[:, 0] < last
        if np.any(early):
            i = int(np.argmax(early))
            begin, end = self.times(rows[i, 0]), self.times(last[i])
            raise ValueError(
                f"`times` begin at {begin}, before the last observation at {end} of "
                f"series {i}: for those use `observations`."
            )

    def merged(
        self,
        times: ArrayLike | None,
        inputs: ArrayLike | None,
        t0: float | None,
    ) -> tuple[Series, np.ndarray]:
        """Return the series with rows for `times`, and where these are.

        Raises:
            ValueError: For times that are not sorted or before the first, and inputs
                that do not fit.

        Warns:
            RunWarning: Where the last known inputs are held.
        """
        series = self.series
        num, length = series.ts.shape
        if inputs is not None and (series.inputs is None or times is None):
            lack = "the series has none" if series.inputs is None else "`times` are not"
            raise ValueError(f"`inputs` are given and {lack}.")
        if times is None:
            return series, np.tile(np.arange(length), (num, 1))
        self.labels.check_inputs(times, inputs)
        rows, known = self.rows(times), np.asarray(series.ts)
        first = known[:, 0] if t0 is None else t0
        if np.any(np.diff(rows, axis=1) < 0) or np.any(rows[:, :1].T < first):
            raise ValueError(
                "`times` must be sorted and not before the first time of the series."
            )
        if series.inputs is not None and inputs is None:
            cautions.of_held_inputs(rows > known[:, -1:])
        return with_rows(series, rows, as_values(inputs))


def recorded(
    model: LatentSDE,
    ts: Any,
    ys: Any,
    mask: Any,
    inputs: Any,
    errors: Any,
    *,
    dt: float | None,
    unit: str,
) -> tuple[LatentSDE, Record]:
    """Return the model with its step, on the record's clock, and the record, checked.

    It raises and warns as `posterior`.
    """
    if isinstance(ts, Tracer) or isinstance(dt, Tracer):
        name = "ts" if isinstance(ts, Tracer) else "dt"
        raise TypeError(
            f"`{name}` is traced, and says how many steps there are: close over it as "
            "a NumPy array or a number; `ys`, `errors` and the model may be traced."
        )
    if not isinstance(model, LatentSDE):
        raise TypeError(f"`model` is a {type(model).__name__}: pass a `LatentSDE`.")
    labels = dataclasses.replace(labels_of(ts, ys), inputs=names_of(inputs))
    for name, values in (("mask", mask), ("inputs", inputs), ("errors", errors)):
        check_aligned(ts, values, name)
    clock = clock_of(ts, unit)
    own = None
    if clock is not None or hasattr(ts, "to_numpy"):
        own = np.atleast_2d(as_times(ts))
    if clock is not None:
        ts = clock.numbers(ts)
        model = _since(model, clock)
        if clock.unit is not None and dt is None and not isinstance(model.dt, Tracer):
            cautions.of_unit(model.dt, ts, clock.unit)
    ts = ts if isinstance(ts, jax.Array) else np.asarray(with_nan(ts))
    columns = (as_values(ys), mask, as_values(inputs), as_values(errors))
    given = [
        _array(name, x)
        for name, x in zip(("ys", "mask", "inputs", "errors"), columns, strict=True)
    ]
    check_batch(model, (ts, *given))
    single = ts.ndim == 1
    series = as_series((ts, *given))
    check_series(model, (ts, *given))
    if single:
        series = jax.tree.map(lambda x: x[None], series)
    record = Record(series, single, clock, own, labels)
    return dataclasses.replace(model, dt=_step(model, series, dt)), record


def _array(name: str, values: Any) -> Array | None:
    """Return values as an array.

    Raises:
        TypeError: For values that are not numbers.
    """
    if values is None or isinstance(values, jax.Array):
        return values
    found = np.asarray(values)
    if found.dtype.kind not in "biufcV":
        raise TypeError(
            f"`{name}` have dtype {found.dtype}: pass numbers, with NaN where a value "
            "is missing."
        )
    if found.dtype.kind in "iu":  # of 64 bits, JAX would wrap them
        found = found.astype(np.float64)
    return jnp.asarray(found)


def _step(model: LatentSDE, series: Series, dt: float | None) -> float:
    """Return the longest step, by default the model's own, or a 200th of the series."""
    dt = (model.dt or None) if dt is None else dt
    if dt is None:
        first = series.ts[:, 0] if model.t0 is None else model.t0
        span = float(np.max(np.asarray(series.ts[:, -1] - first)))
        dt = span / _DEFAULT_STEPS if span > 0 else 1.0
    number = isinstance(dt, int | float | np.number)
    if not (number and np.isfinite(dt) and dt > 0):
        raise ValueError(f"`dt` is {dt!r}: pass a positive length of time.")
    return dt


def _since(model: LatentSDE, clock: Clock) -> LatentSDE:
    """Return the model with `t0` on the clock."""
    if model.drift is not None or not model.linear.time_invariant:
        warn_of_origin(clock)
    if model.t0 is None:
        return model
    if clock.unit is not None:
        raise ValueError(
            f"`t0` is {model.t0} and `ts` are dates: leave `t0` out, or pass numbers."
        )
    return dataclasses.replace(model, t0=model.t0 - clock.origin)
