"""Towers of numbers: a table of users or items, and items that also have features."""

import abc
import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from effgen.core.contract.counts import check_count
from effgen.retrieval_cache.data.pairs import as_numbers

from .sequences import check_dropout, looked_up
from .towers import Tower, embed, is_random, normalized


class AbstractTable(eqx.Module):
    """A vector for each number."""

    @property
    @abc.abstractmethod
    def shape(self) -> tuple[int, int]:
        """How many numbers, and how many entries of a vector."""

    @abc.abstractmethod
    def rows(self, numbers: Int[Array, " batch"]) -> Float[Array, "batch size"]:
        """Return the numbers' vectors; NaN for a number out of range."""

    def __call__(self, numbers: Int[Array, "batch *one"]) -> Float[Array, "batch size"]:
        """Return the embeddings of a batch of numbers.

        Arguments:
            numbers: Integers, `(batch,)` or `(batch, 1)`.

        Returns:
            The embeddings, `(batch, size)`; NaN for a number that the table does not
                have.

        Raises:
            TypeError: If `numbers` are no integers, one each.
        """
        return normalized(self.rows(checked_numbers(numbers)))


class Table(AbstractTable):
    """A tower with a vector for each number, such as a user's or an item's.

        embedding = normalized(vectors[number])

    Arguments:
        num: The count of numbers, which are `0 .. num - 1`.
        size: The size of an embedding.
        key: The JAX random key of the vectors. Their length at first is about one.

    Raises:
        ValueError: For sizes below 1.
    """

    vectors: Float[Array, "numbers size"]

    def __init__(self, num: int, size: int = 64, *, key: PRNGKeyArray) -> None:
        """Draw the vectors."""
        for name, value in (("num", num), ("size", size)):
            check_count(name, value)
        self.vectors = jax.random.normal(key, (num, size)) / math.sqrt(size)

    @property
    def shape(self) -> tuple[int, int]:
        """How many numbers, and how many entries of a vector."""
        return self.vectors.shape  # pyright: ignore[reportReturnType]

    def rows(self, numbers: Int[Array, " batch"]) -> Float[Array, "batch size"]:
        """Return the numbers' vectors.

        Arguments:
            numbers: Integers, `(batch,)`.

        Returns:
            `(batch, size)`; NaN for a number that the table does not have.
        """
        return looked_up(self.vectors, numbers)


class IdsAndFeatures(eqx.Module):
    """A tower of items with numbers and features; new items need features only.

        embedding = normalized(vectors[number] + features(known))

    An item whose number is -1, or past the end of the table, is embedded by its
    features alone. For this, each training step leaves out the numbers of some items,
    drawn at random. Items are pairs, `(numbers, features)`.

    Arguments:
        table: The vectors of the numbers that are known in training.
        features: A tower of the features, with embeddings of the table's size.
        dropout: The share of a batch's numbers that each training step leaves out.

    Raises:
        ValueError: If `dropout` is not at least 0 and below 1.

    Source:
        Volkovs, Yu and Poutanen (2017), DropoutNet.
    """

    table: AbstractTable
    features: Tower
    dropout: float = eqx.field(default=0.2, static=True, converter=float)

    def __check_init__(self) -> None:
        """Raise `ValueError` for a dropout out of range."""
        check_dropout(self.dropout)

    def __call__(
        self, items: tuple[PyTree, PyTree], *, key: PRNGKeyArray | None = None
    ) -> Float[Array, "batch size"]:
        """Return the embeddings of a batch of items.

        Arguments:
            items: Their numbers, `(batch,)` or `(batch, 1)`, and their features, as the
                tower of features takes them.
            key: A key for dropout. Without a key there is no dropout.

        Returns:
            The embeddings, `(batch, size)`.

        Raises:
            TypeError: If `items` is no pair, or its first part no integers.
            ValueError: For features of another size than the table's.
        """
        numbers, known = _both(items)
        keys = (None, None) if key is None else jax.random.split(key)
        there = (numbers >= 0) & (numbers < self.table.shape[0])
        own = self.table.rows(jnp.where(there, numbers, -1))
        rest = embed(self.features, known, key=keys[1])
        if rest.shape != own.shape:
            raise ValueError(
                f"`features` makes embeddings of shape {rest.shape} and `table` of "
                f"{own.shape}: make them one size."
            )
        return normalized(jnp.where(self._kept(there, keys[0])[:, None], own, 0) + rest)

    @property
    def is_random(self) -> bool:
        """Whether embeddings with a key differ from those without."""
        return self.dropout > 0 or is_random(self, self.features)

    def _kept(
        self, there: Bool[Array, " batch"], key: PRNGKeyArray | None
    ) -> Bool[Array, " batch"]:
        if key is None or not self.dropout:
            return there
        return there & jax.random.bernoulli(key, 1 - self.dropout, there.shape)


def _both(items: Any) -> tuple[Array, PyTree]:
    if not isinstance(items, tuple | list) or len(items) != 2:
        raise TypeError(
            f"`items` are a {type(items).__name__}: pass `(numbers, features)`."
        )
    return checked_numbers(items[0]), items[1]


def checked_numbers(numbers: Any) -> Int[Array, " batch"]:
    """Return numbers in 32 bits, one each.

    Raises:
        TypeError: If `numbers` are no integers, one each.
    """
    dtype, shape = getattr(numbers, "dtype", None), getattr(numbers, "shape", ())
    one = len(shape) == 1 or (len(shape) == 2 and shape[1] == 1)
    if dtype is None or not jnp.issubdtype(dtype, jnp.integer) or not one:
        raise TypeError(
            f"`numbers` are {dtype} of shape {shape}: pass an array of integers, "
            "`(batch,)` or `(batch, 1)`."
        )
    return as_numbers(numbers.reshape(-1))
