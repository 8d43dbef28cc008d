"""Draws from the softmax over a cache: a block by its log-sum-exp, then a row of it."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int, PRNGKeyArray

from effgen.core.devices.sharding import data_axes, num_parts

from .scan import Scored, SoftmaxPass, blocks_of, split_rows, tile_scores


def sample_rows(
    scored: Scored,
    found: SoftmaxPass,
    queries: Float[Array, "queries size"],
    scale: Float[Array, ""],
    owners: Int[Array, " draws"],
    block: int,
    *,
    key: PRNGKeyArray,
    mesh: Mesh | None = None,
) -> Int[Array, " draws"]:
    """Return rows drawn from the softmax of the owners' scores, with replacement.

        block ~ softmax(blocks[owner]),    row ~ softmax(scores[owner, block])

    which is the softmax over all rows exactly. A query without negatives draws any row.

    Arguments:
        scored: The rows, and what is excluded.
        found: From the same `scored`, `queries`, `scale`, `block` and `mesh`.
        queries: The queries, embedded, `(queries, size)`.
        scale: One over the temperature.
        owners: Of which query each draw is, `(draws,)`.
        block: Rows a block.
        key: The JAX random key of the draws.
        mesh: Over whose data axes the rows are split, if they are.

    Returns:
        The rows, `(draws,)`.
    """
    keys = jax.random.split(key)
    starts, fresh, size = _bounds(scored.ids.shape[0], len(queries), block, mesh)
    # Blocks that only repeat rows get no noise: draws then do not depend on the tiles,
    # nor on how many devices there are, where blocks divide what each has.
    new = np.flatnonzero(starts + size > fresh)
    blocks = found.blocks if len(new) == len(starts) else found.blocks[:, new]
    starts, fresh = (jnp.asarray(x[new], jnp.int32) for x in (starts, fresh))
    chosen = jax.random.categorical(keys[0], blocks[owners])
    scores = _block_scores(scored, queries, scale, owners, starts[chosen], size, mesh)
    place = jnp.arange(size)[None] + starts[chosen][:, None]
    scores = jnp.where(place >= fresh[chosen][:, None], scores, -jnp.inf)
    return starts[chosen] + jax.random.categorical(keys[1], scores)


def _bounds(
    rows: int, queries: int, block: int, mesh: Mesh | None
) -> tuple[Int[np.ndarray, " blocks"], Int[np.ndarray, " blocks"], int]:
    """Return the first row of each block, the first not seen before, and the size."""
    shards = 1 if mesh is None else num_parts(mesh)
    cut = blocks_of(rows // shards, queries, block)
    within = np.arange(0, cut.tile, cut.block)
    starts = (cut.starts[:, None] + within).reshape(-1)
    fresh = np.repeat(cut.starts + cut.again, len(within))
    offsets = np.repeat(np.arange(shards) * (rows // shards), len(starts))
    starts, fresh = (np.tile(x, shards) + offsets for x in (starts, fresh))
    return starts, fresh, cut.block


def _block_scores(
    scored: Scored,
    queries: Float[Array, "queries size"],
    scale: Float[Array, ""],
    owners: Int[Array, " draws"],
    starts: Int[Array, " draws"],
    size: int,
    mesh: Mesh | None,
) -> Float[Array, "draws block"]:
    """Return each draw's scores of its own block; devices add up what is theirs."""
    if mesh is None:
        return _own_scores(scored, queries, scale, owners, starts, size)
    axis, whole = data_axes(mesh), PartitionSpec()

    def local(
        scored: Scored, queries: Array, scale: Array, owners: Array, starts: Array
    ) -> Array:
        rows = scored.ids.shape[0]
        here = starts - jax.lax.axis_index(axis) * rows
        inside = jnp.clip(here, 0, rows - size)
        scores = _own_scores(scored, queries, scale, owners, inside, size)
        owned = (here >= 0) & (here < rows)
        return jax.lax.psum(jnp.where(owned[:, None], scores, 0), axis)

    return jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(split_rows(scored, axis), whole, whole, whole, whole),
        out_specs=whole,
        check_vma=False,
    )(scored, queries, scale, owners, starts)


def _own_scores(
    scored: Scored,
    queries: Float[Array, "queries size"],
    scale: Float[Array, ""],
    owners: Int[Array, " draws"],
    starts: Int[Array, " draws"],
    size: int,
) -> Float[Array, "draws block"]:
    def one(given: tuple[Array, Array]) -> Array:
        owner, start = given
        own = scored.excluded.of(owner)
        part = eqx.tree_at(lambda s: s.excluded, scored, own)
        return part.window(start, size).scores(queries[owner][None], scale)[0]

    return jax.lax.map(one, (owners, starts), batch_size=_at_once())


def _at_once() -> int:
    """Return of how many draws the blocks are copied side by side."""
    return 8 if jax.default_backend() == "cpu" else 64


def top_k(
    scored: Scored,
    queries: Float[Array, "queries size"],
    scale: Float[Array, ""],
    k: int,
    block: int,
    mesh: Mesh | None = None,
) -> tuple[Float[Array, "queries k"], Int[Array, "queries k"]]:
    """Return the best scores and their rows, exactly, a tile of rows at a time.

    Arguments:
        scored: The rows, and what is excluded.
        queries: The queries, embedded, `(queries, size)`.
        scale: One over the temperature.
        k: How many rows of each query.
        block: Rows a block.
        mesh: Over whose data axes the rows are split, if they are: each device sends
            the best of its own.

    Returns:
        The scores, best first, and their rows, both `(queries, k)`. Scores are `-inf`
            where a query has fewer than `k` negatives.

    Raises:
        ValueError: For a `k` below 1, or more than there are rows.
    """
    plain = lambda scores, start: scores
    _check_k(k, scored.ids.shape[0])
    if mesh is None:
        return _best(scored, queries, scale, k, block, plain)
    axis, whole = data_axes(mesh), PartitionSpec()

    def local(scored: Scored, queries: Array, scale: Array) -> tuple[Array, Array]:
        rows = scored.ids.shape[0]
        found, slots = _best(scored, queries, scale, min(k, rows), block, plain)
        slots = slots + jax.lax.axis_index(axis) * rows
        sent = lambda x: jax.lax.all_gather(x, axis, axis=1, tiled=True)
        values, order = jax.lax.top_k(sent(found), k)
        return values, jnp.take_along_axis(sent(slots), order, axis=1)

    best = jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(split_rows(scored, axis), whole, whole),
        out_specs=(whole, whole),
        check_vma=False,
    )
    return best(scored, queries, scale)


def gumbel_top_k(
    scored: Scored,
    queries: Float[Array, "queries size"],
    scale: Float[Array, ""],
    k: int,
    block: int,
    *,
    key: PRNGKeyArray,
) -> tuple[Float[Array, "queries k"], Int[Array, "queries k"]]:
    """Return distinct rows, drawn from the softmax without replacement, in order.

    This draws a number for each query and row. `sample_rows`, with replacement, needs
    fewer.

    Arguments:
        scored: The rows, and what is excluded.
        queries: The queries, embedded, `(queries, size)`.
        scale: One over the temperature.
        k: How many rows of each query.
        block: Rows a block.
        key: The JAX random key of the draws.

    Returns:
        The scores with Gumbel noise added, and their rows, both `(queries, k)`.

    Raises:
        ValueError: For a `k` below 1, or more than there are rows.

    Source:
        Kool, van Hoof and Welling (2019).
    """

    def noisy(scores: Array, start: Array) -> Array:
        noise = jax.random.gumbel(
            jax.random.fold_in(key, start), scores.shape, scores.dtype, mode="high"
        )
        return scores + noise

    return _best(scored, queries, scale, k, block, noisy)


def _best(
    scored: Scored,
    queries: Float[Array, "queries size"],
    scale: Float[Array, ""],
    k: int,
    block: int,
    change: Callable[[Array, Array], Array],
) -> tuple[Float[Array, "queries k"], Int[Array, "queries k"]]:
    rows = scored.ids.shape[0]
    _check_k(k, rows)
    cut = blocks_of(rows, len(queries), block)

    def step(
        best: tuple[Array, Array], row: tuple[Array, Array]
    ) -> tuple[tuple[Array, Array], None]:
        _, scores = tile_scores(scored, queries, scale, cut, row)
        found, there = jax.lax.top_k(change(scores, row[0]), min(k, cut.tile))
        values = jnp.concatenate([best[0], found], axis=1)
        slots = jnp.concatenate([best[1], there + row[0]], axis=1)
        values, order = jax.lax.top_k(values, k)
        return (values, jnp.take_along_axis(slots, order, axis=1)), None

    kind = jnp.promote_types(queries.dtype, jnp.float32)
    shape = (len(queries), k)
    first = (jnp.full(shape, -jnp.inf, kind), jnp.zeros(shape, jnp.int32))
    return jax.lax.scan(step, first, cut.steps())[0]


def _check_k(k: int, rows: int) -> None:
    if not isinstance(k, int | np.integer) or not 1 <= k <= rows:
        raise ValueError(f"`k` is {k}: pass a number from 1 to the {rows} rows.")
