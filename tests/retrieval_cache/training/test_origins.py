"""Caches that another model filled, or the other tower."""

import warnings

import jax
import jax.numpy as jnp
import optax
import pytest

import effgen as eg
from effgen import retrieval_cache as rc
from tests.retrieval_cache.cases import KEY, corpus, data, filled, towers


def trainers():
    optim = optax.adam(1e-2)
    return rc.NegativeCacheTrainer(optim, 12), rc.CrossBatchTrainer(optim)


@pytest.mark.parametrize("trainer", trainers(), ids=lambda t: type(t).__name__)
def test_a_cache_that_the_query_tower_filled_is_refused(trainer):
    model = towers()
    cache = rc.NegativeCache.fill(model.query, corpus())
    with pytest.raises(ValueError, match="filled by the query tower"):
        trainer.init(model, cache)


@pytest.mark.parametrize("trainer", trainers(), ids=lambda t: type(t).__name__)
def test_a_cache_of_another_model_is_warned_of(trainer):
    cache = filled(towers(key=jax.random.key(7)))
    with pytest.warns(UserWarning, match="another model made them") as said:
        trainer.init(towers(), cache)
    assert said[0].filename == __file__


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.int8])
def test_a_cache_of_the_model_itself_is_taken_as_it_is_stored(dtype):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainers()[0].init(towers(), filled(towers(), dtype=dtype, capacity=128))


def test_an_empty_queue_and_a_trained_cache_are_taken():
    """What was embedded before the last step is off by a step."""
    cached, queue = trainers()
    empty = rc.NegativeCache.empty(corpus(1), 8, 64)
    state, _ = eg.fit(
        cached, cached.init(towers(), filled(towers())), data(), key=KEY, num_steps=20
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        queue.init(towers(), empty)
        cached.init(state.model, state.memory)
        eg.continued(cached, state, state.memory)


class Features:
    """A query tower of other inputs than the documents have."""

    def __call__(self, features):
        return rc.normalized(features["age"] @ jnp.ones((3, 8)))


def test_a_query_tower_of_other_inputs_is_not_asked():
    model = rc.TwoTowers(Features(), towers().document)  # pyright: ignore
    cache = filled(towers(key=jax.random.key(7)))
    with pytest.warns(UserWarning, match="another model made them"):
        trainers()[0].init(model, cache)


def test_shapes_alone_are_no_embeddings():
    """As of a state that is restored into."""
    trainer, model = trainers()[0], towers()
    begun = lambda cache: trainer.init(model, cache).step
    shapes = jax.eval_shape(begun, filled(towers(key=jax.random.key(7))))
    assert shapes.shape == ()
