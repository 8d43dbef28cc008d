"""The negative cache: documents with embeddings that may be stale."""

from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from effgen.core.counts import check_count

from .digests import content_digests
from .embedding import (
    check_embeddings,
    check_finite,
    embedded,
    num_items,
)
from .lookup import joined_rows, rows_of
from .pairs import MOST_NUMBER, Marks
from .rows import AbstractRows, stored


_LEAST_BLOCK, _MOST_BLOCK = 16, 1 << 15
_DEVICES = 8


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

        Raises:
            TypeError: For items that are text, or another `encode` or `dtype`.
            ValueError: For an empty corpus, leaves of different lengths, repeated or
                negative ids, a capacity too small, a negative step, or embeddings that
                are not finite or all zero.
        """
        num = num_items(items)
        capacity = default_capacity(num) if capacity is None else capacity
        check_count("capacity", capacity)
        if step < 0:
            raise ValueError(f"`step` is {step}: pass the step of a run, from 0 on.")
        if capacity < num:
            raise ValueError(
                f"`capacity` is {capacity} and there are {num} documents: raise it, or "
                "fill with some of them and refresh with `PositivesIn()`."
            )
        numbers = checked_ids(ids, num)
        found = embedded(encode, items, batch_size)
        check_embeddings(found)
        items = jax.tree.map(jnp.asarray, items)
        return _filled(items, found, numbers, step, capacity, dtype)

    @classmethod
    def empty(
        cls, example: PyTree, size: int, capacity: int, *, dtype: Any = jnp.float32
    ) -> "NegativeCache":
        """Return a cache with all rows free, for documents like those of `example`.

        Arguments:
            example: One or more documents, with the leading axis.
            size: The numbers of an embedding.
            capacity: The rows.
            dtype: Of the embeddings, as of `fill`.

        Raises:
            TypeError: For another `dtype`.
            ValueError: For a capacity or a size below 1.
        """
        for name, value in (("capacity", capacity), ("size", size)):
            check_count(name, value)
        blank = lambda x: jnp.zeros((capacity, *x.shape[1:]), x.dtype)
        return cls(
            jax.tree.map(blank, example),
            stored(jnp.zeros((capacity, size)), dtype),
            jnp.full(capacity, -1, jnp.int32),
            jnp.full(capacity, -1, jnp.int32),
            jnp.full(capacity, -1, jnp.int32),
            jnp.zeros(capacity),
            jnp.zeros((), bool),
        )

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
        near = jnp.clip(marks.ids, 0, self.capacity - 1).astype(jnp.int32)
        direct = self.ids[near] == marks.ids

        def searched() -> Int[Array, " documents"]:
            by_number = rows_of(self.ids, self.valid, marks.ids)
            by_content = jax.lax.cond(
                jnp.any(marks.ids < 0),
                lambda: rows_of(self.digests, self.valid, marks.digests),
                lambda: by_number,
            )
            return jnp.where(marks.ids >= 0, by_number, by_content)

        # Where rows are in the order of their numbers, nothing is searched for.
        return jax.lax.cond(jnp.all(direct & (marks.ids >= 0)), lambda: near, searched)

    def places(self, ids: Int[Array, "*any"]) -> Int[Array, "*any"]:
        """Return documents' rows by number, `capacity` of one that is not here.

        Arguments:
            ids: The numbers, of any shape.
        """
        flat = ids.reshape(-1)
        if not flat.shape[0]:
            return ids
        near = jnp.clip(flat, 0, self.capacity - 1)
        direct = (self.ids[near] == flat) & (flat >= 0)
        found = jax.lax.cond(
            jnp.all(direct | (flat < 0)),
            lambda: jnp.where(direct, near, self.capacity).astype(jnp.int32),
            lambda: joined_rows(self.ids, flat),
        )
        return found.reshape(ids.shape)

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
        """
        gone = jnp.isin(self.ids, jnp.asarray(ids))
        free = lambda x: jnp.where(gone, -1, x)
        return eqx.tree_at(
            lambda c: (c.ids, c.digests, c.stamps),
            self,
            (free(self.ids), free(self.digests), free(self.stamps)),
        )

    def rebuilt(
        self,
        encode: Callable[[PyTree], Float[Array, "batch size"]],
        *,
        step: int = 0,
        batch_size: int | None = None,
    ) -> "NegativeCache":
        """Return the cache with every document embedded anew.

        Arguments:
            encode: A batch of documents to embeddings, as of `fill`.
            step: That it is embedded at.
            batch_size: Documents embedded at once.

        Raises:
            ValueError: For embeddings that are not finite.
        """
        found = embedded(encode, self.items, batch_size)
        # What free rows hold, an encoder may have no embedding of.
        found = jnp.where(self.valid[:, None], found, 0)
        check_finite(found)
        rows = self.rows.put(jnp.arange(self.capacity), found)
        stamps = jnp.where(self.valid, step, -1).astype(jnp.int32)
        return eqx.tree_at(lambda c: (c.rows, c.stamps), self, (rows, stamps))

    def resized(self, capacity: int) -> "NegativeCache":
        """Return a cache of another capacity, such as for another number of devices.

        Free rows go first, then the oldest.

        Arguments:
            capacity: Rows in all.
        """
        order = jnp.argsort(-self.stamps, stable=True)
        keep = jnp.sort(order[: min(capacity, self.capacity)])
        example = jax.tree.map(lambda x: x[:1], self.items)
        new = self.empty(example, self.rows.shape[1], capacity, dtype=self.dtype)
        put = lambda x, old: x.at[: len(keep)].set(old[keep]) if x.ndim else old
        return jax.tree.map(put, new, self)

    @property
    def dtype(self) -> Any:
        """The type that embeddings are stored in."""
        return self.rows.values.dtype  # pyright: ignore[reportAttributeAccessIssue]


@partial(jax.jit, static_argnames=("capacity", "dtype"))
def _filled(
    items: PyTree,
    found: Float[Array, "documents size"],
    numbers: Int[Array, " documents"],
    step: int,
    capacity: int,
    dtype: Any,
) -> NegativeCache:
    num, size = found.shape
    digests = content_digests(items)
    ordered = jnp.sort(digests)
    cache = NegativeCache.empty(items, size, capacity, dtype=dtype)
    there = jax.tree.map(
        lambda x, new: new if len(x) == num else x.at[:num].set(new), cache.items, items
    )
    return NegativeCache(
        there,
        cache.rows.put(jnp.arange(num), found),
        cache.ids.at[:num].set(numbers),
        cache.digests.at[:num].set(digests),
        cache.stamps.at[:num].set(step),
        cache.offsets,
        jnp.any(ordered[1:] == ordered[:-1]),
    )


def block_size(capacity: int) -> int:
    """Return how many rows make a block: about the root of all, a power of two.

    Arguments:
        capacity: Rows in all; a block has 16 to 32,768 of them, or all where they are
            few.
    """
    root = 1 << (max(capacity, 1).bit_length() - 1) // 2
    return min(max(root, _LEAST_BLOCK), _MOST_BLOCK, capacity)


def default_capacity(num: int) -> int:
    """Return as many rows as documents, or more, so that blocks and devices divide."""
    unit = _DEVICES * block_size(num)
    return num if num < unit else -(-num // unit) * unit


def checked_ids(ids: Any, num: int) -> Int[Array, " documents"]:
    """Return documents' numbers, by default in order.

    Raises:
        ValueError: For what are no distinct numbers, one a document.
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
