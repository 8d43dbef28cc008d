"""Metrics that are one real number a step, under flat names, and their means."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np


def scalars(metrics: Any) -> dict[str, np.ndarray]:
    """Return the metrics that are one real number a step; `parts/a` is a nested one.

    All else stays out: vectors, complex numbers, strings, `RESULTS` items.
    """
    return {
        name: value for name, value in _flat(metrics, "") if _is_number_a_step(value)
    }


def mean(values: np.ndarray) -> float:
    """Return the mean of those `values` that are finite; NaN if none is."""
    finite = values[np.isfinite(values)]
    with np.errstate(over="ignore"):  # what overflows is infinite, and said to be so
        return float(finite.mean()) if finite.size else math.nan


def doubles(values: np.ndarray) -> np.ndarray:
    """Return `values`, of whatever real dtype, in double precision."""
    with np.errstate(over="ignore"):
        return np.asarray(values, np.float64)


def _flat(metrics: Any, name: str) -> Iterator[tuple[str, Any]]:
    if isinstance(metrics, Mapping):
        items = list(metrics.items())
    elif isinstance(metrics, list | tuple):
        items = list(enumerate(metrics))
    else:
        yield name, metrics
        return
    for key, value in items:
        yield from _flat(value, f"{name}/{key}" if name else str(key))


def _is_number_a_step(value: Any) -> bool:
    if not isinstance(value, np.ndarray) or value.ndim != 1:
        return False
    real = jnp.integer, jnp.floating, jnp.bool_
    return any(jnp.issubdtype(value.dtype, kind) for kind in real)
