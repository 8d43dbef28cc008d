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

from .cache import NegativeCache
from .digests import content_digests
from .pairs import Marks, Pairs, num_pairs


class Excluded(NamedTuple):
    """Documents that are no negatives: of all queries, and of each.

    **Attributes:** `ids` and `digests`, of all queries; `known`, `(queries, any)`, each
    query's own; `contents`, the digests of these. What is -1 excludes nothing.
    """

    ids: Int[Array, " all"]
    digests: Int[Array, " all"]
    known: Int[Array, "queries any"]
    contents: Int[Array, "queries any"] | None = None

    @classmethod
    def nothing(cls, num: int) -> "Excluded":
        """Return that all documents are negatives of `num` queries."""
        none = jnp.zeros(0, jnp.int32)
        return cls(none, none, jnp.zeros((num, 0), jnp.int32))

    def of(self, query: Int[Array, ""]) -> "Excluded":
        """Return what is excluded of one query, as of a batch of one."""
        own = jax.tree.map(lambda x: x[query][None], (self.known, self.contents))
        return self._replace(known=own[0], contents=own[1])

    def negatives(self, documents: Marks) -> Bool[Array, "queries documents"]:
        """Return which documents are negatives; of one row where it is one for all."""
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

    def _number(self, column: int) -> Int[Array, " queries"]:
        # -1 is no number: a document without one is not excluded by it.
        number = self.known[:, column]
        return jnp.where(number < 0, -2, number)


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

    **Arguments:** `cache`, if there is one, which knows the content of what is `known`.
    """
    num, none = num_pairs(pairs), jnp.zeros(0, jnp.int32)
    own = Marks(documents.ids[:num], documents.digests[:num])
    known, contents = own.ids[:, None], own.digests[:, None]
    if pairs.known is not None:
        known = jnp.concatenate([known, pairs.known], axis=1)
        of_known = jnp.full(pairs.known.shape, -1, contents.dtype)
        if cache is not None:
            of_known = cache.contents(pairs.known)
        contents = jnp.concatenate([contents, of_known], axis=1)
    excluded = Excluded(none, none, known, contents)
    return ~_shared(pairs, documents, ~excluded.negatives(documents))


def scored_in_batch(
    pairs: Pairs, documents: Marks, cache: NegativeCache | None = None
) -> Bool[Array, "batch documents"]:
    """Return which documents of a batch a query's softmax has beside its own.

    Its negatives, each once: of documents that are one, the first.
    """
    earlier = jnp.tri(len(documents.ids), k=-1, dtype=bool)
    again = jnp.any(same(documents, documents) & earlier, axis=1)
    return negatives_in_batch(pairs, documents, cache) & ~again[None]


def _shared(
    pairs: Pairs, documents: Marks, answers: Bool[Array, "batch documents"]
) -> Bool[Array, "batch documents"]:
    """Return answers, also those of equal queries and those equal to an answer."""
    asked = content_digests(pairs.queries)
    equal, alike = asked[:, None] == asked[None], same(documents, documents)
    repeated = jnp.sum(equal) > len(asked)
    repeated |= jnp.sum(alike) > len(documents.ids)
    # Sums of ones, exact in float32. Most batches repeat nothing, and need none.
    product = lambda a, b: jnp.matmul(a.astype(jnp.float32), b.astype(jnp.float32)) > 0
    return jax.lax.cond(
        repeated, lambda: product(product(equal, answers), alike), lambda: answers
    )


def excluded_by(pairs: Pairs, documents: Marks, cache: NegativeCache) -> Excluded:
    """Return what of a cache is no negative of a batch.

    The batch's documents, which its loss has already, and those known to answer.
    """
    known = pairs.known
    if known is None:
        known = jnp.zeros((num_pairs(pairs), 0), jnp.int32)
    known = known.astype(jnp.int32)
    return Excluded(documents.ids, documents.digests, known, cache.contents(known))
