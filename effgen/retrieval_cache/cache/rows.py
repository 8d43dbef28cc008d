"""Rows of embeddings as they are stored: floats of any width, or bytes with a scale."""

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Int8


class AbstractRows(eqx.Module):
    """Embeddings, one a row. Scores are summed in float32, or in float64 if stored so.

    Two layouts, `FloatRows` and `ByteRows`; `stored(embeddings, dtype)` makes them.
    """

    @property
    @abc.abstractmethod
    def shape(self) -> tuple[int, int]:
        """How many rows, and how many numbers in each."""

    @abc.abstractmethod
    def scores(
        self, queries: Float[Array, "queries size"]
    ) -> Float[Array, "queries rows"]:
        """Return the inner products `queries @ rows.T`."""

    @abc.abstractmethod
    def combined(
        self, weights: Float[Array, "queries rows"]
    ) -> Float[Array, "queries size"]:
        """Return `weights @ rows`."""

    @abc.abstractmethod
    def take(self, slots: Int[Array, " taken"]) -> "AbstractRows":
        """Return rows by their number."""

    @abc.abstractmethod
    def window(self, start: Int[Array, ""], num: int) -> "AbstractRows":
        """Return `num` rows in a piece."""

    @abc.abstractmethod
    def put(
        self, slots: Int[Array, " put"], embeddings: Float[Array, "put size"]
    ) -> "AbstractRows":
        """Return the rows with some replaced; a slot past the end is left out."""

    @abc.abstractmethod
    def embeddings(self) -> Float[Array, "rows size"]:
        """Return what the rows stand for."""


class FloatRows(AbstractRows):
    """Rows of floats: float32, bfloat16, float16 or float64.

    Arguments:
        values: The embeddings, `(rows, size)`.
    """

    values: Float[Array, "rows size"]

    @property
    def shape(self) -> tuple[int, int]:
        """How many rows, and how many numbers in each."""
        return self.values.shape  # pyright: ignore[reportReturnType]

    def scores(
        self, queries: Float[Array, "queries size"]
    ) -> Float[Array, "queries rows"]:
        """Return the inner products `queries @ rows.T`.

        Arguments:
            queries: Embeddings, `(queries, size)`.

        Returns:
            `(queries, rows)`, summed in float32 or wider.
        """
        return jnp.matmul(
            queries.astype(self.values.dtype),
            self.values.T,
            preferred_element_type=_sums(self.values.dtype),
        )

    def combined(
        self, weights: Float[Array, "queries rows"]
    ) -> Float[Array, "queries size"]:
        """Return `weights @ rows`.

        Arguments:
            weights: `(queries, rows)`.

        Returns:
            `(queries, size)`, summed in float32 or wider.
        """
        return jnp.matmul(
            weights.astype(self.values.dtype),
            self.values,
            preferred_element_type=_sums(self.values.dtype),
        )

    def take(self, slots: Int[Array, " taken"]) -> "FloatRows":
        """Return rows by their number.

        Arguments:
            slots: The numbers, `(taken,)`.

        Returns:
            These rows.
        """
        return FloatRows(self.values[slots])

    def window(self, start: Int[Array, ""], num: int) -> "FloatRows":
        """Return rows in a piece.

        Arguments:
            start: The first row.
            num: How many rows.

        Returns:
            These rows.
        """
        return FloatRows(jax.lax.dynamic_slice_in_dim(self.values, start, num))

    def put(
        self, slots: Int[Array, " put"], embeddings: Float[Array, "put size"]
    ) -> "FloatRows":
        """Return the rows with some replaced.

        Arguments:
            slots: The rows' numbers, `(put,)`; one past the end is left out.
            embeddings: What they are to hold, `(put, size)`.

        Returns:
            All rows.
        """
        new = embeddings.astype(self.values.dtype)
        return FloatRows(self.values.at[slots].set(new, mode="drop"))

    def embeddings(self) -> Float[Array, "rows size"]:
        """Return what the rows stand for.

        Returns:
            `(rows, size)`, in float32 or wider.
        """
        return self.values.astype(_sums(self.values.dtype))


class ByteRows(AbstractRows):
    """Rows of bytes, `row = scale * values`, a quarter of float32's memory.

    Arguments:
        values: Integers of 8 bits, `(rows, size)`.
        scale: `(rows,)`.
    """

    values: Int8[Array, "rows size"]
    scale: Float[Array, " rows"]

    @property
    def shape(self) -> tuple[int, int]:
        """How many rows, and how many numbers in each."""
        return self.values.shape  # pyright: ignore[reportReturnType]

    def scores(
        self, queries: Float[Array, "queries size"]
    ) -> Float[Array, "queries rows"]:
        """Return the inner products `queries @ rows.T`.

        Arguments:
            queries: Embeddings, `(queries, size)`.

        Returns:
            `(queries, rows)`, summed in float32. Factors are bfloat16, and float32 on a
                CPU.
        """
        products = jnp.matmul(
            queries.astype(_narrow()),
            self.values.T.astype(_narrow()),
            preferred_element_type=jnp.float32,
        )
        return products * self.scale[None]

    def combined(
        self, weights: Float[Array, "queries rows"]
    ) -> Float[Array, "queries size"]:
        """Return `weights @ rows`.

        Arguments:
            weights: `(queries, rows)`.

        Returns:
            `(queries, size)`, summed in float32. Factors are bfloat16, and float32 on a
                CPU.
        """
        return jnp.matmul(
            (weights * self.scale[None]).astype(_narrow()),
            self.values.astype(_narrow()),
            preferred_element_type=jnp.float32,
        )

    def take(self, slots: Int[Array, " taken"]) -> "ByteRows":
        """Return rows by their number.

        Arguments:
            slots: The numbers, `(taken,)`.

        Returns:
            These rows.
        """
        return ByteRows(self.values[slots], self.scale[slots])

    def window(self, start: Int[Array, ""], num: int) -> "ByteRows":
        """Return rows in a piece.

        Arguments:
            start: The first row.
            num: How many rows.

        Returns:
            These rows.
        """
        cut = lambda x: jax.lax.dynamic_slice_in_dim(x, start, num)
        return ByteRows(cut(self.values), cut(self.scale))

    def put(
        self, slots: Int[Array, " put"], embeddings: Float[Array, "put size"]
    ) -> "ByteRows":
        """Return the rows with some replaced.

        Arguments:
            slots: The rows' numbers, `(put,)`; one past the end is left out.
            embeddings: What they are to hold, `(put, size)`, rounded to bytes.

        Returns:
            All rows.
        """
        values, scale = _as_bytes(embeddings)
        return ByteRows(
            self.values.at[slots].set(values, mode="drop"),
            self.scale.at[slots].set(scale, mode="drop"),
        )

    def embeddings(self) -> Float[Array, "rows size"]:
        """Return what the rows stand for.

        Returns:
            `(rows, size)`, in float32.
        """
        return self.values.astype(jnp.float32) * self.scale[:, None]


def stored(embeddings: Float[Array, "rows size"], dtype: Any) -> AbstractRows:
    """Return rows of a dtype: a float's, or `jnp.int8` for bytes with a scale."""
    if jnp.dtype(dtype) == jnp.int8:
        return ByteRows(*_as_bytes(embeddings))
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(
            f"`dtype` is {jnp.dtype(dtype).name}: store embeddings as float32, "
            "bfloat16, or int8 (bytes with a scale for each row)."
        )
    return FloatRows(embeddings.astype(dtype))


def _as_bytes(embeddings: Array) -> tuple[Array, Array]:
    most = jnp.max(jnp.abs(embeddings), axis=1).astype(jnp.float32)
    scale = jnp.where(most > 0, most, 1.0) / 127
    return jnp.round(embeddings / scale[:, None]).astype(jnp.int8), scale


def _sums(dtype: Any) -> Any:
    return jnp.promote_types(dtype, jnp.float32)


def _narrow() -> Any:
    """Return what bytes are multiplied in: a CPU has no products of bfloat16."""
    return jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
