"""The fields of a new cache: free rows, an embedded corpus, and one split on a mesh."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int, PyTree

from effgen.core.contract.counts import check_count
from effgen.core.data.rows import by_position
from effgen.core.devices.sharding import data_axes, num_parts, replicate
from effgen.retrieval_cache.data.digests import content_digests
from effgen.retrieval_cache.encoders.embeddings import (
    at_once,
    check_callable,
    check_embeddings,
    check_finite,
    embedded_part,
    num_items,
)

from .rows import AbstractRows, stored


# Items, rows, ids, digests, stamps, offsets, repeats: the fields of `NegativeCache`.
Fields = tuple[PyTree, AbstractRows, Array, Array, Array, Array, Array]


def blank(example: PyTree, size: int, capacity: int, dtype: Any) -> Fields:
    """Return free rows, for documents like those of `example`."""
    one = lambda x: jnp.zeros((capacity, *x.shape[1:]), x.dtype)
    return (
        jax.tree.map(one, example),
        stored(jnp.zeros((capacity, size)), dtype),
        jnp.full(capacity, -1, jnp.int32),
        jnp.full(capacity, -1, jnp.int32),
        jnp.full(capacity, -1, jnp.int32),
        jnp.zeros(capacity),
        jnp.zeros((), bool),
    )


@partial(jax.jit, static_argnames=("capacity", "dtype"))
def filled(
    items: PyTree,
    found: Float[Array, "documents size"],
    numbers: Int[Array, " documents"],
    step: int,
    capacity: int,
    dtype: Any,
) -> Fields:
    """Return rows of documents with their embeddings, then free ones."""
    num, size = found.shape
    digests = content_digests(items)
    rest, rows, ids, free, stamps, offsets, _ = blank(items, size, capacity, dtype)
    there = jax.tree.map(
        lambda x, new: new if len(x) == num else x.at[:num].set(new), rest, items
    )
    return (
        there,
        rows.put(jnp.arange(num), found),
        ids.at[:num].set(numbers),
        free.at[:num].set(digests),
        stamps.at[:num].set(step),
        offsets,
        _repeated(digests),
    )


def split_over(
    mesh: Mesh,
    encode: Callable[[PyTree], Float[Array, "batch size"]],
    items: PyTree,
    numbers: Int[Any, " documents"],
    *,
    step: int,
    capacity: int,
    dtype: Any,
    batch_size: int | None,
) -> Fields:
    """Return the fields of `filled`, split from the start over the mesh's devices.

    No device ever holds more than its part. Items are read a part at a time, so they
    may be on disk, such as an `np.memmap`. Each process reads the part of its own
    devices.
    """
    rows = rows_over(
        mesh, encode, items, capacity, dtype, batch_size, check=check_embeddings
    )
    held = jax.tree.map(lambda x: held_over(mesh, x, capacity, 0), items)
    ids = held_over(mesh, numbers, capacity, -1)

    def rest(held: PyTree, ids: Array) -> tuple[Array, Array, Array, Array]:
        digests = jnp.where(ids >= 0, content_digests(held), -1)
        stamps = jnp.where(ids >= 0, step, -1).astype(jnp.int32)
        return digests, stamps, jnp.zeros(capacity), _repeated(digests)

    by_row, whole = _by_row(mesh), NamedSharding(mesh, PartitionSpec())
    made = jax.jit(rest, out_shardings=(by_row, by_row, by_row, whole))
    return (held, rows, ids, *made(held, ids))


def held_over(mesh: Mesh, x: Any, capacity: int, fill: int) -> Array:
    """Return an array's rows, padded to `capacity` and split over a mesh.

    Each device reads its own rows. `x` is anything with a shape and a dtype whose
    slices are arrays.
    """
    dtype = jnp.asarray(np.asarray(x[:0])).dtype

    def part(index: Any) -> np.ndarray:
        start, stop, _ = index[0].indices(capacity)
        own = np.asarray(x[start : min(stop, len(x))])
        whole = np.full((stop - start, *x.shape[1:]), fill, dtype)
        whole[: len(own)] = own
        return whole

    return jax.make_array_from_callback((capacity, *x.shape[1:]), _by_row(mesh), part)


def rows_over(
    mesh: Mesh,
    encode: Callable[[PyTree], Float[Array, "batch size"]],
    items: PyTree,
    capacity: int,
    dtype: Any,
    batch_size: int | None,
    *,
    check: Callable[..., None] = check_finite,
) -> AbstractRows:
    """Return embeddings split over a mesh, made in batches equal on all devices."""
    check_callable(encode)
    items = by_position(items)
    if batch_size is not None:
        check_count("batch_size", batch_size)
    parts, num = num_parts(mesh), num_items(items)
    own, encode = capacity // parts, replicate(encode, mesh)
    each = min(own, max(1, (batch_size or at_once()) // parts))
    first = np.arange(parts)[:, None] * own + np.arange(each)[None]
    rows = None
    for start in range(0, own, each):
        # The last piece overlaps the one before, so that all have one size.
        start = min(start, own - each)
        at = (first + start).reshape(-1)
        # Rows past the last document repeat that document.
        near = np.minimum(at, num - 1)
        part = jax.tree.map(lambda x, near=near: _taken(mesh, x, near), items)
        found = embedded_part(encode, part, len(at))
        check(found, near)
        if rows is None:
            rows = _blank_rows(mesh, capacity, found.shape[1], dtype)
        rows = _put(
            mesh, rows, found, _taken(mesh, at < num, np.arange(len(at))), start
        )
    assert rows is not None
    return rows


def _taken(mesh: Mesh, x: Any, at: Int[np.ndarray, " taken"]) -> Array:
    """Return some rows of an array, split over a mesh."""
    dtype = jnp.asarray(np.asarray(x[:0])).dtype
    cut = lambda index: np.asarray(x[at[index[0]]], dtype)
    return jax.make_array_from_callback((len(at), *x.shape[1:]), _by_row(mesh), cut)


def _blank_rows(mesh: Mesh, capacity: int, size: int, dtype: Any) -> AbstractRows:
    zeros = lambda: stored(jnp.zeros((capacity, size)), dtype)
    return jax.jit(zeros, out_shardings=_by_row(mesh))()


def _by_row(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec(data_axes(mesh)))


@partial(jax.jit, static_argnums=0, donate_argnums=1)
def _put(
    mesh: Mesh,
    rows: AbstractRows,
    found: Float[Array, "batch size"],
    there: Bool[Array, " batch"],
    start: int,
) -> AbstractRows:
    """Return the rows with equally many replaced on each device, from `start` on."""
    split, whole = PartitionSpec(data_axes(mesh)), PartitionSpec()

    def local(rows: Any, found: Array, there: Array, start: Array) -> AbstractRows:
        kept = jnp.where(there[:, None], found, 0)
        return rows.put(start + jnp.arange(len(found)), kept)

    put = jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(split, split, split, whole),
        out_specs=split,
        check_vma=False,
    )
    return put(rows, found, there, jnp.asarray(start))


def _repeated(digests: Int[Array, " rows"]) -> Bool[Array, ""]:
    """Return whether two documents have the same content; -1 means no document."""
    ordered = jnp.sort(digests)
    return jnp.any((ordered[1:] == ordered[:-1]) & (ordered[1:] >= 0))
