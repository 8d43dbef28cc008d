"""Batches in chunks and queues, beside a cache."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import effgen as eg
from effgen import retrieval_cache as rc
from tests.retrieval_cache.cases import (
    KEY,
    Noisy,
    batch,
    corpus,
    drifted,
    filled,
    towers,
    trained,
)


def chunked_trainers(chunks):
    optim = optax.sgd(0.1)
    return (
        rc.InBatchTrainer(optim, num_chunks=chunks),
        rc.NegativeCacheTrainer(optim, 12, refresh=0.1, num_chunks=chunks),
        rc.NegativeCacheTrainer(optim, 12, estimator=rc.GumbelMax(), num_chunks=chunks),
    )


# Of documents as they were some steps ago.
@pytest.mark.filterwarnings("ignore:the cache's newest embeddings")
@pytest.mark.one_case("0")
@pytest.mark.parametrize("which", [0, 1, pytest.param(2, marks=pytest.mark.slow)])
def test_chunks_change_no_gradient(which):
    cache = filled(drifted(towers()))
    made = [chunked_trainers(chunks)[which] for chunks in (1, 3)]
    memory = None if which == 0 else cache
    states = [
        eqx.filter_jit(t.step)(t.init(towers(), memory), batch(), key=KEY)[0]
        for t in made
    ]
    kept = [eqx.filter((s.model, s.memory), eqx.is_inexact_array) for s in states]
    for a, b in zip(*map(jax.tree.leaves, kept), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.slow
def test_chunks_hold_one_of_them_at_a_time():
    class Wide(eqx.Module):
        network: eqx.nn.MLP

        def __call__(self, numbers):
            return rc.normalized(jax.vmap(self.network)(numbers / 120))

    model = rc.TwoTowers.tied(Wide(eqx.nn.MLP(1, 8, 64, 8, key=KEY)))
    cache, numbers = filled(model), jnp.arange(1_024) % 120
    pairs = rc.Pairs(numbers[:, None], numbers[:, None], numbers)

    def temporary(chunks):
        trainer = rc.NegativeCacheTrainer(optax.sgd(0.1), 32, num_chunks=chunks)
        state = trainer.init(model, cache)
        work = eqx.filter_jit(lambda state: trainer.step(state, pairs, key=KEY)[0])
        memory = work.lower(state).compile().compiled.memory_analysis()
        return memory.temp_size_in_bytes

    activations = 4 * 64 * 8 * (2 * 1_024 + 32)
    assert temporary(32) < temporary(1) - 0.8 * activations


def test_chunks_that_do_not_divide_are_refused():
    for trainer in chunked_trainers(4):
        memory = None if isinstance(trainer, rc.InBatchTrainer) else filled(towers())
        with pytest.raises(
            ValueError, match="`num_chunks` is 4, which does not divide"
        ):
            eg.fit(trainer, trainer.init(towers(), memory), [batch()], key=KEY)
    with pytest.raises(ValueError, match="`num_chunks` is 0"):
        chunked_trainers(0)
    # Six queries and as many documents, but eight draws.
    uneven = rc.NegativeCacheTrainer(optax.sgd(0.1), 8, num_chunks=3)
    with pytest.raises(ValueError, match="the 14 documents that a step embeds"):
        eg.fit(uneven, uneven.init(towers(), filled(towers())), [batch()], key=KEY)


@pytest.mark.slow
def test_a_queue_holds_past_documents_as_negatives_without_gradient():
    trainer = rc.CrossBatchTrainer(optax.sgd(0.1), temperature=0.1)
    cache = filled(towers())
    state = trainer.init(towers(), cache)
    _, metrics = eqx.filter_jit(trainer.step)(state, batch(), key=KEY)
    exact = rc.full_softmax_loss(towers(), batch(), cache, 10.0)
    np.testing.assert_allclose(metrics["loss"], exact, rtol=1e-5)
    trained(trainer, cache, 20)
    # Documents that are in the queue alone have no gradient.
    step = rc.CrossBatchTrainer(optax.sgd(1.0), temperature=0.1)
    new, _ = eqx.filter_jit(step.step)(step.init(towers(), cache), batch(), key=KEY)
    moved = jnp.any(new.model.document.vectors != towers().document.vectors, axis=1)
    assert set(np.flatnonzero(moved)) == set(np.asarray(batch().ids).tolist())


def test_a_queue_is_without_dropout():
    plain = towers()
    noisy = [Noisy(t, eqx.nn.Dropout(0.5)) for t in (plain.query, plain.document)]
    trainer = rc.CrossBatchTrainer(optax.sgd(0.0))
    cache = rc.NegativeCache.empty(corpus(1), 8, 64)
    state, _ = eqx.filter_jit(trainer.step)(
        trainer.init(rc.TwoTowers(*noisy), cache), batch(), key=KEY
    )
    held = state.memory
    assert int(held.valid.sum()) == 6
    np.testing.assert_allclose(
        held.rows.embeddings()[held.valid],
        plain.document(held.items)[held.valid],
        atol=1e-6,
    )


def test_a_queue_may_wait():
    """Until its towers have found their way, the batch's softmax is all."""
    waiting = rc.CrossBatchTrainer(optax.sgd(0.1), warm_up=3)
    others = rc.InBatchTrainer(optax.sgd(0.1)), rc.CrossBatchTrainer(optax.sgd(0.1))
    cache = filled(towers())
    found, _ = trained(waiting, cache, 3)
    alone, _ = trained(others[0], None, 3)
    for a, b in zip(*map(jax.tree.leaves, (found.model, alone.model)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    one, metrics = eqx.filter_jit(waiting.step)(found, batch(), key=KEY)
    other, expected = eqx.filter_jit(others[1].step)(found, batch(), key=KEY)
    assert eg.state_digest(one) == eg.state_digest(other)
    np.testing.assert_array_equal(metrics["loss"], expected["loss"])
    with pytest.raises(ValueError, match="`warm_up` is -1"):
        rc.CrossBatchTrainer(optax.sgd(0.1), warm_up=-1)


def test_scores_in_batch_are_lowered_by_the_logarithm_of_how_often_documents_are_met():
    model, pairs = towers(), batch()
    often = 1.0 + np.arange(120)
    trainer = rc.InBatchTrainer(optax.sgd(0.1), 0.2, frequencies=jnp.asarray(often))
    step = eqx.filter_jit(trainer.step)
    _, metrics = step(trainer.init(model), pairs, key=KEY)
    scores = 5 * model.query(pairs.queries) @ model.document(pairs.documents).T
    scores = scores - np.log(often)[np.asarray(pairs.ids)][None]
    wanted = jnp.mean(jax.nn.logsumexp(scores, axis=1) - jnp.diag(scores))
    np.testing.assert_allclose(metrics["loss"], wanted, rtol=1e-5)


def test_documents_of_no_frequency_are_refused():
    model, pairs = towers(), batch()
    trainer = rc.InBatchTrainer(optax.sgd(0.1), frequencies=jnp.ones(50))
    with pytest.raises(ValueError, match="says nothing of document 60"):
        eg.fit(
            trainer, trainer.init(model), eg.Minibatches(pairs, 3), key=KEY, num_steps=1
        )
    unnumbered = eg.Minibatches(pairs._replace(ids=None), 3)
    with pytest.raises(ValueError, match="with `ids`"):
        eg.fit(trainer, trainer.init(model), unnumbered, key=KEY, num_steps=1)
