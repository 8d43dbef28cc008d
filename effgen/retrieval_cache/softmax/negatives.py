"""What is a negative: one rule for the loss of a batch, the pass, and `cache_logit`.

A document is no negative of a query that it answers. It answers if it is the query's
own, or known to answer, or the own of an equal query, or equal to one of these by its
number or its content. The cache leaves out the batch's documents too, for the loss has
their scores already.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from effgen.retrieval_cache.cache.negative_cache import NegativeCache
from effgen.retrieval_cache.data.digests import content_digests
from effgen.retrieval_cache.data.pairs import Marks, Pairs, as_numbers, num_pairs


# Up to so many documents that answer are compared with each row. More are looked for
# in the order of their rows: a step's cost then hardly grows with them.
_FEW = 16


class Excluded(NamedTuple):
    """Documents that are no negatives: of all queries, and of each.

    What is -1 excludes nothing.

    Attributes:
        ids: The numbers of those of all queries, `(all,)`.
        digests: Their digests, `(all,)`.
        known: The numbers of each query's own, `(queries, any)`.
        contents: The digests of these.
        rows: More of each query's, as rows of the cache in order, `(queries, many)`,
            and past its end where there are no more.
        repeated: The contents of these in order.
        repeats: Whether others may have these contents; then they are looked at.
    """

    ids: Int[Array, " all"]
    digests: Int[Array, " all"]
    known: Int[Array, "queries any"]
    contents: Int[Array, "queries any"] | None = None
    rows: Int[Array, "queries many"] | None = None
    repeated: Int[Array, "queries many"] | None = None
    repeats: Bool[Array, ""] | None = None

    @classmethod
    def nothing(cls, num: int) -> "Excluded":
        """Return that all documents are negatives of all queries.

        Arguments:
            num: The number of queries.

        Returns:
            What excludes nothing.
        """
        none = jnp.zeros(0, jnp.int32)
        return cls(none, none, jnp.zeros((num, 0), jnp.int32))

    def of(self, query: Int[Array, ""]) -> "Excluded":
        """Return what is excluded of one query, as of a batch of one.

        Arguments:
            query: The place of the query.

        Returns:
            What is excluded of it.
        """
        own = (self.known, self.contents, self.rows, self.repeated)
        known, contents, *many = jax.tree.map(lambda x: x[query][None], own)
        rows, repeated = many
        return self._replace(
            known=known, contents=contents, rows=rows, repeated=repeated
        )

    def negatives(self, documents: Marks) -> Bool[Array, "queries documents"]:
        """Return which documents are negatives, by all but `rows`.

        Arguments:
            documents: By what the documents are recognized.

        Returns:
            `(queries, documents)`, or `(1, documents)` where it is one for all.
        """
        found = jnp.ones((1, documents.ids.shape[0]), bool)
        if self.ids.shape[0]:
            alike = same(documents, Marks(self.ids, self.digests))
            found &= ~jnp.any(alike, axis=1)[None]
        for column in range(self.known.shape[1]):
            found = found & (documents.ids[None] != self._number(column)[:, None])
            if self.contents is not None:
                content = self.contents[:, column, None]
                found = found & ((documents.digests[None] != content) | (content < 0))
        return found

    def joined(
        self, known: Int[Array, "queries any"], cache: NegativeCache
    ) -> "Excluded":
        """Return it with what is known to answer each query.

        Arguments:
            known: Numbers of documents, `(queries, any)`, filled up with -1.
            cache: The cache, which knows their contents and rows.

        Returns:
            What is excluded with these.
        """
        known = as_numbers(known)
        if known.shape[1] > _FEW:
            rows = cache.places(known)
            content = lambda: cache.digests.at[rows].get(mode="fill", fill_value=-1)
            return self._replace(
                rows=jnp.sort(rows, axis=1),
                repeated=jax.lax.cond(
                    cache.repeats,
                    lambda: jnp.sort(content(), axis=1),
                    lambda: jnp.full(rows.shape, -1, jnp.int32),
                ),
                repeats=cache.repeats,
            )
        both = jnp.concatenate([self.known, known], axis=1)
        return self._replace(known=both, contents=cache.contents(both))

    def outside(self, start: Int[Array, ""], num: int) -> Bool[Array, "queries num"]:
        """Return which of `num` rows in a piece are none of `rows`.

        A query's are next to each other, and marked one after the other: as often as
        the query has them that has most in the piece.

        Arguments:
            start: The first row of the piece.
            num: How many rows it has.

        Returns:
            `(queries, num)`.
        """
        rows = self.rows
        assert rows is not None
        queries, most = rows.shape
        bounds = jnp.stack([start, start + num]).astype(rows.dtype)
        first, last = jax.vmap(jnp.searchsorted, (0, None))(rows, bounds).T
        each = jnp.arange(queries)

        def mark(i: Int[Array, ""], found: Array) -> Array:
            at = jnp.minimum(first + i, most - 1)
            place = jnp.where(first + i < last, rows[each, at] - start, num)
            return found.at[each, place].set(False, mode="drop")

        start_with = jnp.ones((queries, num), bool)
        return jax.lax.fori_loop(0, jnp.max(last - first), mark, start_with)

    def unlike(
        self, found: Bool[Array, "queries any"], digests: Int[Array, " any"]
    ) -> Bool[Array, "queries any"]:
        """Return which are found of contents that are not among those of `rows`.

        Arguments:
            found: Which are negatives otherwise, `(queries, any)`.
            digests: Their digests, `(any,)`.

        Returns:
            Which still are, `(queries, any)`.
        """
        repeated, repeats = self.repeated, self.repeats
        if repeated is None or repeats is None:
            return found
        return jax.lax.cond(
            repeats,
            lambda: found & ~(among(repeated, digests) & (digests >= 0)[None]),
            lambda: found,
        )

    def without(self, rows: Int[Array, " taken"]) -> Bool[Array, "queries taken"]:
        """Return which of some rows are none of `rows`.

        Arguments:
            rows: Rows of the cache, `(taken,)`.

        Returns:
            `(queries, taken)`.
        """
        assert self.rows is not None
        return ~among(self.rows, rows)

    def _number(self, column: int) -> Int[Array, " queries"]:
        # -1 is no number: a document without one is not excluded by it.
        number = self.known[:, column]
        return jnp.where(number < 0, -2, number)


def among(
    ordered: Int[Array, "queries many"], values: Int[Array, " any"]
) -> Bool[Array, "queries any"]:
    """Return which values are in each of some rows of numbers in order."""
    place = jax.vmap(jnp.searchsorted, (0, None))(ordered, values)
    place = jnp.minimum(place, ordered.shape[1] - 1)
    return jnp.take_along_axis(ordered, place, axis=1) == values[None]


def same(first: Marks, second: Marks) -> Bool[Array, "first second"]:
    """Return which documents are one: of the same number or the same content."""
    number = first.ids[:, None] == second.ids[None]
    content = first.digests[:, None] == second.digests[None]
    numbered, digested = first.ids[:, None] >= 0, first.digests[:, None] >= 0
    return (number & numbered) | (content & digested)


def negatives_in_batch(
    pairs: Pairs, documents: Marks, cache: NegativeCache | None = None
) -> Bool[Array, "batch documents"]:
    """Return which documents of a batch are negatives of which query.

    A cache, if there is one, knows the content of what is `known`.
    """
    num = num_pairs(pairs)
    answers = same(Marks(documents.ids[:num], documents.digests[:num]), documents)
    if pairs.known is not None and pairs.known.shape[1]:
        known = as_numbers(pairs.known)
        answers |= _in(known, documents.ids)
        if cache is not None:
            answers |= _in(cache.contents(known), documents.digests)
    return ~_shared(pairs, documents, answers)


def _in(
    numbers: Int[Array, "queries any"], values: Int[Array, " documents"]
) -> Bool[Array, "queries documents"]:
    """Return which values are among each query's numbers; -1 is none."""
    # The few values are put in order, not the many numbers: each of these marks the
    # first place of the value that it is.
    ordered = jnp.sort(values)
    place = jnp.minimum(jnp.searchsorted(ordered, numbers), len(ordered) - 1)
    at = jnp.where(ordered[place] == numbers, place, len(ordered))
    each = jnp.arange(len(numbers))[:, None]
    marked = jnp.zeros((len(numbers), len(values)), bool)
    marked = marked.at[each, at].set(True, mode="drop")
    return marked[:, jnp.searchsorted(ordered, values)] & (values >= 0)[None]


def scored_in_batch(
    pairs: Pairs, documents: Marks, cache: NegativeCache | None = None
) -> Bool[Array, "batch documents"]:
    """Return which documents of a batch a query's softmax has beside its own."""
    return each_once(negatives_in_batch(pairs, documents, cache), documents)


def each_once(
    negatives: Bool[Array, "batch documents"], documents: Marks
) -> Bool[Array, "batch documents"]:
    """Return the negatives, each once: of documents that are one, the first."""
    earlier = jnp.tri(len(documents.ids), k=-1, dtype=bool)
    again = jnp.any(same(documents, documents) & earlier, axis=1)
    return negatives & ~again[None]


def _shared(
    pairs: Pairs, documents: Marks, answers: Bool[Array, "batch documents"]
) -> Bool[Array, "batch documents"]:
    """Return answers, also those of equal queries and those equal to an answer."""
    asked = content_digests(pairs.queries)
    equal, alike = asked[:, None] == asked[None], same(documents, documents)
    repeated = jnp.sum(equal) > len(asked)
    repeated |= jnp.sum(alike) > len(documents.ids)
    # Most batches repeat nothing, and need none of it.
    return jax.lax.cond(
        repeated, lambda: _spread(answers, asked, documents), lambda: answers
    )


def _spread(
    answers: Bool[Array, "batch documents"],
    asked: Int[Array, " batch"],
    documents: Marks,
) -> Bool[Array, "batch documents"]:
    """Return the answers of all equal queries, and what is equal to one of these."""
    found = _any_of_equals(answers, asked, jnp.ones_like(asked, bool)).T
    equal = [_any_of_equals(found, marks, marks >= 0) for marks in documents]
    return jnp.any(jnp.stack(equal), axis=0).T


def _any_of_equals(
    rows: Bool[Array, "rows columns"],
    marks: Int[Array, " rows"],
    marked: Bool[Array, " rows"],
) -> Bool[Array, "rows columns"]:
    """Return for each row which columns any row of the same mark has."""
    num = len(marks)
    first = jnp.searchsorted(jnp.sort(marks), marks)
    place = jnp.where(marked, first, num + jnp.arange(num))
    return jnp.zeros((2 * num, rows.shape[1]), bool).at[place].max(rows)[place]


def excluded_by(pairs: Pairs, documents: Marks, cache: NegativeCache) -> Excluded:
    """Return what of a cache is no negative of a batch.

    The batch's documents, which its loss has already, and those known to answer.
    """
    none = jnp.zeros((num_pairs(pairs), 0), jnp.int32)
    known = none if pairs.known is None else pairs.known
    return Excluded(documents.ids, documents.digests, none).joined(known, cache)
