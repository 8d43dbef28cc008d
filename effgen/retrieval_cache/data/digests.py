"""Digests of items: what tells two documents of the same content apart from others."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, PyTree, UInt


@jax.jit
def content_digests(items: PyTree) -> Int[Array, " items"]:
    """Return a number in `0 .. 2^31 - 1` for each item, of its content alone.

    Two items of equal arrays have equal digests, whatever integer type their tokens are
    stored in. Of two that differ, one pair in 2,000,000,000 has equal ones.

    Arguments:
        items: A pytree of arrays that share their leading axis.

    Returns:
        The digests, `(items,)`.
    """
    leaves = jax.tree.leaves(items)
    total = jnp.zeros(leaves[0].shape[0], jnp.uint32)
    for leaf in leaves:
        words = _words(jnp.asarray(leaf).reshape(leaf.shape[0], -1))
        total = _mixed(total * jnp.uint32(0x01000193) + _polynomial(words))
    return (total & jnp.uint32(0x7FFFFFFF)).astype(jnp.int32)


def _words(values: Array) -> UInt[Array, "items words"]:
    if jnp.issubdtype(values.dtype, jnp.floating):
        values = values.astype(jnp.float32)
        # The two zeros are one; to add zero is not enough, as XLA leaves that out.
        values = jnp.where(values == 0, 0.0, values)
        return jax.lax.bitcast_convert_type(values, jnp.uint32)
    low = values.astype(jnp.uint32)
    if values.dtype.itemsize < 8:
        return low
    # What 32 bits hold has the digest that it has in 32 bits, with its sign or without.
    high, negative = (values >> 32).astype(jnp.uint32), low >> 31 == 1
    fits = (high == 0) | ((high == jnp.uint32(0xFFFFFFFF)) & negative)
    return jnp.where(fits, low, low ^ _mixed(high))


def _polynomial(words: UInt[Array, "items words"]) -> UInt[Array, " items"]:
    """Return `sum_k mixed(word_k) base^k`, modulo 2^32."""
    exponents = range(words.shape[1])
    powers = np.array([pow(0x9E3779B1, k, 2**32) for k in exponents], np.uint32)
    return jnp.sum(
        _mixed(words + jnp.uint32(1)) * powers[None], axis=1, dtype=jnp.uint32
    )


def _mixed(x: Array) -> Array:
    """Return a bijection of 32 bits in which every bit depends on every other."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
