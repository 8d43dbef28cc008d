"""Metrics that are one real number a step, under flat names, and their means."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from .job import Chunk


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


class Window:
    """The steps since a run's last yield: means over the sound ones, and a count."""

    def __init__(self, num_skipped: int) -> None:
        """Begin where `num_skipped` steps of the run were skipped."""
        self.before = num_skipped
        self.clear()

    def clear(self) -> None:
        """Begin anew after the last step."""
        self.stop: int | None = None
        self.num_skipped = 0
        self.values: dict[str, list[np.ndarray]] = {}

    def add(self, chunk: Chunk, num_skipped: int) -> None:
        """Add a chunk, at whose end `num_skipped` steps of the run were skipped."""
        skipped, self.before = num_skipped - self.before, num_skipped
        self.num_skipped += skipped
        self.stop = chunk.stop
        # A skipped step is a chunk of its own: what it reported says nothing of the
        # training, finite or not.
        sound = skipped < chunk.stop - chunk.start
        for name, values in scalars(chunk.metrics).items():
            found = doubles(values if sound else values[:0])
            self.values.setdefault(name, []).append(found)

    def means(self) -> dict[str, float | None]:
        """Return each metric's mean over its finite values; `None` without any."""
        means = {n: mean(np.concatenate(parts)) for n, parts in self.values.items()}
        return {
            n: value if math.isfinite(value) else None for n, value in means.items()
        }


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
