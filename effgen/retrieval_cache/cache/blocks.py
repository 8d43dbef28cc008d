"""The number of rows of a cache and of its blocks, and the documents' numbers."""

import math
import operator
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh
from jaxtyping import Array, Int

from effgen.core.contract.counts import check_count
from effgen.core.devices.sharding import num_parts
from effgen.retrieval_cache.data.pairs import MOST_NUMBER


_LEAST_BLOCK, _MOST_BLOCK = 16, 1 << 15
_DEVICES = 8


def block_size(capacity: int) -> int:
    """Return the number of rows of a block: about the root of all, a power of two.

    Arguments:
        capacity: Rows in all; a block has 16 to 32,768 of them, or all where they are
            few.
    """
    root = 1 << (max(capacity, 1).bit_length() - 1) // 2
    return min(max(root, _LEAST_BLOCK), _MOST_BLOCK, capacity)


def default_capacity(num: int, mesh: Mesh | None = None) -> int:
    """Return the least number of rows for documents that blocks and devices divide."""
    parts = 1 if mesh is None else num_parts(mesh)
    unit = math.lcm(_DEVICES, parts) * block_size(num)
    unit = parts if num < unit else unit
    return -(-num // unit) * unit


def check_capacity(capacity: int, mesh: Mesh | None) -> None:
    """Raise `ValueError` for rows that are none, or that a mesh cannot share."""
    check_count("capacity", capacity)
    if mesh is not None and any(kind != AxisType.Auto for kind in mesh.axis_types):
        raise ValueError(
            f"`mesh` has axes of {mesh.axis_types}: pass one of `effgen.make_mesh()`, "
            "whose axes are `AxisType.Auto`."
        )
    parts = 1 if mesh is None else num_parts(mesh)
    if capacity % parts:
        raise ValueError(
            f"`capacity` is {capacity}, which the {parts} devices of `mesh` cannot "
            f"share evenly: pass a multiple of {parts}, or leave it out."
        )


def checked_ids(ids: Any, num: int) -> Int[Array, " documents"]:
    """Return the documents' numbers as an array; by default they are in order.

    Raises:
        ValueError: Unless they are distinct numbers, one for each document.
    """
    if ids is None:
        return jnp.arange(num, dtype=jnp.int32)
    found = np.asarray(ids)
    if found.shape != (num,) or not np.issubdtype(found.dtype, np.integer):
        raise ValueError(
            f"`ids` is {found.dtype} of shape {found.shape}: pass {num} integers, one "
            "a document."
        )
    if found.min() < 0 or found.max() >= MOST_NUMBER:
        raise ValueError(
            f"`ids` go from {found.min()} to {found.max()}: pass numbers from 0 up to "
            "2^30; -1 means a free row."
        )
    if len(np.unique(found)) < num:
        raise ValueError("`ids` repeat: give every document a number of its own.")
    return jnp.asarray(found, jnp.int32)


def checked_step(step: Any) -> int:
    """Return the number of a step.

    Raises:
        ValueError: If `step` is no step.
    """
    try:
        found = operator.index(step)
    except TypeError:
        found = -1
    if found < 0:
        raise ValueError(f"`step` is {step}: pass the step of a run, from 0 on.")
    return found
