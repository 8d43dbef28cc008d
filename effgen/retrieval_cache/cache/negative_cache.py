"""The negative cache: documents with embeddings that may be stale."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, PyTree

from effgen.core.contract.counts import check_count
from effgen.retrieval_cache.data.digests import content_digests
from effgen.retrieval_cache.data.pairs import MOST_NUMBER, Marks
from effgen.retrieval_cache.encoders.embeddings import (
    check_alike,
    check_embeddings,
    check_finite,
    check_holds,
    embedded,
    num_items,
)

from .blocks import (
    block_size as block_size,
    check_capacity,
    checked_ids,
    checked_step,
    default_capacity,
)
from .filling import blank, filled, split_over
from .lookup import rows_by_number, rows_of_documents
from .rows import AbstractRows


_LAST = np.iinfo(np.int32).max  # of rows in the order of their ages: free ones


class NegativeCache(eqx.Module):
    """Documents, their embeddings of some steps ago, and when these were made.

    One row a document: every leaf has the axis `rows` first, so that the core's mesh
    rule splits the cache over devices. `fill` and `empty` make one.

    Attributes:
        items: What the document tower reads, a pytree of arrays.
        rows: The embeddings, `(rows, size)`, as floats or bytes.
        ids: The documents' numbers; -1 where a row is free.
        digests: Digests of their content.
        stamps: The step at which each embedding was made.
        offsets: What is added to a row's scores, such as a correction for popularity.
        repeats: Whether two documents may be of one content. Then what is not to be a
            negative is looked for by content too, where it is much (`Excluded`).
    """

    items: PyTree
    rows: AbstractRows
    ids: Int[Array, " rows"]
    digests: Int[Array, " rows"]
    stamps: Int[Array, " rows"]
    offsets: Float[Array, " rows"]
    repeats: Bool[Array, ""] = eqx.field(default_factory=lambda: jnp.ones((), bool))

    @classmethod
    def fill(
        cls,
        encode: Callable[[PyTree], Float[Array, "batch size"]],
        items: PyTree,
        *,
        ids: Int[Any, " documents"] | None = None,
        capacity: int | None = None,
        dtype: Any = jnp.float32,
        step: int = 0,
        batch_size: int | None = None,
        mesh: Mesh | None = None,
    ) -> "NegativeCache":
        """Return a cache of a whole corpus, embedded now.

        Arguments:
            encode: A batch of documents to embeddings, such as `encoder.document`;
                called without a key, so without dropout.
            items: The corpus, a pytree of arrays that share their leading axis.
            ids: The documents' numbers, `0 .. documents - 1` by default.
            capacity: Rows in all; by default a few more than documents, so that blocks
                and up to eight devices divide them.
            dtype: Of the embeddings: `jnp.float32`, `jnp.bfloat16`, `jnp.int8`.
            step: That it is embedded at: `int(state.step)` of a run that goes on.
            batch_size: Documents embedded at once; by default 1,024, and 64 on a CPU.
            mesh: The mesh over which the cache is split from the start, as
                `effgen.shard` splits it. No device ever holds more than its part. Items
                are read a part at a time, so they may be on disk, such as an
                `np.memmap`.

        Raises:
            TypeError: For items that are text, or another `encode` or `dtype`.
            ValueError: For an empty corpus, leaves of different lengths, repeated or
                negative ids, a capacity too small or one that devices cannot share, a
                step that is none, or embeddings that are not finite or all zero.
        """
        num, step = num_items(items), checked_step(step)
        capacity = default_capacity(num, mesh) if capacity is None else capacity
        check_capacity(capacity, mesh)
        if capacity < num:
            raise ValueError(
                f"`capacity` is {capacity} and there are {num} documents: raise it, or "
                "fill with some of them and refresh with `PositivesIn()`."
            )
        numbers = checked_ids(ids, num)
        if mesh is not None:
            made = {"step": step, "capacity": capacity, "dtype": dtype}
            given = mesh, encode, items, numbers
            return cls(*split_over(*given, **made, batch_size=batch_size))
        found = embedded(encode, items, batch_size)
        check_embeddings(found)
        items = jax.tree.map(jnp.asarray, items)
        return cls(*filled(items, found, numbers, step, capacity, dtype))

    @classmethod
    def empty(
        cls, example: PyTree, size: int, capacity: int, *, dtype: Any = jnp.float32
    ) -> "NegativeCache":
        """Return a cache with all rows free, for documents like those of `example`.

        Arguments:
            example: One or more documents, with the leading axis.
            size: The numbers of an embedding.
            capacity: The rows.
            dtype: Of the embeddings, as in `fill`.

        Raises:
            TypeError: For another `dtype`.
            ValueError: For a capacity or a size below 1.
        """
        for name, value in (("capacity", capacity), ("size", size)):
            check_count(name, value)
        return cls(*blank(example, size, capacity, dtype))

    @property
    def capacity(self) -> int:
        """How many rows there are, free ones included."""
        return self.ids.shape[0]

    @property
    def valid(self) -> Bool[Array, " rows"]:
        """Which rows hold a document."""
        return self.ids >= 0

    @property
    def block(self) -> int:
        """How many rows are scored, and drawn from, as one block."""
        return block_size(self.capacity)

    def documents(self, slots: Int[Array, " taken"]) -> PyTree:
        """Return the documents of some rows.

        Arguments:
            slots: The rows, `(taken,)`.
        """
        return jax.tree.map(lambda x: x[slots], self.items)

    def find(self, marks: Marks) -> Int[Array, " documents"]:
        """Return the row of each document, `capacity` for one that is not here.

        Arguments:
            marks: The documents' numbers, or, of those without one, their content.
        """
        return rows_of_documents(self.ids, self.digests, marks.ids, marks.digests)

    def places(self, ids: Int[Array, "*any"]) -> Int[Array, "*any"]:
        """Return documents' rows by number, `capacity` of one that is not here.

        Arguments:
            ids: The numbers, of any shape.
        """
        return rows_by_number(self.ids, ids)

    def contents(self, ids: Int[Array, "*any"]) -> Int[Array, "*any"]:
        """Return the digests of documents by number, -1 of one that is not here.

        Arguments:
            ids: The numbers, of any shape.
        """
        return self.digests.at[self.places(ids)].get(mode="fill", fill_value=-1)

    def differing(self, marks: Marks) -> Int[Array, ""]:
        """Return the number of a document that has other content here, -1 if none has.

        Arguments:
            marks: The documents' numbers and content; a number past 2^30 differs.
        """
        here = self.contents(marks.ids)
        wrong = (marks.ids >= 0) & (here >= 0) & (here != marks.digests)
        wrong |= marks.ids >= MOST_NUMBER
        return jnp.max(jnp.where(wrong, marks.ids, -1))

    def written(
        self,
        slots: Int[Array, " put"],
        embeddings: Float[Array, "put size"],
        step: Int[Array, ""],
    ) -> "NegativeCache":
        """Return the cache with new embeddings in some rows.

        A slot past the end, a free row, or an embedding not finite is left out.

        Arguments:
            slots: The rows, `(put,)`.
            embeddings: Their embeddings, `(put, size)`.
            step: The step at which these were made.
        """
        held = self.valid.at[slots].get(mode="fill", fill_value=False)
        sound = jnp.all(jnp.isfinite(embeddings), axis=1) & held
        slots = jnp.where(sound, slots, self.capacity)
        return eqx.tree_at(
            lambda c: (c.rows, c.stamps),
            self,
            (
                self.rows.put(slots, embeddings),
                self.stamps.at[slots].set(step, mode="drop"),
            ),
        )

    def inserted(
        self,
        slots: Int[Array, " put"],
        items: PyTree,
        marks: Marks,
        embeddings: Float[Array, "put size"],
        step: Int[Array, ""],
    ) -> "NegativeCache":
        """Return the cache with other documents in some rows.

        Documents without a number are given one of their content, past 2^30.

        Arguments:
            slots: The rows, `(put,)`; one past the end is left out.
            items: The documents.
            marks: Their numbers and content.
            embeddings: Their embeddings, `(put, size)`; one not finite is left out.
            step: The step at which these were made.
        """
        sound = jnp.all(jnp.isfinite(embeddings), axis=1)
        slots = jnp.where(sound, slots, self.capacity)
        numbers = jnp.where(marks.ids >= 0, marks.ids, marks.digests | MOST_NUMBER)
        put = lambda x, new: x.at[slots].set(new.astype(x.dtype), mode="drop")
        return NegativeCache(
            jax.tree.map(put, self.items, items),
            self.rows.put(slots, embeddings),
            put(self.ids, numbers),
            put(self.digests, marks.digests),
            put(self.stamps, jnp.broadcast_to(step, slots.shape)),
            self.offsets,
            jnp.ones_like(self.repeats),
        )

    def removed(self, ids: Int[Any, " documents"]) -> "NegativeCache":
        """Return the cache with the rows of some documents free.

        Arguments:
            ids: The documents' numbers.

        Raises:
            ValueError: For numbers that no document can have.
        """
        numbers = np.unique(np.asarray(ids))
        if not len(numbers):
            return self
        gone = jnp.isin(self.ids, checked_ids(numbers, len(numbers)))
        free = lambda x: jnp.where(gone, -1, x)
        return eqx.tree_at(
            lambda c: (c.ids, c.digests, c.stamps),
            self,
            (free(self.ids), free(self.digests), free(self.stamps)),
        )

    def added(
        self,
        encode: Callable[[PyTree], Float[Array, "batch size"]],
        items: PyTree,
        *,
        ids: Int[Any, " documents"] | None = None,
        step: int | None = None,
        batch_size: int | None = None,
    ) -> "NegativeCache":
        """Return the cache with more documents, embedded now, in free rows.

        Use it for new items of a catalog, between two runs. `resized` makes free rows:

            cache = state.memory.resized(2_048).added(state.model.document, items)
            state = effgen.continued(trainer, state, cache)

        Arguments:
            encode: A batch of documents to embeddings, as for `fill`.
            items: The documents, of the same form as the cache's.
            ids: Their numbers; by default those after the cache's greatest.
            step: The step of the embeddings; by default that of the newest embedding.
            batch_size: Documents embedded at once.

        Raises:
            TypeError: As `fill` raises.
            ValueError: For fewer free rows than documents, numbers that the cache
                already has, documents that the cache cannot hold, and as `fill` raises.
        """
        num, step = num_items(items), self._step(step)
        items = jax.tree.map(jnp.asarray, items)
        check_alike(self.items, items)
        check_holds(self.items, items)
        here = np.asarray(self.ids)
        free = np.flatnonzero(here < 0)
        if len(free) < num:
            raise ValueError(
                f"there are {num} more documents and {len(free)} free rows: make room "
                f"by `cache.resized({default_capacity(int((here >= 0).sum()) + num)})`."
            )
        after = np.arange(num) + max(int(here.max()), -1) + 1
        numbers = checked_ids(after if ids is None else ids, num)
        again = np.intersect1d(numbers, here)
        if len(again):
            raise ValueError(
                f"`ids` has {again[0]}, which the cache has: leave it out."
            )
        found = embedded(encode, items, batch_size)
        check_embeddings(found)
        slots, marks = jnp.asarray(free[:num]), Marks(numbers, content_digests(items))
        new = self.inserted(slots, items, marks, found, jnp.asarray(step))
        return eqx.tree_at(lambda c: c.offsets, new, self.offsets.at[slots].set(0))

    def rebuilt(
        self,
        encode: Callable[[PyTree], Float[Array, "batch size"]],
        *,
        step: int | None = None,
        batch_size: int | None = None,
    ) -> "NegativeCache":
        """Return the cache with every document embedded anew.

        Arguments:
            encode: A batch of documents to embeddings, as in `fill`.
            step: That it is embedded at; by default that of the newest embedding.
            batch_size: Documents embedded at once.

        Raises:
            ValueError: For embeddings that are not finite, or what is no step.
        """
        step = self._step(step)
        found = embedded(encode, self.items, batch_size)
        # What free rows hold, an encoder may have no embedding of.
        found = jnp.where(self.valid[:, None], found, 0)
        check_finite(found)
        rows = self.rows.put(jnp.arange(self.capacity), found)
        stamps = jnp.where(self.valid, step, -1).astype(jnp.int32)
        return eqx.tree_at(lambda c: (c.rows, c.stamps), self, (rows, stamps))

    def restamped(self, step: int = 0) -> "NegativeCache":
        """Return the cache with its steps shifted, so that the newest is `step`.

        Ages do not change. A new run can then begin with the cache of an earlier run.

        Arguments:
            step: The step that the new run is at.

        Raises:
            ValueError: If `step` is no step.
        """
        moved = self.stamps + (checked_step(step) - jnp.max(self.stamps))
        stamps = jnp.where(self.valid, moved, -1)
        return eqx.tree_at(lambda c: c.stamps, self, stamps)

    def _step(self, step: int | None) -> int:
        newest = max(int(jnp.max(self.stamps)), 0)
        return newest if step is None else checked_step(step)

    def resized(self, capacity: int) -> "NegativeCache":
        """Return a cache of another capacity, such as for another number of devices.

        Free rows go first, then the oldest.

        Arguments:
            capacity: Rows in all.
        """
        order = jnp.argsort(jnp.where(self.valid, -self.stamps, _LAST), stable=True)
        keep = jnp.sort(order[: min(capacity, self.capacity)])
        example = jax.tree.map(lambda x: x[:1], self.items)
        new = self.empty(example, self.rows.shape[1], capacity, dtype=self.dtype)
        put = lambda x, old: x.at[: len(keep)].set(old[keep]) if x.ndim else old
        return jax.tree.map(put, new, self)

    @property
    def dtype(self) -> Any:
        """The type that embeddings are stored in."""
        return self.rows.values.dtype  # pyright: ignore[reportAttributeAccessIssue]
