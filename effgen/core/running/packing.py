"""Metrics in a device buffer: one row of numbers for each dtype, unpacked outside."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree


# The metrics of a chunk wait on the device; a longer chunk costs memory, a shorter one
# host time. 8,192 steps of 30 us are a quarter of a second.
_MAX_STEPS = 8192
_MAX_BYTES = 16 << 20


class Layout(NamedTuple):
    """How a step's metrics are packed: one row of numbers for each dtype."""

    structure: Any
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[Any, ...]

    @property
    def widths(self) -> dict[Any, int]:
        """The numbers in one row, for each dtype."""
        widths: dict[Any, int] = {}
        for shape, dtype in zip(self.shapes, self.dtypes, strict=True):
            widths[dtype] = widths.get(dtype, 0) + math.prod(shape)
        return widths

    @property
    def bytes_per_step(self) -> int:
        """The bytes that one step's metrics take."""
        return sum(d.itemsize * w for d, w in self.widths.items())


def layout_of(structure: Any, leaves: list[Any]) -> Layout:
    """Return the layout of a step's metrics, `leaves`, in `structure`."""
    return Layout(
        structure,
        tuple(tuple(leaf.shape) for leaf in leaves),
        tuple(np.dtype(leaf.dtype) for leaf in leaves),
    )


def capacity_of(layout: Layout) -> int:
    """Return how many steps' metrics fit the buffer; it depends on the step alone."""
    return max(1, min(_MAX_STEPS, _MAX_BYTES // max(1, layout.bytes_per_step)))


def pack(leaves: list[Array], layout: Layout) -> dict[str, Array]:
    """Return one row for each dtype: two stores a step in place of one a metric."""
    rows: dict[str, list[Array]] = {}
    for leaf, dtype in zip(leaves, layout.dtypes, strict=True):
        rows.setdefault(str(dtype), []).append(jnp.ravel(leaf))
    return {dtype: jnp.concatenate(row) for dtype, row in rows.items()}


def empty_rows(layout: Layout) -> dict[str, Array]:
    """Return the buffer: for each dtype a row for every step of the longest chunk."""
    steps = capacity_of(layout)
    return {str(d): jnp.zeros((steps, w), d) for d, w in layout.widths.items()}


def unpack(rows: dict[str, np.ndarray], layout: Layout) -> PyTree:
    """Return the metrics of `pack`ed rows, `(steps, width)` for each dtype."""
    used = dict.fromkeys(rows, 0)
    leaves = []
    for shape, dtype in zip(layout.shapes, layout.dtypes, strict=True):
        name, width = str(dtype), math.prod(shape)
        block = rows[name][:, used[name] : used[name] + width]
        leaves.append(block.reshape(len(block), *shape))
        used[name] += width
    return jax.tree.unflatten(layout.structure, leaves)
