"""A random order of `size` rows that any row can be read from alone."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PRNGKeyArray, UInt32


# Fewer leave pairs of rows uneven where there are only a few rows.
_ROUNDS = 12


def shuffled(
    position: Int[Array, "*batch"],
    size: int,
    epoch: Int[Array, ""],
    *,
    key: PRNGKeyArray,
) -> Int[Array, "*batch"]:
    """Return the rows at `position` of the random order of `0 .. size-1` in `epoch`.

    The order is never built: a Feistel network permutes the next power of two, and
    values past `size` are sent through it again until they fall inside. So a batch of
    an epoch costs the batch, not the data, and needs no state to resume.

    >>> import jax, jax.numpy as jnp
    >>> rows = shuffled(jnp.arange(10), 10, jnp.array(0), key=jax.random.key(0))
    >>> sorted(rows.tolist()) == list(range(10))
    True

    Source:
        Luby and Rackoff (1988), the network; Black and Rogaway (2002), the walk back
        into the domain.
    """
    round_keys = _round_keys(key, epoch)
    bits = max(4, (size - 1).bit_length())

    def outside(value: UInt32[Array, "*batch"]) -> Array:
        return jnp.any(value >= size)

    def walk(value: UInt32[Array, "*batch"]) -> UInt32[Array, "*batch"]:
        return jnp.where(value >= size, _feistel(value, bits, round_keys), value)

    first = _feistel(position.astype(jnp.uint32), bits, round_keys)
    return jax.lax.while_loop(outside, walk, first).astype(position.dtype)


def _round_keys(key: PRNGKeyArray, epoch: Int[Array, ""]) -> UInt32[Array, " rounds"]:
    # A hash of the key's words, the epoch and the round. JAX's own generator would do,
    # but at a fifth of the time of a small training step.
    words = jax.random.key_data(key).ravel().astype(jnp.uint32)
    rounds = jnp.arange(_ROUNDS, dtype=jnp.uint32) * jnp.uint32(0x9E3779B9)
    mixed = rounds + epoch.astype(jnp.uint32)
    for i in range(words.size):
        mixed = _mixed(mixed ^ words[i]) + jnp.uint32(0x9E3779B9)
    return _mixed(mixed)


def _feistel(
    value: UInt32[Array, "*batch"], bits: int, round_keys: UInt32[Array, " rounds"]
) -> UInt32[Array, "*batch"]:
    # Unbalanced halves swap widths every round; an even number restores the layout.
    high_bits, low_bits = bits // 2, bits - bits // 2
    high, low = value >> low_bits, value & jnp.uint32((1 << low_bits) - 1)
    for i in range(_ROUNDS):
        mask = jnp.uint32((1 << high_bits) - 1)
        high, low = low, high ^ (_mixed(low ^ round_keys[i]) & mask)
        high_bits, low_bits = low_bits, high_bits
    return (high << low_bits) | low


def _mixed(value: UInt32[Array, "*batch"]) -> UInt32[Array, "*batch"]:
    # The 32-bit finalizer of MurmurHash3 (public domain): each bit depends on all.
    value = (value ^ (value >> 16)) * jnp.uint32(0x85EBCA6B)
    value = (value ^ (value >> 13)) * jnp.uint32(0xC2B2AE35)
    return value ^ (value >> 16)
