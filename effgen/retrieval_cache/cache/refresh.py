"""What is embedded anew as training goes on: policies of refreshing a cache."""

import abc
import math
from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from effgen.retrieval_cache.data.pairs import Marks

from .lookup import largest_rows
from .negative_cache import NegativeCache


class StepEmbeddings(NamedTuple):
    """What a step has embedded anyway, without dropout.

    `slots` and `fresh` are rows drawn from the cache, `documents`, `marks` and
    `embeddings` are of the batch. `queries` were embedded, `chunk` documents at once.
    `drift` is the standard deviation of scores since their rows were embedded. `mesh`
    is what the cache is split over, if it is.
    """

    slots: Int[Array, " draws"]
    fresh: Float[Array, "draws size"]
    documents: PyTree
    marks: Marks
    embeddings: Float[Array, "documents size"]
    queries: int
    drift: Float[Array, ""]
    chunk: int = 1 << 10
    mesh: Mesh | None = None


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
            encode: Documents to embeddings, by the model after the step.
            step: The number of steps taken.
            key: Not used.
        """
        slots = oldest(cache, _count(self.rate, cache), seen.mesh)
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
            encode: Documents to embeddings, by the model after the step.
            step: The number of steps taken.
            key: Not used.
        """
        trained = seen.queries + len(seen.slots) + len(seen.embeddings)
        num = max(1, round(3 * trained * self.share / (1 - self.share)))
        slots = oldest(cache, min(num, cache.capacity), seen.mesh)
        # A cache that was never drawn from (its drift is zero) is not known to be old.
        return jax.lax.cond(
            seen.drift > self.drift,
            lambda: _renewed(cache, slots, encode, step, seen.chunk),
            lambda: cache,
        )


def oldest(
    cache: NegativeCache, num: int, mesh: Mesh | None = None
) -> Int[Array, " rows"]:
    """Return the rows embedded longest ago, and free rows if there are too few.

    For a small `num`, only the blocks with the oldest rows are searched. Then no array
    of all rows is sorted.
    """
    rows, block = cache.capacity, cache.block
    held = lambda: jnp.where(cache.valid, ages(cache), -1)
    if mesh is not None or rows % block or num * block >= rows:
        return largest_rows(held(), num, mesh)
    oldest_of = jnp.max(held().reshape(-1, block), axis=1)
    # Of rows of one age the first: so a mesh, which looks at all rows, has the same.
    blocks = jnp.sort(jax.lax.top_k(oldest_of, num)[1])
    among = (blocks[:, None] * block + jnp.arange(block)[None]).reshape(-1)
    own = (jnp.max(cache.stamps) - cache.stamps[among]).astype(jnp.float32)
    own = jnp.where(cache.ids[among] >= 0, own, -1)
    return among[jax.lax.top_k(own, num)[1]]


def ages(cache: NegativeCache) -> Float[Array, " rows"]:
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
    # Rounded up, so that each row has its turn within `1 / rate` steps; not by what a
    # product of floats errs.
    return min(max(1, math.ceil(rate * cache.capacity - 1e-6)), cache.capacity)


def _check_order(policies: Sequence[AbstractRefresh]) -> None:
    """Raise `ValueError` where what was drawn is written back to other documents."""
    after = False
    for policy in policies:
        if after and isinstance(policy, WriteBack):
            raise ValueError(
                "`refresh` has `WriteBack()` after a policy that puts other documents "
                "in rows, such as `PositivesIn()`, where what was drawn is no longer: "
                "put `WriteBack()` first."
            )
        after = after or policy.replaces


def _check_rate(rate: float, name: str = "rate") -> None:
    if not 0 < rate <= 1:
        raise ValueError(
            f"`{name}` is {rate}: pass the share of the rows embedded anew each step, "
            "such as 0.01."
        )


def policies_of(refresh: object) -> tuple[AbstractRefresh, ...]:
    """Return policies from a rate, one policy, or several.

    Raises:
        TypeError: For anything else.
        ValueError: For a rate that is no share, or policies in another order.
    """
    if isinstance(refresh, AbstractRefresh):
        return (refresh,)
    if isinstance(refresh, tuple | list):
        if all(isinstance(policy, AbstractRefresh) for policy in refresh):
            _check_order(refresh)
            return tuple(refresh)
    elif isinstance(refresh, Real) and not isinstance(refresh, bool):
        if refresh == 0:
            return (WriteBack(),)
        _check_rate(float(refresh), "refresh")
        return (WriteBack(), OldestFirst(float(refresh)))
    raise TypeError(
        f"`refresh` is {refresh!r}: pass the share of rows embedded anew each step, or "
        "policies, such as `(WriteBack(), OldestFirst(0.01))`."
    )
