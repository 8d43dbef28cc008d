"""Series as users have them: their own times and lengths, and missing entries."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from .clock import loses_gaps


_STANDING = 1e-2  # of a turn: the tolerance of phases at times in float32


class Series(NamedTuple):
    """One series, or a batch of them with one more leading axis.

    A batch whose series have `ts` and `mask` in common may have one of each.

    Attributes:
        ts: Times in order, shape `(obs,)`.
        ys: Values, zero where missing, shape `(obs, *shape)`.
        mask: Where there is a value, of the shape of `ys`.
        inputs: Held constant from each time to the next, shape `(obs, inputs)`, or
            `None`.
        errors: What multiplies the decoder's `scale` at each value, of the shape of
            `ys`, or `None` where all are 1. Where neither a value nor its error is
            given, it is the sensor's median.
    """

    ts: Float[Array, " obs"]
    ys: Float[Array, "obs *shape"]
    mask: Bool[Array, "obs *shape"]
    inputs: Float[Array, "obs inputs"] | None
    errors: Float[Array, "obs *shape"] | None = None

    @property
    def seen(self) -> Bool[Array, " obs"]:
        """Where at least one entry is there."""
        axes = tuple(range(self.ts.ndim, self.mask.ndim))
        return jnp.any(self.mask, axis=axes)

    @property
    def batch_axes(self) -> "Series":
        """The axes of a batch for `jax.vmap`: none for what the series share."""
        axis = None if self.ts.ndim == 1 else 0
        rest = (None if x is None else 0 for x in (self.inputs, self.errors))
        return Series(axis, 0, axis, *rest)  # pyright: ignore[reportArgumentType]


def last_seen(
    ts: Float[np.ndarray, "series obs"], seen: Bool[np.ndarray, "series obs"]
) -> Float[np.ndarray, " series"]:
    """Return when each series has its last value; minus infinity where it has none."""
    return np.max(np.where(seen, ts, -np.inf), axis=1)


def as_series(batch: Any) -> Series:
    """Return `(ts, ys, mask, inputs, errors)`, the last three optional, as a `Series`.

    Where `ys` is NaN, or `mask` false, an entry is missing. `ys` of `ts`'s shape has
    one sensor; `mask` may say it of whole times. Times that are known stay on the host.
    """
    if isinstance(batch, Series):
        return batch
    ts, ys, mask, inputs, errors = (*batch, None, None, None)[:5]
    if isinstance(ts, jax.Array):
        ts = ts if jnp.issubdtype(ts.dtype, jnp.floating) else ts.astype(float)
    else:
        ts = np.asarray(ts)
        kept = ts.dtype if np.issubdtype(ts.dtype, np.floating) else np.float64
        ts = ts.astype(jax.dtypes.canonicalize_dtype(kept))
    ys = as_numbers(ys, ts.dtype)
    if ys.ndim == ts.ndim:
        ys = ys[..., None]
    inputs = None if inputs is None else as_numbers(inputs, ys.dtype).astype(ys.dtype)
    mask = None if mask is None else jnp.asarray(mask, bool)
    ys, there = _there(ys, mask)
    if errors is not None:
        errors = as_numbers(errors, ys.dtype).astype(ys.dtype).reshape(ys.shape)
        errors = _filled(errors, there)
    return Series(ts, ys, there, inputs, errors)  # pyright: ignore[reportArgumentType]


def as_numbers(values: Any, dtype: Any) -> Array:
    """Return values of floating point as they are, any others in `dtype`.

    The others are converted on the host, where JAX would wrap integers of 64 bits.
    """
    if not isinstance(values, jax.Array):
        values = np.asarray(values)
        if not jnp.issubdtype(values.dtype, jnp.floating):
            values = values.astype(dtype)
    found = jnp.asarray(values)
    return found if jnp.issubdtype(found.dtype, jnp.floating) else found.astype(dtype)


@jax.jit
def _there(ys: Array, mask: Array | None) -> tuple[Array, Array]:
    """Return the values, zero where they are missing, and where they are not."""
    there = ~jnp.isnan(ys)
    if mask is not None:
        missing = ys.ndim - mask.ndim
        there &= mask.reshape(mask.shape + (1,) * missing)
    return jnp.where(there, ys, 0), there


@jax.jit
def _filled(errors: Array, there: Array) -> Array:
    """Return errors; where neither value nor error is given, the sensor's median."""
    usual = jnp.nanmedian(jnp.where(there, errors, jnp.nan), axis=-2, keepdims=True)
    usual = jnp.where(jnp.isnan(usual), 1, usual)
    given = there | (jnp.isfinite(errors) & (errors > 0))
    return jnp.where(given, errors, usual)


def share_times(series: Series) -> Series:
    """Return a batch with one `ts` and one `mask` for all series: the first's.

    What depends on times alone is then computed once and not for each series, such as
    all matrices of the messages of a linear decoder.
    """
    return series._replace(ts=series.ts[0], mask=series.mask[0])


def times_are_shared(ts: Any, ys: Any, mask: Any) -> bool:
    """Return whether all series have the same times and the same entries."""
    there = ~np.isnan(np.asarray(ys))
    parts = [np.asarray(ts), there, np.zeros(1) if mask is None else np.asarray(mask)]
    return all(bool(np.all(part == part[:1])) for part in parts)


def pad_series(
    series: Sequence[tuple[np.ndarray, ...]],
) -> tuple[np.ndarray, ...]:
    """Return series of unequal length as one batch, padded at the end.

    Padding repeats a series' last time and has no values, and changes no result.

    Arguments:
        series: For each series `(ts, ys)` or `(ts, ys, inputs)`, of one length.

    Returns:
        `(ts, ys, mask)` or `(ts, ys, mask, inputs)`, arrays with a leading axis of
            series, ready for `effgen.Minibatches`.

    Raises:
        ValueError: If there is no series, or one has unequal lengths or no times.

    >>> ts, ys, mask = pad_series([(np.arange(3.0), np.ones(3)), (np.zeros(1), [2.0])])
    >>> ts.tolist(), mask[1, :, 0].tolist()
    ([[0.0, 1.0, 2.0], [0.0, 0.0, 0.0]], [True, False, False])
    """
    if not series:
        raise ValueError("`series` is empty: pass at least one series.")
    most = max(len(parts[0]) for parts in series)
    columns = []
    for i, parts in enumerate(series):
        lengths = {len(part) for part in parts}
        if len(lengths) != 1 or 0 in lengths:
            raise ValueError(
                f"series {i} has lengths {[len(p) for p in parts]}: pass as many "
                "values as times, and at least one."
            )
        columns.append([_padded(np.asarray(p, float), most) for p in parts])
    ts, ys, *inputs = (np.stack(parts) for parts in zip(*columns, strict=True))
    ys = ys[..., None] if ys.ndim == 2 else ys
    lengths = np.array([len(parts[0]) for parts in series])
    there = np.arange(most) < lengths[:, None]
    mask = there.reshape(there.shape + (1,) * (ys.ndim - 2)) & ~np.isnan(ys)
    return (ts, np.where(mask, ys, 0.0), mask, *inputs)


def _padded(rows: np.ndarray, num: int) -> np.ndarray:
    return np.concatenate([rows, np.repeat(rows[-1:], num - len(rows), axis=0)])


def merge_sensors(
    sensors: Sequence[tuple[np.ndarray, np.ndarray]],
) -> tuple[np.ndarray, np.ndarray]:
    """Return sensors with their own times as one series, NaN where missing.

    A sensor's readings of one time stay apart, in rows of equal times. Readings that
    are NaN are missing.

    Arguments:
        sensors: For each sensor `(ts, ys)`, with one value a time, in any order.

    Returns:
        `ts`, shape `(obs,)`, sorted, and `ys`, shape `(obs, sensors)`.

    Raises:
        ValueError: For no sensor, one with unequal lengths, and times that are not
            finite.

    >>> ts, ys = merge_sensors([(np.array([0.0, 2.0]), [1.0, 3.0]), ([1.0], [5.0])])
    >>> ts.tolist(), ys[:, 1].tolist()
    ([0.0, 1.0, 2.0], [nan, 5.0, nan])
    """
    if not sensors:
        raise ValueError("`sensors` is empty: pass at least one `(ts, ys)`.")
    rows = {}
    for j, (times, values) in enumerate(sensors):
        times, values = np.asarray(times, float), np.asarray(values, float)
        if not np.all(np.isfinite(times)):
            raise ValueError(f"sensor {j} has times that are not finite.")
        if times.ndim != 1 or times.shape != values.shape:
            raise ValueError(
                f"sensor {j} has {times.shape} times and {values.shape} values: pass "
                "one value for each time."
            )
        order = np.argsort(times, kind="stable")
        times, values = times[order], values[order]
        # The n-th reading of a time goes to the n-th row of that time.
        again = np.arange(len(times)) - np.searchsorted(times, times, side="left")
        for time, turn, value in zip(times, again, values, strict=True):
            row = rows.setdefault(
                (float(time), int(turn)), np.full(len(sensors), np.nan)
            )
            row[j] = value
    found = sorted(rows)
    return np.array([time for time, _ in found]), np.array([rows[key] for key in found])


def check_no_dates(ts: np.ndarray) -> None:
    """Raise `ValueError` for times that are no numbers, where no unit is asked for."""
    if not np.issubdtype(ts.dtype, np.number):
        raise ValueError("`ts` must be numbers: pass dates as years or days since one.")
    check_no_written_dates(ts)


def check_no_written_dates(ts: np.ndarray) -> None:
    """Raise `ValueError` for numbers such as 20240131, whose gaps are no times."""
    if _are_written_dates(ts):
        raise ValueError(
            f"`ts` are dates written as whole numbers, such as {ts.flat[0]}, and their "
            "gaps are no times: pass years, or days since one."
        )


def _are_written_dates(ts: np.ndarray) -> bool:
    """Return whether numbers are such as 20240131, in more than one month."""
    if ts.size < 2 or not np.all(np.isfinite(ts)) or np.any(ts != np.floor(ts)):
        return False
    years, months, days = ts // 10_000, ts // 100 % 100, ts % 100
    of_dates = (1_800 <= years) & (years <= 2_200) & (1 <= months) & (months <= 12)
    several = np.any(ts // 100 != ts.flat[0] // 100)
    return bool(several and np.all(of_dates & (1 <= days) & (days <= 31)))


def _shortest(ts: np.ndarray) -> float:
    gaps = np.abs(np.diff(ts.astype(np.float64), axis=-1))
    return float(np.min(gaps, initial=np.inf, where=gaps > 0))


def check_times(ts: np.ndarray, t0: float | None) -> None:
    """Check that times are finite, in order, and not before `t0`.

    Arguments:
        ts: Shape `(obs,)` or `(series, obs)`.
        t0: The first time that the model knows, or `None`.

    Raises:
        ValueError: Where they are not, naming the series and the index.
    """
    ts = np.atleast_2d(np.asarray(ts))
    if loses_gaps(ts):
        raise ValueError(
            f"`ts` are about {np.max(ts):.6g} and their gaps are lost in float32: "
            "subtract the first time, in float64, before they become JAX arrays. Where "
            f"they begin near zero, the shortest gap, {_shortest(ts):.3g}, is lost: "
            "give both observations one time."
        )
    _complain(
        ~np.isfinite(ts), ts, "times must be finite; a missing value is NaN in `ys`"
    )
    backward = np.zeros(ts.shape, bool)
    backward[:, 1:] = ts[:, 1:] < ts[:, :-1]
    _complain(backward, ts, "sort each series, and pad it by repeating its last time")
    if t0 is not None:
        _complain(ts < t0, ts, f"no time may be before the model's `t0`, {t0}")


def check_season(name: str, period: float, ts: np.ndarray) -> None:
    """Raise `ValueError` for a period whose phase is the same at all times of a series.

    Arguments:
        name: The name of the period in messages.
        period: In the unit of `ts`.
        ts: Shape `(obs,)` or `(series, obs)`.
    """
    ts = np.atleast_2d(np.asarray(ts, np.float64))
    turns = (ts - ts[:, :1]) / period
    if np.all(np.abs(np.exp(2j * np.pi * turns) - 1) < _STANDING):
        raise ValueError(
            f"`{name}` is {period:.6g}, and times are whole periods apart, or far less "
            "than one. They do not determine it. Pass it in the unit of `ts`."
        )


def check_values(ys: np.ndarray, mask: np.ndarray) -> None:
    """Raise `ValueError` for values that are infinite where `mask` is true."""
    bad = np.argwhere(np.isinf(np.asarray(ys)) & np.asarray(mask))
    if len(bad):
        raise ValueError(
            f"`ys` is infinite at {tuple(bad[0].tolist())}: mark missing values by NaN "
            "or in `mask`."
        )


def check_numbers(name: str, value: Any) -> None:
    """Raise `TypeError` for values that are no real numbers."""
    dtype = jnp.result_type(value) if isinstance(value, jax.Array) else value.dtype
    if dtype.kind not in "biuf" and not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(
            f"`{name}` have dtype {dtype}: pass real numbers, with NaN in `ys` where a "
            "value is missing."
        )


def check_mask(mask: np.ndarray) -> None:
    """Raise `ValueError` for values that are neither 0 nor 1."""
    if np.any((mask != 0) & (mask != 1)):
        raise ValueError("`mask` has values that are neither 0 nor 1.")


def check_inputs(inputs: np.ndarray) -> None:
    """Raise `ValueError` for inputs that are not finite."""
    bad = np.argwhere(~np.isfinite(inputs))
    if len(bad):
        raise ValueError(
            f"`inputs` are not finite at {tuple(bad[0].tolist())}: fill them in; only "
            "values of `ys` may be missing."
        )


def check_errors(errors: np.ndarray, there: np.ndarray) -> None:
    """Raise `ValueError` for errors that are not positive where there is a value."""
    good = np.isfinite(errors) & (errors > 0)
    bad = np.argwhere(~good.reshape(there.shape) & there)
    if len(bad):
        raise ValueError(
            f"`errors` are not positive at {tuple(bad[0].tolist())}: pass the standard "
            "error of each value."
        )


def _complain(bad: np.ndarray, ts: np.ndarray, remedy: str) -> None:
    found = np.argwhere(bad)
    if len(found):
        i, j = found[0]
        raise ValueError(f"`ts` is {ts[i, j]} in series {i} at index {j}: {remedy}.")


def check_shapes(ts: Any, ys: Any, mask: Any, inputs: Any, errors: Any = None) -> None:
    """Raise `ValueError` for arrays, or their shapes, that do not fit together."""
    if len(ts.shape) not in (1, 2) or 0 in ts.shape:
        raise ValueError(
            f"`ts` has shape {ts.shape}: pass (obs,) or (series, obs), not empty."
        )
    for name, value in (("ys", ys), ("mask", mask), ("inputs", inputs)):
        if value is not None and value.shape[: len(ts.shape)] != ts.shape:
            raise ValueError(
                f"`{name}` has shape {value.shape} and `ts` {ts.shape}: their leading "
                "axes must be the same."
            )
    if inputs is not None and len(inputs.shape) != len(ts.shape) + 1:
        raise ValueError(
            f"`inputs` have shape {inputs.shape}: pass {(*ts.shape, 'inputs')}."
        )
    if errors is not None and errors.shape != ys.shape:
        raise ValueError(
            f"`errors` have shape {errors.shape} and `ys` {ys.shape}: pass one for "
            "each value."
        )
    if mask is not None and mask.shape not in (ts.shape, ys.shape):
        raise ValueError(
            f"`mask` has shape {mask.shape}: pass that of `ts`, {ts.shape}, or of "
            f"`ys`, {ys.shape}."
        )
