"""An index of a corpus that is searched exactly, and the rankings of a search."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, PyTree

from effgen.core.contract.masked import with_nan
from effgen.core.devices.sharding import mesh_of, num_parts, replicate
from effgen.retrieval_cache.cache.blocks import (
    block_size,
    check_capacity,
    checked_ids,
    default_capacity,
)
from effgen.retrieval_cache.cache.filling import held_over, rows_over
from effgen.retrieval_cache.cache.lookup import joined_rows
from effgen.retrieval_cache.cache.negative_cache import NegativeCache
from effgen.retrieval_cache.cache.rows import AbstractRows, stored
from effgen.retrieval_cache.data.relevance import Rows
from effgen.retrieval_cache.encoders.embeddings import check_finite, embedded, num_items
from effgen.retrieval_cache.softmax.negatives import Excluded
from effgen.retrieval_cache.softmax.sampling import top_k
from effgen.retrieval_cache.softmax.scan import Scored, numbered


class Index(eqx.Module):
    """An index of a corpus; `of`, `from_embeddings` and `from_cache` make one.

    Attributes:
        rows: The embeddings, `(rows, size)`.
        ids: The documents' numbers, `(rows,)`, -1 where a row is free.
        mesh: The mesh over which rows and searches are split, if any.
    """

    rows: AbstractRows
    ids: Int[Array, " rows"]
    mesh: Mesh | None = eqx.field(static=True, default=None)

    @classmethod
    def of(
        cls,
        encode: Callable[[PyTree], Float[Array, "batch size"]],
        items: PyTree,
        *,
        ids: Int[Any, " documents"] | None = None,
        dtype: Any = jnp.float32,
        batch_size: int | None = None,
        mesh: Mesh | None = None,
    ) -> "Index":
        """Return an index of a corpus, embedded now.

        Arguments:
            encode: A batch of documents to embeddings, such as `model.document`.
            items: The corpus, a pytree of arrays that share their leading axis.
            ids: The documents' numbers, `0 .. documents - 1` by default.
            dtype: Of the embeddings: `jnp.float32`, `jnp.bfloat16`, `jnp.int8`.
            batch_size: Documents embedded at once; by default 1,024, and 64 on a CPU.
            mesh: The mesh over which the index and its searches are split, if any.
                Items may then be on disk, as for `NegativeCache.fill`.

        Raises:
            TypeError: For items that are text, or another `encode` or `dtype`.
            ValueError: For an empty corpus, leaves of different lengths, repeated or
                negative ids, embeddings that are not finite, or another kind of mesh.
        """
        num = num_items(items)
        numbers = checked_ids(ids, num)
        if mesh is not None:
            capacity = default_capacity(num, mesh)
            check_capacity(capacity, mesh)
            given = encode, items, capacity, dtype, batch_size
            held = held_over(mesh, numbers, capacity, -1)
            return cls(rows_over(mesh, *given), held, mesh)
        found = embedded(encode, items, batch_size)
        check_finite(found)
        return cls(stored(found, dtype), numbers)

    @classmethod
    def from_embeddings(
        cls,
        embeddings: Float[Any, "documents size"],
        *,
        ids: Int[Any, " documents"] | None = None,
        dtype: Any = jnp.float32,
        mesh: Mesh | None = None,
    ) -> "Index":
        """Return an index of embeddings that were made elsewhere, one a document.

        Arguments:
            embeddings: `(documents, size)`, of length one if the queries' are.
            ids: The documents' numbers, `0 .. documents - 1` by default.
            dtype: Of the embeddings, as in `of`.
            mesh: Over which the index is split, as in `of`.

        Raises:
            TypeError: For another `dtype`.
            ValueError: For none, repeated or negative ids, embeddings not finite, or
                another kind of mesh.
        """
        if not isinstance(embeddings, jax.Array):
            embeddings = np.asarray(with_nan(embeddings))
        if np.ndim(embeddings) != 2:
            raise ValueError(
                f"`embeddings` have shape {np.shape(embeddings)}: pass one row a "
                "document, `(documents, size)`."
            )
        numbers = checked_ids(ids, num_items(embeddings))
        if mesh is not None:
            capacity = default_capacity(len(numbers), mesh)
            check_capacity(capacity, mesh)
            found = held_over(mesh, embeddings, capacity, 0)
            check_finite(found)
            make = jax.jit(lambda x: stored(x, dtype), out_shardings=found.sharding)
            rows = make(found)
            return cls(rows, held_over(mesh, numbers, capacity, -1), mesh)
        found = jnp.asarray(embeddings)
        check_finite(found)
        rows, missing = stored(found, dtype), default_capacity(len(found)) - len(found)
        free = lambda x, value: jnp.pad(
            x, ((0, missing),) + ((0, 0),) * (x.ndim - 1), constant_values=value
        )
        return cls(jax.tree.map(lambda x: free(x, 0), rows), free(numbers, -1))

    @classmethod
    def from_cache(cls, cache: NegativeCache) -> "Index":
        """Return an index of a cache's embeddings, as stale as they are.

        Arguments:
            cache: The cache.
        """
        return cls(cache.rows, cache.ids)._placed()

    def scored(self, excluded: Excluded) -> Scored:
        """Return what scores come from; what is excluded goes by number or row.

        Arguments:
            excluded: What is no negative.

        Returns:
            All rows of the index.
        """
        nothing, offsets = jnp.full_like(self.ids, -1), jnp.zeros(self.ids.shape)
        at = numbered(excluded, self.ids.shape[0])
        return Scored(self.rows, self.ids, nothing, offsets, excluded, at)

    def search(
        self,
        queries: Float[Array, "queries size"],
        k: int,
        *,
        known: Int[Any, "queries *any"] | Sequence[Any] | None = None,
    ) -> "Ranked":
        """Return the `k` best documents of each query, best first, exactly.

        Arguments:
            queries: The queries, embedded, `(queries, size)`. One that is not finite
                finds nothing.
            k: How many documents.
            known: Numbers of documents to leave out of a query's ranking, as
                `relevant` of `evaluate`.

        Returns:
            Numbers and scores of documents.

        Raises:
            TypeError: For queries that are not embedded.
            ValueError: For sizes that differ, or fewer rows than `k`.
        """
        size = self.rows.shape[1]
        queries = jnp.asarray(queries)
        if not jnp.issubdtype(queries.dtype, jnp.floating):
            raise TypeError(
                f"`queries` are {queries.dtype}: embed them first, by `model.query`."
            )
        if queries.ndim != 2 or queries.shape[1] != size:
            raise ValueError(
                f"`queries` have shape {queries.shape} and documents size {size}: "
                "embed both with one model."
            )
        index, excluded = self._placed(), Excluded.nothing(len(queries))
        if known is not None:
            rows = Rows.of("known", known, None)
            rows.check_length(len(queries))
            own = rows.some(slice(None)).ids
            excluded = _left_out(index.ids, own, index.mesh)
        k = int(k) if isinstance(k, np.integer) else k
        return _searched(index, replicate(queries, index.mesh), excluded, k)

    def _placed(self) -> "Index":
        """Return the index with the mesh that its rows are split over, if they are."""
        if isinstance(self.ids, Tracer):
            return self
        mesh = mesh_of(self.ids)
        even = mesh is not None and self.ids.shape[0] % num_parts(mesh) == 0
        return Index(self.rows, self.ids, mesh if even else None)


class Ranked(NamedTuple):
    """Documents by score, best first, as `Index.search` returns them.

    Attributes:
        ids: Numbers of documents, `(queries, k)`; -1 where there are no more.
        scores: Inner products, `(queries, k)`; `-inf` where there are no more.
    """

    ids: Int[Array, "queries k"]
    scores: Float[Array, "queries k"]


@partial(jax.jit, static_argnames="mesh")
def _left_out(
    ids: Int[Array, " rows"], known: Int[Array, "queries any"], mesh: Mesh | None
) -> Excluded:
    """Return numbers of each query as rows, which cost the same however many."""
    rows = joined_rows(ids, known.reshape(-1), mesh).reshape(known.shape)
    return Excluded.nothing(len(known))._replace(rows=jnp.sort(rows, axis=1))


@eqx.filter_jit
def _searched(
    index: Index,
    queries: Float[Array, "queries size"],
    excluded: Excluded,
    k: int,
) -> Ranked:
    scored, block = index.scored(excluded), block_size(index.ids.shape[0])
    scores, slots = top_k(scored, queries, jnp.ones(()), k, block, index.mesh)
    there = scores > -jnp.inf  # no score of a query that is not finite is
    return Ranked(
        jnp.where(there, index.ids[slots], -1), jnp.where(there, scores, -jnp.inf)
    )
