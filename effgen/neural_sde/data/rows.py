"""The rows that times asked for add to a series."""

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ArrayLike

from .series import Series


def with_rows(
    series: Series, rows: np.ndarray, inputs: ArrayLike | None
) -> tuple[Series, np.ndarray]:
    """Return series with a row for each time asked for, and where these are.

    `rows`, `(series, times)`, come after observations of the same time. `inputs`,
    `(times, inputs)` or `(series, times, inputs)`, hold from each of them on; where
    there are none, the last known do. Errors of values not seen are the median of a
    sensor's.
    """
    length, more = series.ts.shape[1], rows.shape[1]
    known = np.asarray(series.ts)
    ts = np.concatenate([known, rows.astype(known.dtype)], axis=1)
    order = np.argsort(ts, axis=1, kind="stable")
    index = np.argsort(order, axis=1, kind="stable")[:, length:]

    def extended(x: Array, new: Array) -> Array:
        whole = jnp.concatenate(
            [x, jnp.broadcast_to(new, (len(x), more, *x.shape[2:]))], 1
        )
        at = order.reshape(order.shape + (1,) * (whole.ndim - 2))
        return jnp.take_along_axis(whole, jnp.asarray(at), axis=1)

    held = errors = None
    if series.inputs is not None:
        new = _held(series, rows) if inputs is None else _given(series, rows, inputs)
        held = extended(series.inputs, new)
    if series.errors is not None:
        there = jnp.where(series.mask, series.errors, jnp.nan)
        middle = jnp.nanmedian(there, axis=1, keepdims=True)
        errors = extended(series.errors, jnp.where(jnp.isnan(middle), 1, middle))
    merged = Series(
        np.take_along_axis(ts, order, axis=1),  # pyright: ignore[reportArgumentType]
        extended(series.ys, jnp.zeros((), series.ys.dtype)),
        extended(series.mask, jnp.zeros((), bool)),
        held,
        errors,
    )
    return merged, index


def _held(series: Series, rows: np.ndarray) -> Array:
    """Return the last known inputs at each time."""
    assert series.inputs is not None
    before = [
        np.searchsorted(np.asarray(t), r, side="right") - 1
        for t, r in zip(series.ts, rows, strict=True)
    ]
    at = np.maximum(np.stack(before), 0)[:, :, None]
    return jnp.take_along_axis(series.inputs, jnp.asarray(at), axis=1)


def _given(series: Series, rows: np.ndarray, inputs: ArrayLike) -> Array:
    assert series.inputs is not None
    new = jnp.asarray(inputs, series.inputs.dtype)
    shape = (*rows.shape, series.inputs.shape[-1])
    if new.shape not in (shape, shape[1:]):
        raise ValueError(
            f"`inputs` have shape {new.shape} and `times` {rows.shape[1:]}: pass "
            f"{shape[1:]}, or {shape} for each series."
        )
    if not isinstance(new, Tracer) and not np.isfinite(new).all():
        raise ValueError(
            "`inputs` have entries that are not finite: an input is held from its time "
            "on, so give the last one before where there is none."
        )
    return jnp.broadcast_to(new, shape)
