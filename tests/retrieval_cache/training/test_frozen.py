"""Queries trained against an index that stays: the corpus's softmax, exactly."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import effgen as eg
from effgen import retrieval_cache as rc
from tests.retrieval_cache.cases import KEY, Table


NUM, SIZE = 120, 8


class Asking(eqx.Module):
    """A model of queries alone."""

    query: Table


def given():
    """Return a model, embeddings, numbers that are no rows, and a batch of known."""
    keys = jax.random.split(KEY)
    model = Asking(Table(jax.random.normal(keys[0], (NUM, SIZE))))
    embeddings = rc.normalized(jax.random.normal(keys[1], (NUM, SIZE)))
    ids = np.random.default_rng(0).permutation(1_000)[:NUM]
    # Query 3 is asked twice, of two documents; 5 has one more that is known.
    queries = jnp.asarray([3, 3, 5, 7])[:, None]
    known = jnp.asarray([[-1, -1], [-1, -1], [ids[40], 5_000], [-1, -1]])
    own = jnp.asarray(ids[[3, 30, 5, 7]], jnp.int32)
    return model, embeddings, ids, rc.Pairs(queries, None, own, known)


def exact(model, embeddings):
    """Return the loss by hand, in an array of queries by documents."""
    queries = model.query(jnp.asarray([3, 3, 5, 7])[:, None])
    scores = 10.0 * queries @ embeddings.T
    left_out = jnp.zeros(scores.shape, bool)
    left_out = left_out.at[[0, 1, 2], [30, 3, 40]].set(True)
    scores = jnp.where(left_out, -jnp.inf, scores)
    own = scores[jnp.arange(4), jnp.asarray([3, 30, 5, 7])]
    return jnp.mean(jax.nn.logsumexp(scores, axis=1) - own)


def test_a_step_is_one_on_the_softmax_of_the_whole_corpus():
    model, embeddings, ids, pairs = given()
    trainer = rc.FrozenDocumentsTrainer(optax.sgd(1.0), temperature=0.1)
    index = rc.Index.from_embeddings(embeddings, ids=ids)
    state = trainer.init(model, index)
    new, metrics = eqx.filter_jit(trainer.step)(state, pairs, key=KEY)
    loss, slope = eqx.filter_value_and_grad(exact)(model, embeddings)
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
    moved = model.query.vectors - new.model.query.vectors
    np.testing.assert_allclose(moved, slope.query.vectors, atol=1e-6)
    assert metrics["missing"] == -1
    assert jnp.all(new.memory.rows.values == index.rows.values)


def test_numbers_that_the_index_has_not_are_refused():
    model, embeddings, _, pairs = given()
    trainer = rc.FrozenDocumentsTrainer(optax.sgd(1.0))
    state = trainer.init(model, rc.Index.from_embeddings(embeddings))
    strange = rc.Pairs(pairs.queries, None, jnp.asarray([3, 30, 5, 700]))
    with pytest.raises(ValueError, match="`ids` has 700"):
        eg.fit(trainer, state, eg.Minibatches(strange, 2), key=KEY, num_steps=1)
    with pytest.raises(eg.TrainingError, match="`missing`"):
        eg.fit(trainer, state, [strange], key=KEY)
    unnumbered = rc.Pairs(pairs.queries, None)
    with pytest.raises(ValueError, match="no `ids`"):
        eg.fit(trainer, state, eg.Minibatches(unnumbered, 2), key=KEY, num_steps=1)


def test_what_is_no_model_and_no_index_is_refused():
    model, embeddings, *_ = given()
    trainer = rc.FrozenDocumentsTrainer(optax.sgd(1.0))
    with pytest.raises(TypeError, match="no tower `query`"):
        trainer.init(model.query, rc.Index.from_embeddings(embeddings))
    with pytest.raises(TypeError, match="`memory` is a "):
        trainer.init(model, embeddings)
    with pytest.raises(ValueError, match="not finite"):
        rc.Index.from_embeddings(embeddings.at[3, 0].set(jnp.nan))
    with pytest.raises(ValueError, match=r"shape \(8,\)"):
        rc.Index.from_embeddings(embeddings[0])
    small = trainer.init(model, rc.Index.from_embeddings(embeddings[:, :4]))
    pairs = rc.Pairs(jnp.arange(4)[:, None], None, jnp.arange(4))
    with pytest.raises(ValueError, match="embeddings of 8 and the index has 4"):
        eg.fit(trainer, small, eg.Minibatches(pairs, 2), key=KEY, num_steps=1)


def test_what_is_trained_finds_its_documents():
    model, embeddings, *_ = given()
    pairs = rc.Pairs(jnp.arange(NUM)[:, None], None, jnp.arange(NUM))
    index = rc.Index.from_embeddings(embeddings)
    trainer = rc.FrozenDocumentsTrainer(optax.adam(0.1), temperature=0.1)
    state, history = eg.fit(
        trainer,
        trainer.init(model, index),
        eg.Minibatches(pairs, 12),
        key=KEY,
        num_steps=150,
        every=50,
    )
    found = rc.evaluate(state.model, pairs.queries, pairs.ids, index).means()
    assert found["mrr"] > 0.95
    assert history["positive"][-1] > history["positive"][0]


def losses(drawn):
    """Return what a key gives as loss, by so many rows drawn."""
    model, embeddings, ids, pairs = given()
    trainer = rc.FrozenDocumentsTrainer(optax.sgd(1.0), temperature=0.5, drawn=drawn)
    state = trainer.init(model, rc.Index.from_embeddings(embeddings, ids=ids))
    step = lambda key: trainer.step(state, pairs, key=key)[1]["loss"]
    return state.memory.ids.shape[0], eqx.filter_jit(jax.vmap(step))


def test_drawn_rows_stand_for_all():
    rows, exactly = losses(None)
    keys = jax.random.split(KEY, 400)
    whole = float(exactly(keys[:1])[0])
    _, all_drawn = losses(rows)
    np.testing.assert_allclose(all_drawn(keys[:2]), whole, rtol=1e-5)
    _, some = losses(rows // 2)
    found = np.asarray(some(keys))
    # Half of the rows: the mean is a little low, by Jensen, and no more.
    error = found.std() / np.sqrt(len(found))
    assert -0.05 < found.mean() - whole < 4 * error
    assert found.std() > 0


def test_more_rows_than_there_are_cannot_be_drawn():
    model, embeddings, *_ = given()
    with pytest.raises(ValueError, match="`drawn` is 0"):
        rc.FrozenDocumentsTrainer(optax.sgd(1.0), drawn=0)
    trainer = rc.FrozenDocumentsTrainer(optax.sgd(1.0), drawn=10_000)
    state = trainer.init(model, rc.Index.from_embeddings(embeddings))
    pairs = rc.Pairs(jnp.arange(4)[:, None], None, jnp.arange(4))
    with pytest.raises(ValueError, match="`drawn` is 10000 and the index has"):
        eg.fit(trainer, state, eg.Minibatches(pairs, 2), key=KEY, num_steps=1)


@pytest.mark.one_case("64")
@pytest.mark.parametrize("drawn", [None, 64])
def test_an_index_split_over_devices_has_the_loss_of_a_whole_one(drawn):
    model, embeddings, ids, pairs = given()
    trainer = rc.FrozenDocumentsTrainer(optax.sgd(1.0), temperature=0.5, drawn=drawn)
    whole = trainer.init(model, rc.Index.from_embeddings(embeddings, ids=ids))
    split = eg.shard(whole, eg.make_mesh())
    found = []
    for state in (whole, split):
        step = eqx.filter_jit(trainer.for_data(state, None).step)
        new, metrics = step(state, pairs, key=KEY)
        found.append((metrics["loss"], new.model.query.vectors))
    assert not split.memory.rows.values.is_fully_replicated
    assert new.memory.rows.values.sharding == split.memory.rows.values.sharding
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), *found)
