"""Where rows are, by what marks them."""

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from effgen.core.devices.sharding import data_axes


_BLOCK = 512
_AT_ONCE = 1 << 15


def rows_of(
    keys: Int[Array, " rows"], valid: Bool[Array, " rows"], wanted: Int[Array, " any"]
) -> Int[Array, " any"]:
    """Return the first valid row of each key that is wanted, `rows` where none is.

    Rows are marked that have any of the keys, and picked out, by blocks first. Where
    one key marks several rows, these may be too many to pick: then the rows are gone
    through once for each key. Temporary memory is a mark a row.
    """
    total = len(keys)
    missing = -total % min(_BLOCK, total)
    keys = jnp.pad(keys, (0, missing)) if missing else keys
    valid = jnp.pad(valid, (0, missing)) if missing else valid
    hit = _among(wanted, keys) & valid
    found = jax.lax.cond(
        jnp.sum(hit) <= len(wanted),
        lambda: _picked(keys, hit, wanted),
        lambda: _gone_through(keys, hit, wanted),
    )
    return jnp.minimum(found, total).astype(jnp.int32)


def _among(
    wanted: Int[Array, " any"], keys: Int[Array, " rows"]
) -> Bool[Array, " rows"]:
    """Return which keys are wanted."""
    return jax.lax.fori_loop(
        0,
        len(wanted),
        lambda i, hit: hit | (keys == wanted[i]),
        jnp.zeros(keys.shape, bool),
        unroll=8,
    )


def _picked(
    keys: Int[Array, " rows"], hit: Bool[Array, " rows"], wanted: Int[Array, " any"]
) -> Int[Array, " any"]:
    """Return the rows where no more are hit than keys are wanted."""
    num, block = len(wanted), min(_BLOCK, len(keys))
    blocks = _largest(jnp.any(hit.reshape(-1, block), axis=1), num)
    rows = (blocks[:, None] * block + jnp.arange(block)[None]).reshape(-1)
    rows = rows[_largest(hit[rows], num)]
    same = (keys[rows][None] == wanted[:, None]) & hit[rows][None]
    return jnp.min(jnp.where(same, rows[None], len(keys)), axis=1)


def _largest(marked: Bool[Array, " rows"], num: int) -> Int[Array, " num"]:
    """Return where marks are, of up to `num`, then anything."""
    # Of floats: of integers, XLA sorts all for the sake of a few on a CPU.
    return jax.lax.top_k(marked.astype(jnp.float32), min(num, len(marked)))[1]


def _gone_through(
    keys: Int[Array, " rows"], hit: Bool[Array, " rows"], wanted: Int[Array, " any"]
) -> Int[Array, " any"]:
    """Return the rows, a pass for each key."""
    rows = jnp.arange(len(keys))

    def first(key: Int[Array, ""]) -> Int[Array, ""]:
        return jnp.min(jnp.where(hit & (keys == key), rows, len(keys)))

    return jax.lax.map(first, wanted)


def joined_rows(
    ids: Int[Array, " rows"], wanted: Int[Array, " any"], mesh: Mesh | None = None
) -> Int[Array, " any"]:
    """Return the row of each number, `rows` where none has it, or it is below zero.

    For many numbers: they are put in order, and each row is looked for among them, some
    rows at a time. Over a mesh, each device looks through its own rows.
    """
    if mesh is not None:
        return _joined_over(mesh, ids, wanted)
    total, order = ids.shape[0], jnp.sort(wanted)
    size = min(_AT_ONCE, total)

    def further(i: Int[Array, ""], rows: Int[Array, " any"]) -> Int[Array, " any"]:
        # The last part reaches back, so that all are of one size.
        start = jnp.minimum(i * size, total - size)
        some = jax.lax.dynamic_slice_in_dim(ids, start, size)
        at = jnp.minimum(jnp.searchsorted(order, some), len(order) - 1)
        places = jnp.where((order[at] == some) & (some >= 0), at, len(order))
        own = (start + jnp.arange(size)).astype(jnp.int32)
        return rows.at[places].set(own, mode="drop")

    rows = jnp.full(len(order), total, jnp.int32)
    rows = jax.lax.fori_loop(0, -(-total // size), further, rows)
    return rows[jnp.searchsorted(order, wanted)]


def _joined_over(
    mesh: Mesh, ids: Int[Array, " rows"], wanted: Int[Array, " any"]
) -> Int[Array, " any"]:
    axis, whole, total = data_axes(mesh), PartitionSpec(), ids.shape[0]

    def local(ids: Array, wanted: Array) -> Array:
        found, own = joined_rows(ids, wanted), ids.shape[0]
        at = found + jax.lax.axis_index(axis) * own
        return jax.lax.pmin(jnp.where(found < own, at, total), axis)

    return jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(PartitionSpec(axis), whole),
        out_specs=whole,
        check_vma=False,
    )(ids, wanted)


def rows_by_number(
    ids: Int[Array, " rows"], wanted: Int[Array, "*any"]
) -> Int[Array, "*any"]:
    """Return the row of each number, in any shape; `rows` if no row has it."""
    flat, total = wanted.reshape(-1), ids.shape[0]
    if not flat.shape[0]:
        return wanted
    near = jnp.clip(flat, 0, total - 1)
    direct = (ids[near] == flat) & (flat >= 0)
    # Where rows are in the order of their numbers, nothing is searched for.
    found = jax.lax.cond(
        jnp.all(direct | (flat < 0)),
        lambda: jnp.where(direct, near, total).astype(jnp.int32),
        lambda: joined_rows(ids, flat),
    )
    return found.reshape(wanted.shape)


def rows_of_documents(
    ids: Int[Array, " rows"],
    digests: Int[Array, " rows"],
    numbers: Int[Array, " documents"],
    contents: Int[Array, " documents"],
) -> Int[Array, " documents"]:
    """Return the row of each document, by its number, or without one by its content."""
    near = jnp.clip(numbers, 0, ids.shape[0] - 1).astype(jnp.int32)
    direct, valid = ids[near] == numbers, ids >= 0

    def searched() -> Int[Array, " documents"]:
        by_number = rows_of(ids, valid, numbers)
        by_content = jax.lax.cond(
            jnp.any(numbers < 0),
            lambda: rows_of(digests, valid, contents),
            lambda: by_number,
        )
        return jnp.where(numbers >= 0, by_number, by_content)

    # Where rows are in the order of their numbers, nothing is searched for.
    return jax.lax.cond(jnp.all(direct & (numbers >= 0)), lambda: near, searched)


def largest_rows(
    values: Float[Array, " rows"], num: int, mesh: Mesh | None = None
) -> Int[Array, " num"]:
    """Return the rows of the largest values, best first; ties go to the first row.

    Over a mesh, each device sends its own largest values.
    """
    if mesh is None:
        return jax.lax.top_k(values, num)[1]
    axis, whole = data_axes(mesh), PartitionSpec()

    def local(values: Array) -> Array:
        rows = values.shape[0]
        found, at = jax.lax.top_k(values, min(num, rows))
        at = at + jax.lax.axis_index(axis) * rows
        sent = lambda x: jax.lax.all_gather(x, axis, tiled=True)
        return sent(at)[jax.lax.top_k(sent(found), num)[1]]

    return jax.shard_map(
        local,
        mesh=mesh,
        in_specs=PartitionSpec(axis),
        out_specs=whole,
        check_vma=False,
    )(values)
