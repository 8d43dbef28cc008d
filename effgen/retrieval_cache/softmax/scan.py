"""One pass over the cache: log-sum-exp of each block, and the mean embedding.

No array of queries by rows is ever made: scores live for one tile of rows.
"""

from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int

from effgen.core.devices.sharding import data_axes
from effgen.retrieval_cache.cache.negative_cache import NegativeCache
from effgen.retrieval_cache.cache.rows import AbstractRows
from effgen.retrieval_cache.data.pairs import Marks

from .negatives import Excluded


# How many scores a tile holds: enough to keep a matrix product busy, and on a CPU few
# enough to stay near a core.
_TILE_SCORES = {"cpu": 1 << 18}
_TILE_SCORES_ELSEWHERE = 1 << 24


class SoftmaxPass(NamedTuple):
    """What a pass leaves.

    Attributes:
        blocks: The log-sum-exp of each block's scores, `(queries, blocks)`.
        log_partition: That of all, `(queries,)`.
        mean: `sum_j softmax(scores)_j row_j`, `(queries, size)`.
    """

    blocks: Float[Array, "queries blocks"]
    log_partition: Float[Array, " queries"]
    mean: Float[Array, "queries size"]


class Scored(eqx.Module):
    """The part of a cache that scores come from, and what is excluded.

        score_ij = scale <query_i, row_j> + offset_j

    and `-inf` where `j` is free or excluded.

    Attributes:
        rows: The embeddings, `(rows, size)`.
        ids: The documents' numbers, `(rows,)`; -1 where a row is free.
        digests: The digests of their content, `(rows,)`.
        offsets: What is added to a row's scores, `(rows,)`.
        excluded: What is no negative.
        at: Which rows of the cache these are, `(rows,)`; given where `excluded` has
            rows.
        is_run: Whether they are next to each other.
    """

    rows: AbstractRows
    ids: Int[Array, " rows"]
    digests: Int[Array, " rows"]
    offsets: Float[Array, " rows"]
    excluded: Excluded
    at: Int[Array, " rows"] | None = None
    is_run: bool = eqx.field(static=True, default=True)

    @classmethod
    def of(cls, cache: NegativeCache, excluded: Excluded) -> "Scored":
        """Return the scored part of a cache.

        Arguments:
            cache: The cache.
            excluded: What is no negative.

        Returns:
            All rows of the cache.
        """
        given = cache.rows, cache.ids, cache.digests, cache.offsets, excluded
        return cls(*given, numbered(excluded, cache.capacity))

    def window(self, start: Int[Array, ""], num: int) -> "Scored":
        """Return rows in a piece.

        Arguments:
            start: The first row.
            num: How many rows.

        Returns:
            These rows.
        """
        cut = lambda x: jax.lax.dynamic_slice_in_dim(x, start, num)
        return Scored(
            self.rows.window(start, num),
            cut(self.ids),
            cut(self.digests),
            cut(self.offsets),
            self.excluded,
            None if self.at is None else cut(self.at),
            self.is_run,
        )

    def take(self, slots: Int[Array, " taken"]) -> "Scored":
        """Return rows by their number.

        Arguments:
            slots: The numbers, `(taken,)`.

        Returns:
            These rows.
        """
        return Scored(
            self.rows.take(slots),
            self.ids[slots],
            self.digests[slots],
            self.offsets[slots],
            self.excluded,
            None if self.at is None else self.at[slots],
            is_run=False,
        )

    def scores(
        self, queries: Float[Array, "queries size"], scale: Float[Array, ""]
    ) -> Float[Array, "queries rows"]:
        """Return all scores; `-inf` where there is no negative.

        Arguments:
            queries: The queries, embedded, `(queries, size)`.
            scale: One over the temperature.

        Returns:
            `(queries, rows)`.
        """
        found = scale * self.rows.scores(queries) + self.offsets[None]
        found = found.astype(jnp.promote_types(queries.dtype, jnp.float32))
        return jnp.where(self.negative(), found, -jnp.inf)

    def negative(self) -> Array:
        """Return which rows are negatives.

        Returns:
            `(queries, rows)`, or `(1, rows)` where it is one for all.
        """
        found = self.excluded.negatives(Marks(self.ids, self.digests))
        if self.at is not None and self.excluded.rows is not None:
            by = self.excluded
            run = lambda at: by.outside(at[0], at.shape[0])
            found = found & (run if self.is_run else by.without)(self.at)
            found = by.unlike(found, self.digests)
        return found & (self.ids >= 0)[None]


def numbered(excluded: Excluded, rows: int) -> Int[Array, " rows"] | None:
    """Return the numbers of rows, where what is excluded asks for them."""
    return None if excluded.rows is None else jnp.arange(rows, dtype=jnp.int32)


class Blocks(NamedTuple):
    """How rows are cut: tile `t` begins at row `starts[t]` and repeats `again[t]` rows.

    The last tile reaches back to be of full size: what it repeats counts as excluded.
    """

    tile: int
    block: int
    starts: Int[np.ndarray, " tiles"]
    again: Int[np.ndarray, " tiles"]

    def steps(self) -> tuple[Int[Array, " tiles"], Int[Array, " tiles"]]:
        """Return what `tile_scores` takes of each tile, to be scanned over."""
        return jnp.asarray(self.starts, jnp.int32), jnp.asarray(self.again, jnp.int32)


def blocks_of(rows: int, queries: int, block: int) -> Blocks:
    """Return the tiles of a cache of so many rows."""
    most = _TILE_SCORES.get(jax.default_backend(), _TILE_SCORES_ELSEWHERE)
    block = min(block, rows)
    tile = min(rows, max(most // max(queries, 1), block)) // block * block
    ends = np.minimum(np.arange(0, rows, tile) + tile, rows)
    starts = ends - tile
    again = np.concatenate([[0], ends[:-1]]) - starts
    return Blocks(tile, block, starts, again)


def tile_scores(
    scored: Scored,
    queries: Float[Array, "queries size"],
    scale: Float[Array, ""],
    cut: Blocks,
    step: tuple[Int[Array, ""], Int[Array, ""]],
) -> tuple[Scored, Float[Array, "queries tile"]]:
    """Return a tile's rows and their scores, `-inf` where a row was seen before."""
    start, again = step
    window = scored.window(start, cut.tile)
    scores = window.scores(queries, scale)
    return window, jnp.where(jnp.arange(cut.tile)[None] >= again, scores, -jnp.inf)


def softmax_pass(
    scored: Scored,
    queries: Float[Array, "queries size"],
    scale: Float[Array, ""],
    block: int,
    mesh: Mesh | None = None,
) -> SoftmaxPass:
    """Return log-sum-exps and the mean embedding, in one pass over the rows.

    Temporary memory is a tile's and `queries * rows / block` numbers, which with blocks
    of `block_size` grow by the root of the rows.

    Arguments:
        scored: The rows, and what is excluded.
        queries: The queries, embedded, `(queries, size)`.
        scale: One over the temperature.
        block: Rows a block.
        mesh: Over whose data axes the rows are split, if they are: each device passes
            over its own.

    Returns:
        The log-sum-exp of each block and of all, and the mean embedding.
    """
    if mesh is None:
        return _gathered(*_swept(scored, queries, scale, block), None)
    axis, whole = data_axes(mesh), PartitionSpec()

    def local(
        scored: Scored, queries: Array, scale: Array
    ) -> tuple[Array, Array, Array]:
        found = _gathered(*_swept(scored, queries, scale, block), axis)
        return found.blocks, found.log_partition, found.mean

    swept = jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(split_rows(scored, axis), whole, whole),
        out_specs=(PartitionSpec(None, axis), whole, whole),
        check_vma=False,
    )
    return SoftmaxPass(*swept(scored, queries, scale))


def split_rows(scored: Scored, axis: tuple[str, ...]) -> Any:
    """Return how a mesh's data axes split a cache: rows, and not what is excluded."""
    split, whole = PartitionSpec(axis), PartitionSpec()
    specs = jax.tree.map(lambda _: split, scored)
    excluded = jax.tree.map(lambda _: whole, scored.excluded)
    return eqx.tree_at(lambda s: s.excluded, specs, excluded)


def _gathered(
    blocks: Array, most: Array, total: Array, mean: Array, axis: tuple[str, ...] | None
) -> SoftmaxPass:
    """Return the whole of what devices found, each in its rows."""
    if axis is not None:
        own = most
        most = jax.lax.pmax(own, axis)
        share = jnp.exp(own - _finite(most))
        total, mean = jax.lax.psum((total * share, mean * share[:, None]), axis)
    there = total > 0
    log_partition = jnp.where(
        there, most + jnp.log(jnp.where(there, total, 1)), -jnp.inf
    )
    return SoftmaxPass(
        blocks, log_partition, mean / jnp.where(there, total, 1)[:, None]
    )


def _swept(
    scored: Scored, queries: Array, scale: Array, block: int
) -> tuple[Array, Array, Array, Array]:
    """Return blocks' log-sum-exps, the largest score, and both sums relative to it."""
    num, size = queries.shape
    cut = blocks_of(scored.ids.shape[0], num, block)
    kind = jnp.promote_types(queries.dtype, jnp.float32)
    start = (
        jnp.full(num, -jnp.inf, kind),
        jnp.zeros(num, kind),
        jnp.zeros((num, size), kind),
    )
    sweep = partial(_tile, scored, queries, scale, cut)
    (most, total, mean), blocks = jax.lax.scan(sweep, start, cut.steps())
    blocks = jnp.moveaxis(blocks, 0, 1).reshape(num, -1)
    return blocks, most, total, mean


def _tile(
    scored: Scored,
    queries: Array,
    scale: Array,
    cut: Blocks,
    carry: tuple[Array, Array, Array],
    step: tuple[Array, Array],
) -> tuple[tuple[Array, Array, Array], Array]:
    most, total, mean = carry
    window, scores = tile_scores(scored, queries, scale, cut, step)
    by_block = scores.reshape(len(scores), -1, cut.block)
    tops = jnp.max(by_block, axis=2)
    shares = jnp.exp(by_block - _finite(tops)[..., None])
    sums = jnp.sum(shares, axis=2)
    new = jnp.maximum(most, jnp.max(tops, axis=1))
    kept = jnp.exp(most - _finite(new))
    rescaled = jnp.exp(tops - _finite(new)[:, None])
    weights = (shares * rescaled[..., None]).reshape(scores.shape)
    total = kept * total + jnp.sum(sums * rescaled, axis=1)
    mean = kept[:, None] * mean + window.rows.combined(weights).astype(mean.dtype)
    return (new, total, mean), jnp.log(sums) + tops


def _finite(x: Array) -> Array:
    """Return `x` with `-inf` as zero, so that a difference of two is no NaN."""
    return jnp.where(jnp.isfinite(x), x, 0.0)
