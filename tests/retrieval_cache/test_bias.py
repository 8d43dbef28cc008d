"""How far estimates are off over batches, and what a batch's documents count for."""

import equinox as eqx
import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import effgen as eg
from effgen import retrieval_cache as rc
from effgen.retrieval_cache.softmax.batch_loss import estimate
from effgen.retrieval_cache.softmax.importance import (
    BatchRows,
    nothing_excluded,
    sampled,
    shared_weights,
)
from effgen.retrieval_cache.softmax.scan import Scored
from tests.retrieval_cache.cases import KEY, Table, batch, corpus, filled, towers


@pytest.fixture
def double():
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


@pytest.mark.slow
def test_documents_beside_count_by_how_often_they_are_met(double):
    """Drawn by popularity, and told so, they leave the sum over what is outside.

    To 2 %: who is likely outside depends on the batch too, which weights do not see.
    Counted as if batches never had them, they would add 5 %.
    """
    model = towers(dtype=jnp.float64)
    cache, scale = filled(model, dtype=jnp.float64), jnp.asarray(8.0)
    queries = model.query(batch().queries)
    often = 1.0 / jnp.arange(1, 121)

    def one(key):
        keys = jax.random.split(key)
        slots = jax.random.categorical(keys[0], jnp.log(often), shape=(20,))
        outside = nothing_excluded(6)._replace(ids=slots, digests=jnp.full(20, -1))
        sums = []
        for frequencies in (3 * often, None):
            beside = BatchRows(slots, jnp.ones((6, 20), bool), frequencies)
            sample = sampled(cache, queries, scale, 6, outside, beside, key=keys[1])
            total = jnp.exp(sample.log_partition)
            found = total * jnp.sum(shared_weights(sample, 1.0), axis=1)
            sums.append(jnp.sum(found - total) / whole)
        return jnp.stack(sums)

    every = Scored.of(cache, nothing_excluded(6)).scores(queries, scale)
    whole = jnp.sum(jnp.exp(every))
    found = jax.lax.map(one, jax.random.split(KEY, 4_000))
    off = jnp.abs(found.mean(axis=0))
    assert off[0] < 0.02
    assert off[1] > 1.3 * off[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("estimator", "num_negatives"),
    [(rc.PseudoLogit(), 16), (rc.PseudoLogit(), 64), (rc.GumbelMax(), 16)],
)
def test_a_metric_says_how_far_gradients_may_be_off_over_batches(
    double, estimator, num_negatives
):
    """Over batches drawn evenly, with a cache from nothing to three nats off."""
    num, size, rows = 128, 16, 16
    keys = jax.random.split(KEY, 4)
    vectors, noise = (jax.random.normal(k, (num, size)) for k in keys[:2])
    queries = vectors + 0.7 * jax.random.normal(keys[2], (num, size))
    model = rc.TwoTowers(Table(queries), Table(vectors))

    def flat(gradients):
        return jax.flatten_util.ravel_pytree(gradients)[0]

    @eqx.filter_jit
    def sums(cache):
        def add(total, key):
            i = jax.random.randint(key, (rows,), 0, num, jnp.int32)
            pairs = rc.Pairs(i[:, None], i[:, None], i)
            given = pairs, cache, jnp.asarray(20.0), num_negatives

            def surrogate(model):
                found = estimate(estimator, model, *given, key=key).estimated
                bias = found.corrected.possible_bias
                return jnp.mean(found.surrogate), bias

            exact = flat(
                eqx.filter_grad(rc.full_softmax_loss)(model, pairs, cache, 20.0)
            )
            found, bias = eqx.filter_grad(surrogate, has_aux=True)(model)
            error = flat(found) - exact
            new = (error, exact, jnp.sum(error**2), bias)
            return jax.tree.map(jnp.add, total, new), None

        zero, one = jnp.zeros(2 * num * size), jnp.zeros(())
        keys = jax.random.split(jax.random.key(1), 1_000)
        total, _ = jax.lax.scan(add, (zero, zero, one, one), keys)
        return jax.tree.map(lambda x: x / 1_000, total)

    for moved, most in ((0.0, 1e-6), (0.2, 0.4), (0.6, 1.0)):
        cache = rc.NegativeCache.fill(
            Table(vectors + moved * noise), corpus(num), dtype=jnp.float64
        )
        error, exact, square, told = sums(cache)
        chance = jnp.sqrt(square / 1_000) / jnp.linalg.norm(exact)
        bias = jnp.linalg.norm(error) / jnp.linalg.norm(exact)
        # What chance adds to the length of a mean is taken off, with its own error.
        net = jnp.sqrt(jnp.maximum(bias**2 - chance**2, 0))
        assert net < 1.25 * told + 0.5 * chance
        assert told <= most


def test_a_trainer_finds_how_often_documents_are_met():
    model, trainer = towers(), rc.NegativeCacheTrainer(optax.adam(1e-2), 24)
    state = trainer.init(model, filled(model))
    ids = jnp.asarray([3, 3, 3, 5, 7, 7])
    pairs = rc.Pairs(ids[:, None], ids[:, None], ids)
    for source in (eg.Minibatches, eg.HostMinibatches):
        often = trainer.for_data(state, source(pairs, 3)).frequencies
        np.testing.assert_array_equal(often, np.bincount(ids, minlength=120))
    given = rc.NegativeCacheTrainer(optax.adam(1e-2), 24, frequencies=jnp.ones(120))
    found = given.for_data(state, eg.Minibatches(pairs, 3)).frequencies
    np.testing.assert_array_equal(found, jnp.ones(120))
    far = pairs._replace(ids=ids + 10**6)
    for source in (
        eg.Minibatches(pairs._replace(ids=None), 3),
        eg.Minibatches(far, 3),
        eg.Minibatches(rc.Pairs(corpus(), corpus(), corpus()[:, 0]), 3),
        [pairs],
    ):
        assert trainer.for_data(state, source).frequencies is None
    state, history = eg.fit(
        trainer, state, eg.Minibatches(pairs, 6), key=KEY, num_steps=2
    )
    assert np.isfinite(history["possible_bias"]).all()
    with pytest.raises(ValueError, match="`frequencies` has shape"):
        rc.NegativeCacheTrainer(optax.adam(1e-2), 24, frequencies=jnp.ones((2, 2)))


@pytest.mark.slow
def test_a_replay_is_told_how_often_documents_are_met():
    model, trainer = towers(), rc.NegativeCacheTrainer(optax.adam(1e-2), 24)
    state = trainer.init(model, filled(model))
    ids = jnp.asarray([3, 3, 3, 5, 7, 7])
    data = eg.Minibatches(rc.Pairs(ids[:, None], ids[:, None], ids), 6)
    _, history = eg.fit(trainer, state, data, key=KEY, num_steps=1)
    _, metrics = eg.replay(trainer, state, data, key=KEY)
    assert history["possible_bias"][0] > 0
    for name in ("loss", "possible_bias", "grad_norm"):
        np.testing.assert_allclose(metrics[name], history[name][0], rtol=1e-5)
