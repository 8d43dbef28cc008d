"""Texts embedded by length: each chunk of a batch is padded to about its own."""

from functools import partial
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Integer, PRNGKeyArray

from .towers import Tower, embed


class Bucketed(eqx.Module):
    """An encoder that is given short texts as short sequences.

    A batch's texts are sorted by length and cut into chunks, each of which is encoded
    at the least of a few lengths that holds its texts. The embeddings and their
    gradient are those of the encoder to rounding, for part of the tokens
    (`token_share`). It is an encoder itself, and so serves training, refreshing,
    filling and evaluation: `TwoTowers.tied(Bucketed(bert))`.

    It compiles the encoder once for each length. Its backward pass keeps memory for a
    chunk at every length, up to 2.5 times that of the encoder. If this is too much, let
    the trainer cut batches into `num_chunks`. Several devices take the chunks one
    after the other, not in parallel.

    Arguments:
        encoder: From `(batch, length)` tokens to embeddings, which padding at the end
            of a text does not change, such as `Bert`, `Transformer` and `HashedBag`.
        lengths: To which a text may be padded, beside the batch's length; by default a
            quarter, a half and three quarters of that. Each is compiled on its own.
        chunk: How many texts are encoded at once.
        padding: The token that fills up; by default the encoder's `padding`, else 0.

    Raises:
        ValueError: For lengths or a chunk below 1.
    """

    hands_key_on: ClassVar[bool] = True

    encoder: Tower
    lengths: tuple[int, ...] | None = eqx.field(static=True)
    chunk: int = eqx.field(static=True)
    padding: int = eqx.field(static=True)

    def __init__(
        self,
        encoder: Tower,
        *,
        lengths: tuple[int, ...] | None = None,
        chunk: int = 16,
        padding: int | None = None,
    ) -> None:
        """Keep the encoder, and its padding where none is given."""
        for name, values in (("lengths", lengths or ()), ("chunk", (chunk,))):
            if any(value < 1 for value in values):
                raise ValueError(f"`{name}` has {min(values)}: pass 1 or more.")
        self.encoder = encoder
        self.lengths = None if lengths is None else tuple(lengths)
        self.chunk = chunk
        own = getattr(encoder, "padding", 0)
        self.padding = own if padding is None else padding

    def __call__(
        self, tokens: Integer[Array, "batch length"], *, key: PRNGKeyArray | None = None
    ) -> Float[Array, "batch size"]:
        """Return the embeddings of a batch of token sequences.

        Arguments:
            tokens: Integers, `(batch, length)`.
            key: A key for dropout; without one there is none.

        Returns:
            The embeddings, `(batch, size)`.

        Raises:
            TypeError: For an object that is no array of tokens.
        """
        _check_tokens(tokens)
        tokens = jnp.asarray(tokens)
        lengths = self._lengths(tokens.shape[1])
        if len(lengths) == 1 or not len(tokens):
            return embed(self.encoder, tokens, key=key)
        rows, which = self._chunks(tokens)
        keys = None if key is None else jax.random.split(key, len(rows))
        branches = [partial(self._cut, length) for length in lengths]

        def one(chunk: tuple[Array, Array, Any]) -> Float[Array, "chunk size"]:
            own, bucket, key = chunk
            return jax.lax.switch(bucket, branches, tokens[own], key)

        found = jax.lax.map(one, (rows, which, keys))
        found, order = found.reshape(-1, found.shape[2]), rows.reshape(-1)
        # What a chunk was filled up with is met again in its place, which then counts.
        turns = jnp.arange(len(order), dtype=jnp.int32)
        return found[jnp.zeros(len(tokens), jnp.int32).at[order].max(turns)]

    def token_share(self, tokens: Integer[Array, "batch length"]) -> Float[Array, ""]:
        """Return how many tokens are encoded, as a share of the batch's, padding in.

        Arguments:
            tokens: Integers, `(batch, length)`.

        Returns:
            The share; above one where chunks are filled up.

        Raises:
            TypeError: For an object that is no array of tokens.
        """
        _check_tokens(tokens)
        lengths = jnp.asarray(self._lengths(tokens.shape[1]))
        rows, which = self._chunks(tokens)
        return jnp.sum(lengths[which]) * rows.shape[1] / tokens.size

    def _lengths(self, length: int) -> list[int]:
        quarters = tuple(-(-length * i // 4) for i in (1, 2, 3))
        given = quarters if self.lengths is None else self.lengths
        return sorted({length} | {x for x in given if x < length})

    def _chunks(
        self, tokens: Integer[Array, "batch length"]
    ) -> tuple[Int[Array, "chunks chunk"], Int[Array, " chunks"]]:
        """Return the rows of each chunk, by length, and which length it is given."""
        sizes = text_sizes(tokens, self.padding)
        order = jnp.argsort(sizes).astype(jnp.int32)
        chunk = min(self.chunk, len(tokens))
        missing = -len(tokens) % chunk
        # The first chunk is filled up with the shortest text.
        order = jnp.concatenate([jnp.broadcast_to(order[:1], (missing,)), order])
        rows = order.reshape(-1, chunk)
        lengths = jnp.asarray(self._lengths(tokens.shape[1]))
        return rows, jnp.searchsorted(lengths, sizes[rows[:, -1]])

    def _cut(
        self, length: int, tokens: Integer[Array, "chunk length"], key: Any
    ) -> Float[Array, "chunk size"]:
        return embed(self.encoder, tokens[:, :length], key=key)


def text_sizes(
    tokens: Integer[Array, "batch length"], padding: int
) -> Int[Array, " batch"]:
    """Return the number of tokens of each text, up to the last that is no padding."""
    ends = jnp.arange(1, tokens.shape[1] + 1, dtype=jnp.int32)
    return jnp.max(jnp.where(tokens != padding, ends, 0), axis=1)


def _check_tokens(tokens: Any) -> None:
    is_array = hasattr(tokens, "ndim") and hasattr(tokens, "dtype")
    if (
        not is_array
        or tokens.ndim != 2
        or not jnp.issubdtype(tokens.dtype, jnp.integer)
    ):
        said = jax.tree.map(jnp.shape, tokens)
        raise TypeError(
            f"`tokens` are {type(tokens).__name__} of shape {said}: "
            "`Bucketed` takes `(batch, length)` integers; use the encoder itself for "
            "others."
        )
