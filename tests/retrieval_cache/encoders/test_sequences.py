"""Encoders of tokens: what they ignore, how long their vectors are, their precision."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from effgen import retrieval_cache as rc
from effgen.retrieval_cache.encoders.towers import is_random
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


@pytest.mark.one_case("bfloat16-0.05")
@pytest.mark.parametrize(("compute", "near"), [("bfloat16", 0.05), ("float16", 0.01)])
def test_a_transformer_in_half_precision_is_near_and_keeps_its_parameters(
    compute, near
):
    make = functools.partial(rc.Transformer, 100, 12, key=KEY, width=32, size=16)
    tokens = jax.random.randint(KEY, (6, 12), 1, 100)

    @eqx.filter_jit
    @functools.partial(eqx.filter_value_and_grad, has_aux=True)
    def first(encoder):
        found = encoder(tokens)
        return jnp.sum(found[:, 0]), found

    (_, found), slope = first(make(compute=jnp.dtype(compute)))
    exact = encoded(make(), tokens)
    assert found.dtype == slope.head.weight.dtype == jnp.float32
    np.testing.assert_allclose(exact, found, atol=near)
    with pytest.raises(ValueError, match="`num_heads` is 3"):
        make(num_heads=3)


@pytest.mark.parametrize("width", [16, 256])
def test_words_of_a_bag_begin_with_length_one(width):
    # A rate turns vectors by its share of their length, whatever their width.
    bag = rc.HashedBag(2_000, width, 8, key=KEY)
    squares = jnp.sum(bag.table**2, axis=1)
    error = np.sqrt(2 / (width * len(squares)))
    assert abs(float(jnp.mean(squares)) - 1) < 5 * error


def test_a_bag_leaves_words_out_in_training_alone():
    bag = rc.HashedBag(500, 8, 8, key=KEY, dropout=0.5)
    tokens = jax.random.randint(KEY, (64, 10), 1, 500)
    whole = encoded(bag, tokens)
    table = np.asarray(bag.table)[np.asarray(tokens)]
    mean = table.mean(1) @ bag.head.weight.T + bag.head.bias[None]
    expected = np.asarray(rc.normalized(jnp.tanh(mean)))
    np.testing.assert_allclose(whole, expected, atol=1e-5)
    noisy = bag(tokens, key=KEY)
    assert not np.allclose(noisy, whole, atol=1e-3)
    assert not np.allclose(noisy, bag(tokens, key=jax.random.key(1)), atol=1e-3)
    tied = rc.TwoTowers.tied(rc.Bucketed(bag))
    assert is_random(bag, bag)
    assert is_random(tied, tied.document)
    plain = rc.HashedBag(500, 8, 8, key=KEY)
    np.testing.assert_array_equal(plain(tokens, key=KEY), plain(tokens))
    assert not is_random(plain, plain)
    assert all(map(eqx.is_array, jax.tree.leaves(bag)))
    with pytest.raises(ValueError, match="`dropout` is 1"):
        rc.HashedBag(500, key=KEY, dropout=1.0)
