"""How often each document is in a batch, counted in arrays or estimated in a stream."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int

from effgen.core.contract.counts import check_count
from effgen.retrieval_cache.data.pairs import as_numbers, pairs_at_hand

from .negative_cache import NegativeCache


_SPARSEST = 4  # numbers for each row of a cache


def as_frequencies(given: Any) -> Any:
    """Return a list or a pandas column as an array, and anything else unchanged."""
    listed = isinstance(given, list | tuple) or hasattr(given, "to_numpy")
    return np.asarray(given) if listed else given


def check_frequencies(frequencies: Any) -> None:
    """Raise `ValueError` for what does not say how often each document is met."""
    if frequencies is None:
        return
    if len(np.shape(frequencies)) != 1:
        raise ValueError(
            f"`frequencies` has shape {np.shape(frequencies)}: pass one number for "
            "each document number, such as `np.bincount(ids)`."
        )
    if isinstance(frequencies, Tracer | jax.ShapeDtypeStruct):
        return
    given = np.asarray(frequencies)
    if not jnp.issubdtype(given.dtype, jnp.number):
        raise ValueError(
            f"`frequencies` are {given.dtype}: pass one number for each document "
            "number, such as `np.bincount(ids)`."
        )
    if not (np.isfinite(given) & (given >= 0)).all() or not given.any():
        raise ValueError(
            "`frequencies` are not all finite, or some below zero, or all zero: pass "
            "how often each document is met, such as `np.bincount(ids)`."
        )


def met(cache: NegativeCache, data: Any) -> Float[Array, " corpus"] | None:
    """Return how often each document number occurs in arrays of pairs.

    Returns `None` for other data, for documents without a number, if all documents of
    the cache occur equally often, or if most numbers belong to no document.
    """
    ids = _numbers(data)
    if ids is None or not len(ids) or ids.min() < 0:
        return None
    if not cache.ids.is_fully_addressable:
        return None
    here = np.asarray(cache.ids)[np.asarray(cache.valid)]
    most = max(int(ids.max()), int(here.max(initial=0))) + 1
    if most > _SPARSEST * cache.capacity:
        return None
    often = np.bincount(ids, minlength=most)
    if len(here) and (often[here] == often[here[0]]).all():
        return None
    return jnp.asarray(often, jnp.float32)


def _numbers(data: Any) -> Int[np.ndarray, " pairs"] | None:
    """Return the documents' numbers of data that are arrays of pairs."""
    try:
        ids = getattr(pairs_at_hand(data), "ids", None)
    except TypeError:
        return None  # `check` says what is wrong
    kind = getattr(ids, "dtype", None)
    if kind is None or not jnp.issubdtype(kind, jnp.integer):
        return None
    if not getattr(ids, "is_fully_addressable", True):
        return None
    return np.asarray(ids)


class StreamedFrequencies(eqx.Module):
    """The share of batches that each document is in, estimated from a stream.

        gap_t = step - last step that it was in a batch
        gap = gap + max(1 / gaps so far, rate) (gap_t - gap),    frequency = 1 / gap

    It is a memory of `InBatchTrainer`, of 12 bytes a number. A visit is a batch that
    has the document. At the first visit the gap is the number of steps so far. The
    second visit replaces it. From then on the estimate is exact for a document with
    equal gaps. For a document whose frequency changes, about the last `1 / rate` visits
    count. A document that occurs twice in a batch counts once, as in the softmax.

    Attributes:
        last: The step of the last visit, `(corpus,)`, -1 before the first.
        gaps: The mean gap between visits, `(corpus,)`, in steps.
        visits: The number of visits, `(corpus,)`.
        steps: The number of batches.
        rate: The least weight of a new gap in the mean.

    Source:
        Yi et al. (2019), algorithm 2, with numbers in place of hashes.
    """

    last: Int[Array, " corpus"]
    gaps: Float[Array, " corpus"]
    visits: Int[Array, " corpus"]
    steps: Int[Array, ""]
    rate: float = eqx.field(static=True, default=0.01)

    @classmethod
    def of(cls, num: int, *, rate: float = 0.01) -> "StreamedFrequencies":
        """Return the frequencies before the first batch.

        Arguments:
            num: The count of numbers, which are `0 .. num - 1`.
            rate: The least weight of a new gap in the mean, above 0 and at most 1.

        Raises:
            ValueError: If `num` or `rate` is out of range.
        """
        check_count("num", num)
        if not 0 < rate <= 1:
            raise ValueError(f"`rate` is {rate}: pass a share, such as 0.01.")
        none, first = jnp.zeros(num, jnp.int32), jnp.zeros((), jnp.int32)
        return cls(none - 1, jnp.zeros(num), none, first, float(rate))

    def met(self, ids: Int[Array, " batch"]) -> "StreamedFrequencies":
        """Return the frequencies after one more batch.

        Arguments:
            ids: The numbers of its documents, `(batch,)`. Numbers past the end are
                ignored.
        """
        ids = as_numbers(ids)
        slots = jnp.where(ids >= 0, ids, len(self.last))
        taken = lambda x: x.at[slots].get(mode="fill", fill_value=0)
        last, gaps, visits = map(taken, (self.last, self.gaps, self.visits))
        share = jnp.maximum(1 / jnp.maximum(visits, 1), self.rate)
        # All places of one document in a batch are given the same.
        gaps = gaps + share * (self.steps - last - gaps)
        put = lambda x, new: x.at[slots].set(new.astype(x.dtype), mode="drop")
        now = jnp.broadcast_to(self.steps, slots.shape)
        return StreamedFrequencies(
            put(self.last, now),
            put(self.gaps, gaps),
            put(self.visits, visits + 1),
            self.steps + 1,
            self.rate,
        )

    def frequencies(self) -> Float[Array, " corpus"]:
        """Return the share of batches that each document is in; zero if never met."""
        return self.at(jnp.arange(len(self.last)))

    def at(self, ids: Int[Array, " batch"]) -> Float[Array, " batch"]:
        """Return the share of batches that some documents are in.

        Arguments:
            ids: Their numbers, `(batch,)`.

        Returns:
            `(batch,)`. It is zero for a document without a visit, and NaN for a number
                out of range.
        """
        ids = as_numbers(ids)
        there = {"mode": "fill", "wrap_negative_indices": False}
        visits = self.visits.at[ids].get(fill_value=-1, **there)
        gaps = self.gaps.at[ids].get(fill_value=1, **there)
        often = jnp.where(visits > 0, 1 / jnp.where(visits > 0, gaps, 1), 0)
        return jnp.where(visits < 0, jnp.nan, often)
