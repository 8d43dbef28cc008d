"""What is embedded anew as training goes on: policies of refreshing a cache."""

import abc
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from .cache import NegativeCache
from .pairs import Marks


class Seen(NamedTuple):
    """What a step has embedded anyway, without dropout.

    `slots` and `fresh` are rows drawn from the cache, `documents`, `marks` and
    `embeddings` are of the batch. `queries` were embedded, `chunk` documents at once.
    `drift` is the standard deviation of scores since their rows were embedded.
    """

    slots: Int[Array, " draws"]
    fresh: Float[Array, "draws size"]
    documents: PyTree
    marks: Marks
    embeddings: Float[Array, "documents size"]
    queries: int
    drift: Float[Array, ""]
    chunk: int = 1 << 10


Encode = Callable[[PyTree], Float[Array, "batch size"]]


class AbstractRefresh(eqx.Module):
    """A policy. Several are applied in turn: `(WriteBack(), OldestFirst(0.01))`.

    Attributes:
        replaces: Whether a batch's documents take the place of those of their number.
    """

    replaces: ClassVar[bool] = False

    @abc.abstractmethod
    def __call__(
        self,
        cache: NegativeCache,
        seen: Seen,
        encode: Encode,
        step: Int[Array, ""],
        *,
        key: PRNGKeyArray,
    ) -> NegativeCache:
        """Return the cache after a step.

        Arguments:
            cache: The cache before.
            seen: What the step has embedded.
            encode: Documents to embeddings, by the model after the step.
            step: The number of steps taken.
            key: A JAX random key.
        """

    def check(self, cache: NegativeCache, num_documents: int) -> None:
        """Raise `ValueError` for a cache that the policy cannot refresh; default: none.

        Arguments:
            cache: The cache.
            num_documents: The documents of a batch.
        """
        return


class WriteBack(AbstractRefresh):
    """Keep the embeddings of what was drawn, and of the batch's documents cached.

    It costs no embedding, and refreshes the rows where the softmax has its mass.
    """

    def __call__(
        self,
        cache: NegativeCache,
        seen: Seen,
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
        cache = cache.written(seen.slots, seen.fresh, step)
        return cache.written(cache.find(seen.marks), seen.embeddings, step)


class OldestFirst(AbstractRefresh):
    """Embed the share `rate` of the rows anew, those embedded longest ago.

    No row is older than `1 / rate` steps; one costs about a third of a trained one.

    Arguments:
        rate: The share of the rows, above 0 and at most 1.

    Raises:
        ValueError: For a rate that is no share.
    """

    rate: float

    def __check_init__(self) -> None:
        """Raise `ValueError` for a rate that is no share."""
        _check_rate(self.rate)

    def __call__(
        self,
        cache: NegativeCache,
        seen: Seen,
        encode: Encode,
        step: Int[Array, ""],
        *,
        key: PRNGKeyArray,
    ) -> NegativeCache:
        """Return the cache after a step.

        Arguments:
            cache: The cache before.
            seen: What the step has embedded.
            encode: Documents to embeddings, by the model after the step.
            step: The number of steps taken.
            key: Not used.
        """
        slots = oldest(cache, _count(self.rate, cache))
        return _renewed(cache, slots, encode, step, seen.chunk)


class RandomRows(AbstractRefresh):
    """Embed rows drawn evenly, the share `rate` of all, anew.

    Arguments:
        rate: The share of the rows, above 0 and at most 1.

    Raises:
        ValueError: For a rate that is no share.
    """

    rate: float

    def __check_init__(self) -> None:
        """Raise `ValueError` for a rate that is no share."""
        _check_rate(self.rate)

    def __call__(
        self,
        cache: NegativeCache,
        seen: Seen,
        encode: Encode,
        step: Int[Array, ""],
        *,
        key: PRNGKeyArray,
    ) -> NegativeCache:
        """Return the cache after a step.

        Arguments:
            cache: The cache before.
            seen: What the step has embedded.
            encode: Documents to embeddings, by the model after the step.
            step: The number of steps taken.
            key: The JAX random key of the rows.
        """
        num = _count(self.rate, cache)
        slots = jax.random.randint(key, (num,), 0, cache.capacity)
        return _renewed(cache, slots, encode, step, seen.chunk)


class Budget(AbstractRefresh):
    """Embed the oldest rows anew, for a share of a step's work, while scores drift.

    Rows are embedded anew while scores drift by more than `drift` between their
    embedding and their next draw. A row counts as a third of one with gradient.

    Arguments:
        share: The share of the step's embedding, between 0 and 1.
        drift: The standard deviation of scores that is left alone, in nats. The softmax
            is then at most about half of it off, in total variation.

    Raises:
        ValueError: For settings out of range.
    """

    share: float = 0.05
    drift: float = 0.1

    def __check_init__(self) -> None:
        """Raise `ValueError` for settings out of range."""
        if not 0 < self.share < 1:
            raise ValueError(f"`share` is {self.share}: pass a share between 0 and 1.")
        if not self.drift >= 0:
            raise ValueError(f"`drift` is {self.drift}: pass nats, such as 0.1.")

    def __call__(
        self,
        cache: NegativeCache,
        seen: Seen,
        encode: Encode,
        step: Int[Array, ""],
        *,
        key: PRNGKeyArray,
    ) -> NegativeCache:
        """Return the cache after a step.

        Arguments:
            cache: The cache before.
            seen: What the step has embedded.
            encode: Documents to embeddings, by the model after the step.
            step: The number of steps taken.
            key: Not used.
        """
        trained = seen.queries + len(seen.slots) + len(seen.embeddings)
        num = max(1, round(3 * trained * self.share / (1 - self.share)))
        slots = oldest(cache, min(num, cache.capacity))
        # A cache that was never drawn from (its drift is zero) is not known to be old.
        return jax.lax.cond(
            seen.drift > self.drift,
            lambda: _renewed(cache, slots, encode, step, seen.chunk),
            lambda: cache,
        )


class PositivesIn(AbstractRefresh):
    """Take the batch's documents in, in place of the oldest: a corpus as a stream.

    It is for corpora larger than the cache, or without an end. A document that is there
    already is embedded anew in its place. The cache then holds documents as often as
    they are asked for, and `frequencies` corrects for that. A row's scores are lowered
    by the logarithm of its probability of being there, `1 - exp(-frequency *
    turnover)`, with `turnover` the age of the oldest row in steps. Rows written back
    stay longer.

    Arguments:
        frequencies: How often each document number is in a batch per step, in
            expectation, `(corpus,)`; by default no correction. Of a document past its
            end, or without a number, the mean counts.
    """

    replaces: ClassVar[bool] = True

    frequencies: Float[Array, " corpus"] | None = None

    def __call__(
        self,
        cache: NegativeCache,
        seen: Seen,
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
        slots = _places(cache, seen.marks, num)
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
        """Raise for a cache smaller than a batch's documents.

        Arguments:
            cache: The cache.
            num_documents: The documents of a batch.

        Raises:
            ValueError: For such a cache.
        """
        if cache.capacity < num_documents:
            raise ValueError(
                f"the cache has {cache.capacity} rows and a batch {num_documents} "
                "documents: make it at least as large."
            )


def _places(cache: NegativeCache, marks: Marks, num: int) -> Int[Array, " documents"]:
    """Return where documents go: where they are, or else over the oldest rows."""
    there = cache.find(marks)
    taken = jnp.zeros(cache.capacity, bool).at[there].set(True, mode="drop")
    old = jax.lax.top_k(jnp.where(taken, -1, _ages(cache)), num)[1]
    absent = there == cache.capacity
    # Of the same document twice in a batch, the first is kept.
    same = marks.digests[:, None] == marks.digests[None]
    again = jnp.any(same & jnp.tri(num, k=-1, dtype=bool), axis=1)
    fill = absent & ~again
    rank = jnp.cumsum(fill) - 1
    slots = jnp.where(fill, old[jnp.clip(rank, 0, num - 1)], there)
    return jnp.where(again, cache.capacity, slots)


def oldest(cache: NegativeCache, num: int) -> Int[Array, " rows"]:
    """Return the rows embedded longest ago; free ones where too few are taken.

    Of a few, those blocks are looked at that have the oldest row each: then no array of
    all rows is made.
    """
    rows, block = cache.capacity, cache.block
    held = lambda: jnp.where(cache.valid, _ages(cache), -1)
    if rows % block or num * block >= rows:
        return jax.lax.top_k(held(), num)[1]
    oldest_of = jnp.max(held().reshape(-1, block), axis=1)
    blocks = jax.lax.top_k(oldest_of, num)[1]
    among = (blocks[:, None] * block + jnp.arange(block)[None]).reshape(-1)
    ages = (jnp.max(cache.stamps) - cache.stamps[among]).astype(jnp.float32)
    ages = jnp.where(cache.ids[among] >= 0, ages, -1)
    return among[jax.lax.top_k(ages, num)[1]]


def _ages(cache: NegativeCache) -> Float[Array, " rows"]:
    """Return ages in steps, of a free row the greatest.

    In float32: of integers, XLA sorts all for the sake of a few on a CPU. Ages past
    2^24 steps are rounded.
    """
    return (jnp.max(cache.stamps) - cache.stamps).astype(jnp.float32)


def _renewed(
    cache: NegativeCache,
    slots: Int[Array, " rows"],
    encode: Encode,
    step: Int[Array, ""],
    chunk: int,
) -> NegativeCache:
    """Return the cache with rows embedded anew, a chunk at a time."""
    # A free row is embedded with the others, and not written; nor is one past the end.
    if len(slots) <= chunk:
        return cache.written(slots, encode(cache.documents(slots)), step)
    missing = -len(slots) % chunk
    slots = jnp.pad(slots, (0, missing), constant_values=cache.capacity)

    def further(made: tuple[Any, Any], some: Array) -> tuple[tuple[Any, Any], None]:
        now = eqx.tree_at(lambda c: (c.rows, c.stamps), cache, made)
        new = now.written(some, encode(now.documents(some)), step)
        return (new.rows, new.stamps), None

    first = (cache.rows, cache.stamps)
    made, _ = jax.lax.scan(further, first, slots.reshape(-1, chunk))
    return eqx.tree_at(lambda c: (c.rows, c.stamps), cache, made)


def _count(rate: float, cache: NegativeCache) -> int:
    return min(max(1, round(rate * cache.capacity)), cache.capacity)


def _check_rate(rate: float) -> None:
    if not 0 < rate <= 1:
        raise ValueError(
            f"`rate` is {rate}: pass the share of the rows embedded anew each step, "
            "such as 0.01."
        )


def policies_of(refresh: object) -> tuple[AbstractRefresh, ...]:
    """Return policies from a rate, one policy, or several.

    Raises:
        TypeError: For anything else.
    """
    if isinstance(refresh, AbstractRefresh):
        return (refresh,)
    if isinstance(refresh, tuple | list):
        if all(isinstance(policy, AbstractRefresh) for policy in refresh):
            return tuple(refresh)
    elif isinstance(refresh, int | float) and not isinstance(refresh, bool):
        if refresh == 0:
            return (WriteBack(),)
        return (WriteBack(), OldestFirst(float(refresh)))
    raise TypeError(
        f"`refresh` is {refresh!r}: pass the share of rows embedded anew each step, or "
        "policies, such as `(WriteBack(), OldestFirst(0.01))`."
    )
