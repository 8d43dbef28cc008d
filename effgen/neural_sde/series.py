"""Series as users have them: their own times and lengths, and missing entries."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float


class Series(NamedTuple):
    """One series, or a batch of them with one more leading axis.

    **Attributes:** `ts`, times in order; `ys`, values, zero where missing; `mask`,
    where there is a value; `inputs`, held constant from each time to the next, or
    `None`. A batch whose series have `ts` and `mask` in common may have one of each.
    """

    ts: Float[Array, " obs"]
    ys: Float[Array, "obs *shape"]
    mask: Bool[Array, "obs *shape"]
    inputs: Float[Array, "obs inputs"] | None

    @property
    def seen(self) -> Bool[Array, " obs"]:
        """Where at least one entry is there."""
        axes = tuple(range(self.ts.ndim, self.mask.ndim))
        return jnp.any(self.mask, axis=axes)

    @property
    def batch_axes(self) -> "Series":
        """The axes of a batch for `jax.vmap`: none for what the series share."""
        axis = None if self.ts.ndim == 1 else 0
        return Series(axis, 0, axis, None if self.inputs is None else 0)  # pyright: ignore[reportArgumentType]


def as_series(batch: Any) -> Series:
    """Return `(ts, ys)`, `(ts, ys, mask)` or `(ts, ys, mask, inputs)` as a `Series`.

    Where `ys` is NaN, or `mask` false, an entry is missing. `ys` of `ts`'s shape has
    one sensor; `mask` may say it of whole times.
    """
    if isinstance(batch, Series):
        return batch
    ts, ys, mask, inputs = (*batch, None, None)[:4]
    ts, ys = jnp.asarray(ts), jnp.asarray(ys)
    if not jnp.issubdtype(ts.dtype, jnp.floating):
        ts = ts.astype(float)
    if not jnp.issubdtype(ys.dtype, jnp.floating):
        ys = ys.astype(ts.dtype)
    if ys.ndim == ts.ndim:
        ys = ys[..., None]
    inputs = None if inputs is None else jnp.asarray(inputs, ys.dtype)
    mask = None if mask is None else jnp.asarray(mask, bool)
    ys, there = _there(ys, mask)
    return Series(ts, ys, there, inputs)


@jax.jit
def _there(ys: Array, mask: Array | None) -> tuple[Array, Array]:
    """Return the values, zero where they are missing, and where they are not."""
    there = ~jnp.isnan(ys)
    if mask is not None:
        missing = ys.ndim - mask.ndim
        there &= mask.reshape(mask.shape + (1,) * missing)
    return jnp.where(there, ys, 0), there


def share_times(series: Series) -> Series:
    """Return a batch with one `ts` and one `mask` for all series: the first's.

    What depends on times alone, all matrices of the messages of a linear decoder among
    it, is then computed once and not for each series.
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

    **Arguments:** `series`, of `(ts, ys)` or `(ts, ys, inputs)`.

    **Returns:** `(ts, ys, mask)` or `(ts, ys, mask, inputs)`, arrays with a leading
    axis of series, ready for `effgen.Minibatches`.

    **Raises:** `ValueError` if there is no series, or one has unequal lengths.

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
    """Return sensors with their own times as one series `(ts, ys)`, NaN where missing.

    **Arguments:** `sensors`, each `(ts, ys)` with one value a time.

    >>> ts, ys = merge_sensors([(np.array([0.0, 2.0]), [1.0, 3.0]), ([1.0], [5.0])])
    >>> ts.tolist(), ys[:, 1].tolist()
    ([0.0, 1.0, 2.0], [nan, 5.0, nan])
    """
    ts = np.unique(np.concatenate([np.asarray(t, float) for t, _ in sensors]))
    ys = np.full((len(ts), len(sensors)), np.nan)
    for j, (times, values) in enumerate(sensors):
        ys[np.searchsorted(ts, np.asarray(times, float)), j] = values
    return ts, ys


def check_times(ts: np.ndarray, t0: float | None) -> None:
    """Raise `ValueError` for times that are not finite, not in order, or before `t0`.

    **Arguments:** `ts`, of shape `(obs,)` or `(series, obs)`.
    """
    ts = np.atleast_2d(np.asarray(ts))
    _complain(
        ~np.isfinite(ts), ts, "times must be finite; a missing value is NaN in `ys`"
    )
    backward = np.zeros(ts.shape, bool)
    backward[:, 1:] = ts[:, 1:] < ts[:, :-1]
    _complain(backward, ts, "sort each series, and pad it by repeating its last time")
    if t0 is not None:
        _complain(ts < t0, ts, f"no time may be before the model's `t0`, {t0}")


def check_values(ys: np.ndarray, mask: np.ndarray) -> None:
    """Raise `ValueError` for values that are infinite where `mask` is true."""
    bad = np.argwhere(np.isinf(np.asarray(ys)) & np.asarray(mask))
    if len(bad):
        raise ValueError(
            f"`ys` is infinite at {tuple(bad[0].tolist())}: mark missing values by NaN "
            "or in `mask`."
        )


def _complain(bad: np.ndarray, ts: np.ndarray, remedy: str) -> None:
    found = np.argwhere(bad)
    if len(found):
        i, j = found[0]
        raise ValueError(f"`ts` is {ts[i, j]} in series {i} at index {j}: {remedy}.")


def check_shapes(ts: Any, ys: Any, mask: Any, inputs: Any) -> None:
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
    if mask is not None and mask.shape not in (ts.shape, ys.shape):
        raise ValueError(
            f"`mask` has shape {mask.shape}: pass that of `ts`, {ts.shape}, or of "
            f"`ys`, {ys.shape}."
        )
