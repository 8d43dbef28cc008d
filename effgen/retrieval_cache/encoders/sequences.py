"""Encoders of token sequences: a hashed bag of words, and a compact transformer."""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from effgen.core.contract.counts import check_count

from .towers import normalized


class HashedBag(eqx.Module):
    """The mean of words' vectors, through one layer, of length one.

        embedding = normalized(tanh(head(mean(table[tokens]))))

    Token 0 is padding. It is fast, for tests and baselines. The vectors begin at random
    with about length one. Longer ones would change their direction too slowly at the
    learning rates that the head needs.

    Arguments:
        num_words: The tokens of the vocabulary.
        width: The numbers of a word's vector.
        size: The numbers of an embedding.
        key: The JAX random key of the weights.
        dropout: The share of a text's tokens that each training step leaves out, others
            each time. Past a few epochs it keeps texts from being memorized.

    Raises:
        ValueError: For sizes below 1, or a dropout that is no share below 1.
    """

    table: Float[Array, "words width"]
    head: eqx.nn.Linear
    dropout: float = eqx.field(static=True)

    def __init__(
        self,
        num_words: int,
        width: int = 64,
        size: int = 64,
        *,
        key: PRNGKeyArray,
        dropout: float = 0.0,
    ) -> None:
        """Draw the weights."""
        for name, value in (("num_words", num_words), ("width", width), ("size", size)):
            check_count(name, value)
        check_dropout(dropout)
        self.dropout = float(dropout)
        keys = jax.random.split(key)
        self.table = jax.random.normal(keys[0], (num_words, width)) / math.sqrt(width)
        self.head = eqx.nn.Linear(width, size, key=keys[1])

    def __call__(
        self, tokens: Int[Array, "batch length"], *, key: PRNGKeyArray | None = None
    ) -> Float[Array, "batch size"]:
        """Return the embeddings of a batch of token sequences.

        Arguments:
            tokens: Integers, `(batch, length)`.
            key: A key for dropout; without one there is none.

        Returns:
            The embeddings, `(batch, size)`; NaN of a text with a token past the
                vocabulary.

        Raises:
            TypeError: For an object that is no array of tokens.
        """
        check_tokens(tokens)
        tokens = tokens.astype(jnp.int32)
        there = (tokens != 0).astype(self.table.dtype)
        if key is not None and self.dropout > 0:
            left = jax.random.bernoulli(key, 1 - self.dropout, tokens.shape)
            there = there * left.astype(there.dtype)
        total = jnp.sum(looked_up(self.table, tokens) * there[..., None], axis=1)
        mean = total / jnp.maximum(jnp.sum(there, axis=1), 1)[:, None]
        return normalized(jnp.tanh(jax.vmap(self.head)(mean)))

    @property
    def is_random(self) -> bool:
        """Whether embeddings with a key differ from those without."""
        return self.dropout > 0


class Block(eqx.Module):
    """Attention and a layer of units, each added to its input, normed before."""

    norms: tuple[eqx.nn.LayerNorm, eqx.nn.LayerNorm]
    qkv: eqx.nn.Linear
    out: eqx.nn.Linear
    up: eqx.nn.Linear
    down: eqx.nn.Linear
    dropout: eqx.nn.Dropout
    num_heads: int

    def __init__(
        self, width: int, num_heads: int, dropout: float, *, key: PRNGKeyArray
    ) -> None:
        """Return one of random weights."""
        keys = jax.random.split(key, 4)
        self.norms = (eqx.nn.LayerNorm(width), eqx.nn.LayerNorm(width))
        self.qkv = eqx.nn.Linear(width, 3 * width, key=keys[0])
        self.out = eqx.nn.Linear(width, width, key=keys[1])
        self.up = eqx.nn.Linear(width, 4 * width, key=keys[2])
        self.down = eqx.nn.Linear(4 * width, width, key=keys[3])
        self.dropout = eqx.nn.Dropout(dropout)
        self.num_heads = num_heads

    def __call__(
        self,
        x: Float[Array, "batch length width"],
        there: Bool[Array, "batch length"],
        key: PRNGKeyArray | None,
    ) -> Float[Array, "batch length width"]:
        """Return the sequences one block later."""
        keys = (None, None) if key is None else jax.random.split(key)
        first, second = self.norms
        qkv = linear(self.qkv, layer_norm(first, x, first.eps))
        y = linear(self.out, attention(qkv, there, self.num_heads))
        x = x + self._dropped(y, keys[0])
        y = jax.nn.gelu(linear(self.up, layer_norm(second, x, second.eps)))
        return x + self._dropped(linear(self.down, y), keys[1])

    def _dropped(self, y: Array, key: PRNGKeyArray | None) -> Array:
        return self.dropout(y, key=key, inference=key is None)


class Transformer(eqx.Module):
    """A compact transformer: mean of its last layer over the words, of length one.

    Token 0 is padding. Parameters are float32 and random at first.

    Arguments:
        num_words: The tokens of the vocabulary.
        length: The most tokens of a text.
        key: The JAX random key of the weights.
        width: The numbers of a token's vector.
        depth: How many blocks.
        num_heads: The heads of attention, which divide the width.
        size: The numbers of an embedding.
        dropout: The share that is dropped in training.
        compute: The type that products are computed in.

    Raises:
        ValueError: For sizes below 1, heads that do not divide the
            width, or a dropout that is no share below 1.
    """

    words: Float[Array, "words width"]
    places: Float[Array, "length width"]
    blocks: tuple[Block, ...]
    norm: eqx.nn.LayerNorm
    head: eqx.nn.Linear
    compute: Any = eqx.field(static=True)

    def __init__(
        self,
        num_words: int,
        length: int,
        *,
        key: PRNGKeyArray,
        width: int = 128,
        depth: int = 2,
        num_heads: int = 4,
        size: int = 128,
        dropout: float = 0.0,
        compute: Any = jnp.float32,
    ) -> None:
        """Draw the weights."""
        sizes = (num_words, length, width, num_heads, size)
        named = ("num_words", "length", "width", "num_heads", "size")
        for name, value in zip(named, sizes, strict=True):
            check_count(name, value)
        check_dropout(dropout)
        if width % num_heads:
            raise ValueError(
                f"`num_heads` is {num_heads}, which does not divide `width`, {width}."
            )
        keys = jax.random.split(key, depth + 3)
        self.words = 0.02 * jax.random.normal(keys[0], (num_words, width))
        self.places = 0.02 * jax.random.normal(keys[1], (length, width))
        self.blocks = tuple(Block(width, num_heads, dropout, key=k) for k in keys[3:])
        self.norm = eqx.nn.LayerNorm(width)
        self.head = eqx.nn.Linear(width, size, key=keys[2])
        self.compute = compute

    def __call__(
        self, tokens: Int[Array, "batch length"], *, key: PRNGKeyArray | None = None
    ) -> Float[Array, "batch size"]:
        """Return the embeddings of a batch of token sequences.

        Arguments:
            tokens: Integers, `(batch, length)`.
            key: A key for dropout; without one there is none.

        Returns:
            The embeddings, `(batch, size)`; NaN of a text with a token past the
                vocabulary.

        Raises:
            TypeError: For an object that is no array of tokens.
            ValueError: For more tokens than places.
        """
        check_tokens(tokens, len(self.places))
        tokens = tokens.astype(jnp.int32)
        there = tokens != 0
        x = looked_up(self.words, tokens) + self.places[None, : tokens.shape[1]]
        x = x.astype(self.compute)
        for i, block in enumerate(self.blocks):
            x = block(x, there, None if key is None else jax.random.fold_in(key, i))
        x = pooled(layer_norm(self.norm, x, self.norm.eps), there)
        return normalized(linear(self.head, x).astype(self.head.weight.dtype))


def check_dropout(dropout: float) -> None:
    """Raise `ValueError` for an object that is no share below one."""
    if not 0 <= dropout < 1:
        raise ValueError(f"`dropout` is {dropout}: pass a share below 1.")


def check_tokens(tokens: Any, longest: int | None = None) -> None:
    """Raise for values that are no token sequences, or longer ones than `longest`."""
    if not hasattr(tokens, "dtype") or not hasattr(tokens, "ndim"):
        raise TypeError(
            f"`tokens` are a {type(tokens).__name__}: pass an array of integers, "
            "`(batch, length)`, as a tokenizer makes it of texts."
        )
    if tokens.ndim != 2 or not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise TypeError(
            f"`tokens` are {tokens.dtype} of shape {tokens.shape}: pass integers, "
            "`(batch, length)`, as a tokenizer makes them of texts."
        )
    if longest is not None and tokens.shape[1] > longest:
        raise ValueError(
            f"`tokens` are of length {tokens.shape[1]} and the encoder has places for "
            f"{longest}: cut texts to that by the tokenizer's `length`."
        )


def looked_up(
    table: Float[Array, "words width"], tokens: Int[Array, "batch length"]
) -> Float[Array, "batch length width"]:
    """Return tokens' vectors; of a token that the table has not, no number (NaN).

    So what embeds it is refused, where the nearest row would be another word's.
    """
    return table.at[tokens].get(
        mode="fill", fill_value=jnp.nan, wrap_negative_indices=False
    )


def linear(layer: Any, x: Float[Array, "*batch in"]) -> Float[Array, "*batch out"]:
    """Return `x @ weight.T + bias`, computed in `x`'s type."""
    y = x @ layer.weight.T.astype(x.dtype)
    return y if layer.bias is None else y + _wide(layer.bias.astype(x.dtype), y)


def layer_norm(
    layer: Any, x: Float[Array, "*batch width"], epsilon: float
) -> Float[Array, "*batch width"]:
    """Return vectors of mean zero and variance one, scaled, in float32 or wider."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    mean = jnp.mean(wide, axis=-1, keepdims=True)
    inverse = jax.lax.rsqrt(jnp.var(wide, axis=-1, keepdims=True) + epsilon)
    found = (wide - mean) * inverse * _wide(layer.weight, wide)
    found = found if layer.bias is None else found + _wide(layer.bias, wide)
    return found.astype(x.dtype)


def _wide(x: Array, like: Array) -> Array:
    return jnp.broadcast_to(x, like.shape)


def attention(
    qkv: Float[Array, "batch length triple"],
    there: Bool[Array, "batch length"],
    num_heads: int,
    bias: Float[Array, "1 heads length length"] | None = None,
) -> Float[Array, "batch length width"]:
    """Return what each token reads off those that are there, by `num_heads` heads.

    `qkv` are queries, keys and values, one after the other; `bias` is added to their
    products.
    """
    query, key, value = heads_of(qkv, num_heads)
    found = attended(query, key, value, there[:, None, None], bias)
    return found.reshape(*found.shape[:2], -1)


def heads_of(
    qkv: Float[Array, "batch length triple"], num_heads: int
) -> tuple[Float[Array, "batch length heads each"], ...]:
    """Return queries, keys and values by head."""
    batch, length, triple = qkv.shape
    shape = (batch, length, 3, num_heads, triple // 3 // num_heads)
    return tuple(jnp.moveaxis(qkv.reshape(shape), 2, 0))


def attended(
    query: Float[Array, "batch length heads each"],
    key: Float[Array, "batch length heads each"],
    value: Float[Array, "batch length heads each"],
    mask: Bool[Array, "batch 1 from length"],
    bias: Float[Array, "1 heads length length"] | None = None,
) -> Float[Array, "batch length heads each"]:
    """Return what each token reads, by head, off those that `mask` shows to it."""
    given = query.dtype
    if given == jnp.float16 and jax.default_backend() == "cpu":
        # XLA has no products of float16 that are summed in float32 there.
        wide = lambda x: x.astype(jnp.float32)
        query, key, value, bias = jax.tree.map(wide, (query, key, value, bias))
    found = jax.nn.dot_product_attention(query, key, value, bias, mask)
    return found.astype(given)


def by_distance(
    relative: Float[Array, "buckets heads"], length: int, dtype: Any
) -> Float[Array, "1 heads length length"]:
    """Return what attention adds from each token to each, by buckets of distances.

    Half of the buckets are of what comes before. Of those, half are of one distance
    each, and the others widen by the logarithm up to 128.

    Source:
        Raffel et al. (2020), as MPNet has it.
    """
    side, each, most = len(relative) // 2, len(relative) // 4, 128
    apart = np.arange(length)[None] - np.arange(length)[:, None]
    far = np.maximum(np.abs(apart), each)
    wide = np.log(far / each, dtype=np.float32) / np.float32(math.log(most / each))
    wide = np.minimum(each + (wide * np.float32(side - each)).astype(int), side - 1)
    near = np.where(np.abs(apart) < each, np.abs(apart), wide)
    bias = relative[np.where(apart > 0, side, 0) + near]
    return jnp.moveaxis(bias, 2, 0)[None].astype(dtype)


def pooled(
    x: Float[Array, "batch length width"], there: Bool[Array, "batch length"]
) -> Float[Array, "batch width"]:
    """Return the mean over the tokens that are there, summed in float32 or wider."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    count = jnp.maximum(jnp.sum(there, axis=1), 1)[:, None]
    return jnp.sum(wide * there[..., None], axis=1) / count
