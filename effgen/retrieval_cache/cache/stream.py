"""A cache for a corpus that is a stream: a batch's documents replace the oldest."""

from typing import Any, ClassVar

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, PRNGKeyArray

from effgen.retrieval_cache.data.pairs import Marks

from .frequencies import as_frequencies, check_frequencies
from .lookup import largest_rows
from .negative_cache import NegativeCache
from .refresh import AbstractRefresh, Encode, StepEmbeddings, ages


class PositivesIn(AbstractRefresh):
    """Store the batch's documents in place of the oldest rows, as from a stream.

    It is for corpora larger than the cache, or without an end. A document that the
    cache already has keeps its row, with the new embedding. The cache then has frequent
    documents more often, and `frequencies` corrects for that. A row's scores are
    lowered by the logarithm of the probability that the cache has its document, `1 -
    exp(-frequency * turnover)`. Here `turnover` is the age of the oldest row in steps.
    Rows written back stay longer.

    Arguments:
        frequencies: How often each document number is in a batch per step, in
            expectation, `(corpus,)`, such as `batch_size * np.bincount(ids) /
            len(ids)`; by default no correction. For a document past its end, or without
            a number, the mean is used.

    Raises:
        ValueError: If `frequencies` are no frequencies.
    """

    replaces: ClassVar[bool] = True

    frequencies: Float[Array, " corpus"] | None = eqx.field(
        default=None, converter=as_frequencies
    )

    def __check_init__(self) -> None:
        """Raise `ValueError` for invalid `frequencies`."""
        check_frequencies(self.frequencies)

    def __call__(
        self,
        cache: NegativeCache,
        seen: StepEmbeddings,
        encode: Encode,
        step: Int[Array, ""],
        *,
        key: PRNGKeyArray,
    ) -> NegativeCache:
        """Return the cache after a step.

        Arguments:
            cache: The cache before.
            seen: What the step has embedded.
            encode: Not used.
            step: The number of steps taken.
            key: Not used.
        """
        num = len(seen.embeddings)
        slots = _places(cache, seen.marks, num, seen.mesh)
        new = cache.inserted(slots, seen.documents, seen.marks, seen.embeddings, step)
        if self.frequencies is None:
            return new
        turnover = step + 1 - jnp.min(jnp.where(new.valid, new.stamps, step))
        known = jnp.asarray(self.frequencies, float)
        near = jnp.clip(new.ids, 0, len(known) - 1)
        often = jnp.where(new.ids == near, known[near], jnp.mean(known))
        chance = -jnp.expm1(-jnp.maximum(often, 1e-12) * turnover)
        return eqx.tree_at(lambda c: c.offsets, new, -jnp.log(chance))

    def check(self, cache: NegativeCache, num_documents: int) -> None:
        """Raise for a cache smaller than a batch's documents, or other `frequencies`.

        Arguments:
            cache: The cache.
            num_documents: The documents of a batch.

        Raises:
            ValueError: For such a cache, or `frequencies` that are not per step.
        """
        if cache.capacity < num_documents:
            raise ValueError(
                f"the cache has {cache.capacity} rows and a batch {num_documents} "
                "documents: make it at least as large."
            )
        _check_unit(self.frequencies, num_documents)


def _check_unit(frequencies: Any, num_documents: int) -> None:
    """Raise `ValueError` for counts, or shares, in place of documents a step."""
    if frequencies is None:
        return
    total = float(np.sum(np.asarray(frequencies, float)))
    is_share = num_documents > 1 and abs(total - 1) < 1e-3
    if total > 1.05 * num_documents or is_share:
        raise ValueError(
            f"`frequencies` sum to {total:g}, and a batch has {num_documents} "
            "documents: pass how often each is in one, such as `batch_size * "
            "np.bincount(ids) / len(ids)`."
        )


def _places(
    cache: NegativeCache, marks: Marks, num: int, mesh: Mesh | None
) -> Int[Array, " documents"]:
    """Return the row of each document: its present one, or else one of the oldest."""
    there = cache.find(marks)
    taken = jnp.zeros(cache.capacity, bool).at[there].set(True, mode="drop")
    old = largest_rows(jnp.where(taken, -1, ages(cache)), num, mesh)
    absent = there == cache.capacity
    # If a batch has the same document twice, the first is kept. One number is one
    # document, whatever its content.
    same = marks.digests[:, None] == marks.digests[None]
    same |= (marks.ids[:, None] == marks.ids[None]) & (marks.ids[None] >= 0)
    again = jnp.any(same & jnp.tri(num, k=-1, dtype=bool), axis=1)
    fill = absent & ~again
    rank = jnp.cumsum(fill) - 1
    slots = jnp.where(fill, old[jnp.clip(rank, 0, num - 1)], there)
    return jnp.where(again, cache.capacity, slots)
