"""Documents' numbers against their content: what does not match is refused."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import effgen as eg
from effgen import retrieval_cache as rc
from tests.retrieval_cache.cases import KEY, batch, corpus, filled, towers


def shifted(num=48, by=1):
    """Return pairs whose numbers are off by one."""
    numbers = corpus(num)
    return rc.Pairs(numbers, numbers, numbers[:, 0] + by)


TRAINERS = [
    rc.NegativeCacheTrainer(optax.sgd(0.1), num_negatives=12, refresh=0),
    rc.NegativeCacheTrainer(optax.sgd(0.1), num_negatives=12, estimator=rc.GumbelMax()),
    rc.FullSoftmaxTrainer(optax.sgd(0.1)),
]


@pytest.mark.parametrize("source", [eg.Minibatches, eg.HostMinibatches])
@pytest.mark.parametrize("trainer", TRAINERS)
def test_numbers_of_other_documents_are_refused_before_any_compute(trainer, source):
    model = towers()
    state = trainer.init(model, filled(model))
    with pytest.raises(ValueError, match=r"`ids` has 48 for a document that is not"):
        eg.fit(trainer, state, source(shifted(), 12), key=KEY, num_steps=1)


@pytest.mark.slow
def test_numbers_of_other_documents_stop_a_stream_with_the_cache_whole():
    model, trainer = towers(), TRAINERS[0]
    cache = filled(model)
    good = rc.Pairs(corpus(12), corpus(12), jnp.arange(12))
    bad = good._replace(ids=good.ids.at[3].set(7))
    run = [good, bad]
    with pytest.raises(eg.TrainingError, match=r"`differing` is 7\.") as caught:
        eg.fit(trainer, trainer.init(model, cache), run, key=KEY, num_steps=2)
    assert caught.value.step == 1
    assert caught.value.result == eg.RESULTS.documents_differ
    np.testing.assert_array_equal(caught.value.state.memory.ids, cache.ids)


@pytest.mark.slow
def test_negatives_are_held_to_their_numbers_too():
    model, trainer = towers(), TRAINERS[0]
    one = batch(6)
    negatives = jnp.full((6, 1, 1), 3)
    pairs = one._replace(negatives=negatives, negative_ids=jnp.full((6, 1), 4))
    state = trainer.init(model, filled(model))
    with pytest.raises(eg.TrainingError, match=r"`differing` is 4\."):
        eg.fit(trainer, state, [pairs], key=KEY, num_steps=1)


def test_numbers_past_thirty_bits_are_refused():
    model, trainer = towers(), TRAINERS[0]
    pairs = batch(6)
    pairs = pairs._replace(ids=pairs.ids + 2**30)
    state = trainer.init(model, filled(model))
    with pytest.raises(ValueError, match=r"past 2\^30"):
        eg.fit(trainer, state, eg.Minibatches(pairs, 6), key=KEY, num_steps=1)


@pytest.mark.slow
def test_documents_that_the_cache_does_not_have_are_let_be():
    model = towers()
    cache = filled(model, 60)
    trainer = rc.NegativeCacheTrainer(optax.sgd(0.0), num_negatives=12, refresh=0)
    state = trainer.init(model, cache)
    state, _ = eg.fit(trainer, state, eg.Minibatches(batch(), 6), key=KEY, num_steps=1)
    found = state.memory.rows.embeddings()[:60]
    np.testing.assert_allclose(found, model.document(corpus(60)), rtol=1e-5)


@pytest.mark.slow
def test_a_stream_s_documents_may_change():
    model = towers()
    policies = (rc.WriteBack(), rc.PositivesIn())
    trainer = rc.NegativeCacheTrainer(
        optax.sgd(0.0), num_negatives=12, refresh=policies
    )
    state = trainer.init(model, filled(model))
    state, _ = eg.fit(trainer, state, [shifted(12)], key=KEY, num_steps=1)
    cache = state.memory
    np.testing.assert_array_equal(cache.items[1:13, 0], jnp.arange(12))
    new = model.document(jnp.arange(12)[:, None])
    np.testing.assert_allclose(cache.rows.embeddings()[1:13], new, rtol=1e-5)


def test_gradients_are_not_checked_against_other_documents():
    model = towers()
    with pytest.raises(ValueError, match="for a document that is not the cache's"):
        rc.check_gradients(model, shifted(6), filled(model), key=KEY)
