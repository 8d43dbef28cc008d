"""Encoders of tokens: what they ignore, how long their vectors are, their precision."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from effgen import retrieval_cache as rc
from tests.retrieval_cache.cases import KEY


@eqx.filter_jit
def encoded(encoder, tokens):
    return encoder(tokens)


@pytest.mark.slow
def test_encoders_ignore_padding():
    keys = jax.random.split(KEY)
    encoders = [
        rc.HashedBag(100, 16, 8, key=keys[0]),
        rc.Transformer(100, 12, key=keys[1], width=16, num_heads=2, size=8),
    ]
    tokens = jnp.asarray([[4, 9, 2, 0, 0], [5, 0, 0, 0, 0]])
    for encoder in encoders:
        short, long = encoded(encoder, tokens[:, :3]), encoded(encoder, tokens)
        np.testing.assert_allclose(short, long, atol=1e-5)
        np.testing.assert_allclose(jnp.linalg.norm(long, axis=1), 1, atol=1e-5)
        empty = encoded(encoder, jnp.zeros((2, 5), jnp.uint16))
        assert bool(jnp.all(jnp.isfinite(empty)))


def test_a_transformer_in_half_precision_is_near_and_keeps_its_parameters():
    wide = rc.Transformer(100, 12, key=KEY, width=32, size=16)
    half = rc.Transformer(100, 12, key=KEY, width=32, size=16, compute=jnp.bfloat16)
    tokens = jax.random.randint(KEY, (6, 12), 1, 100)
    found = encoded(half, tokens)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(encoded(wide, tokens), found, atol=0.05)
    with pytest.raises(ValueError, match="`num_heads` is 3"):
        rc.Transformer(100, 12, key=KEY, num_heads=3)


@pytest.mark.parametrize("width", [16, 256])
def test_words_of_a_bag_begin_with_length_one(width):
    # A rate turns vectors by its share of their length, whatever their width.
    bag = rc.HashedBag(2_000, width, 8, key=KEY)
    squares = jnp.sum(bag.table**2, axis=1)
    error = np.sqrt(2 / (width * len(squares)))
    assert abs(float(jnp.mean(squares)) - 1) < 5 * error
