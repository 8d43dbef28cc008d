"""What recommenders ask for: weights, streams, new items, and what was seen."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import effgen as eg
from effgen import retrieval_cache as rc
from tests.retrieval_cache.cases import KEY, batch, corpus, filled, towers


WEIGHTS = jnp.asarray([0.0, 1.0, 2.0, 0.5, 1.0, 3.0])


def losses_of(model, pairs, documents):
    """Return the cross-entropies over some documents, which have the pairs' own."""
    scores = 20 * model.query(pairs.queries) @ model.document(documents).T
    own = 20 * jnp.sum(model.query(pairs.queries) * model.document(pairs.documents), 1)
    return jax.nn.logsumexp(scores, axis=1) - own


def test_pairs_count_for_their_weights():
    model, pairs = towers(), batch()._replace(weights=WEIGHTS)
    cache = filled(model)

    def exact(model, documents):
        return jnp.mean(WEIGHTS * losses_of(model, pairs, documents))

    trainer = rc.InBatchTrainer(optax.sgd(1.0))
    first = trainer.init(model)
    state, metrics = eqx.filter_jit(trainer.step)(first, pairs, key=KEY)
    value, slope = eqx.filter_value_and_grad(exact)(model, pairs.documents)
    np.testing.assert_allclose(metrics["loss"], value, rtol=1e-5)
    moved = state.model.document.vectors - model.document.vectors
    np.testing.assert_allclose(moved, -slope.document.vectors, atol=1e-5)
    whole = exact(model, corpus())
    found = eqx.filter_jit(rc.full_softmax_loss)(model, pairs, cache, 20.0)
    np.testing.assert_allclose(found, whole, rtol=1e-5)


@pytest.mark.slow
def test_frozen_documents_queues_and_caches_go_by_weights():
    model, pairs = towers(), batch()._replace(weights=WEIGHTS)
    whole = jnp.mean(WEIGHTS * losses_of(model, pairs, corpus()))
    trainer = rc.NegativeCacheTrainer(optax.sgd(1.0), 12)
    first = trainer.init(model, filled(model))
    _, metrics = eqx.filter_jit(trainer.step)(first, pairs, key=KEY)
    np.testing.assert_allclose(metrics["loss"], whole, rtol=1e-4)
    frozen = rc.FrozenDocumentsTrainer(optax.sgd(1.0))
    state = frozen.init(model, rc.Index.of(model.document, corpus()))
    _, metrics = eqx.filter_jit(frozen.step)(state, pairs, key=KEY)
    np.testing.assert_allclose(metrics["loss"], whole, rtol=1e-5)
    queue = rc.CrossBatchTrainer(optax.sgd(1.0))
    state = queue.init(model, filled(model))
    _, metrics = eqx.filter_jit(queue.step)(state, pairs, key=KEY)
    np.testing.assert_allclose(metrics["loss"], whole, rtol=1e-5)


@pytest.mark.slow
def test_an_estimate_by_weights_has_no_bias():
    model, pairs = towers(), batch()._replace(weights=WEIGHTS)
    found = rc.check_gradients(
        model, pairs, filled(model), key=KEY, temperature=0.2, num_draws=1_000
    )
    assert found.bias < 4 * found.bias_error


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (WEIGHTS[:, None], "`weights` are float32 of shape"),
        (WEIGHTS - 1, "some are below zero"),
        (WEIGHTS.at[0].set(jnp.nan), "not all finite"),
    ],
)
def test_weights_that_are_none_are_refused(weights, message):
    trainer = rc.InBatchTrainer(optax.sgd(0.1))
    source = eg.Minibatches(batch()._replace(weights=weights), 3)
    with pytest.raises(ValueError, match=message):
        eg.fit(trainer, trainer.init(towers()), source, key=KEY, num_steps=1)


def test_frequencies_are_found_in_a_stream():
    """Of documents that come evenly exactly: in all batches, a third, a fifth."""
    found, met = rc.StreamedFrequencies.of(8), jax.jit(lambda f, ids: f.met(ids))
    for step in range(31):
        ids = [0, 0, 1 if step % 3 == 1 else 3, 2 if step % 5 == 2 else 4]
        found = met(found, jnp.asarray(ids))
    often = found.frequencies()
    np.testing.assert_allclose(often[:3], [1, 1 / 3, 1 / 5], rtol=1e-6)
    np.testing.assert_array_equal(often[5:], 0)
    assert int(found.visits[1]) == 10
    # Numbers that it has not are left out.
    same = found.met(jnp.asarray([-1, 8]))
    np.testing.assert_array_equal(same.frequencies(), often)


def test_a_rate_that_changes_is_followed():
    found = rc.StreamedFrequencies.of(1, rate=0.2)
    met = jax.jit(lambda f, i: f.met(i[None]))
    for step in range(217):
        there = step < 100 or step % 4 == 0
        found = met(found, jnp.asarray(0 if there else 1))
    np.testing.assert_allclose(found.gaps[0], 4 - 3 * 0.8**29, rtol=1e-5)


def test_a_batch_is_corrected_by_what_the_stream_showed():
    model, pairs = towers(), batch()
    memory = rc.StreamedFrequencies.of(120)
    for step in range(4):
        memory = memory.met(pairs.ids[: step + 2])
    trainer = rc.InBatchTrainer(optax.sgd(0.1))
    first = trainer.init(model, memory)
    state, metrics = eqx.filter_jit(trainer.step)(first, pairs, key=KEY)
    then = memory.met(pairs.ids)
    np.testing.assert_array_equal(state.memory.frequencies(), then.frequencies())
    # Of the other five pairs, for each batch has a query's own document.
    others = 1 - (1 - then.frequencies()) ** (5 / 6)
    told = rc.InBatchTrainer(optax.sgd(0.1), frequencies=others)
    _, expected = eqx.filter_jit(told.step)(told.init(model), pairs, key=KEY)
    np.testing.assert_allclose(metrics["loss"], expected["loss"], rtol=1e-6)


ASKED = np.asarray([0.3, 0.3, 0.2, 0.2])  # of one user, who differs from the others
OFTEN = np.asarray([0.6, 0.2, 0.15, 0.05])


class Truth(eqx.Module):
    """A user's own scores of four items, of which each has one axis."""

    scores: jax.Array

    def query(self, users):
        return jnp.broadcast_to(self.scores, (len(users), 4))

    def document(self, items):
        return jax.nn.one_hot(items, 4)


def expected_slope(trainer, state, num):
    """Return a user's mean slope over all batches of so many pairs, each as likely."""
    batches = np.stack(np.meshgrid(*[np.arange(4)] * num), -1).reshape(-1, num)
    chances = ASKED[batches[:, 0]] * np.prod(OFTEN[batches[:, 1:]], axis=1)
    first = jnp.zeros(num).at[0].set(num)

    def loss(model, items):
        pairs = rc.Pairs(jnp.arange(num), items, items, weights=first)
        _, often = trainer.met(state, pairs)
        return trainer.loss(model, state, pairs, often, key=KEY)

    slopes = eqx.filter_vmap(eqx.filter_grad(loss), in_axes=(None, 0))
    found = eqx.filter_jit(slopes)(state.model, jnp.asarray(batches))
    return chances @ np.asarray(found.scores)


@pytest.mark.parametrize("num", [2, 3, 5])
def test_a_corrected_batch_is_right_at_the_softmax_over_all_items(num):
    """Exactly, for every batch is looked at: items met in most of them are no less."""
    truth = Truth(jnp.log(jnp.asarray(ASKED)))
    given = {"temperature": 1.0, "frequencies": 100 * OFTEN}
    trainer = rc.InBatchTrainer(optax.sgd(1.0), **given)
    found = expected_slope(trainer, trainer.init(truth), num)
    np.testing.assert_allclose(found, 0, atol=1e-6)
    # Shares of batches say a little less than how often an item is in each.
    plain = rc.InBatchTrainer(optax.sgd(1.0), temperature=1.0)
    memory = rc.StreamedFrequencies.of(4, rate=1e-6)
    shares = jnp.asarray(1 - (1 - OFTEN) ** num)
    often = jnp.full(4, 10**6)
    memory = eqx.tree_at(lambda m: (m.gaps, m.visits), memory, (1 / shares, often))
    nearly = expected_slope(plain, plain.init(truth, memory), num)
    without = expected_slope(plain, plain.init(truth), num)
    assert np.abs(nearly).max() < 0.1 * np.abs(without).max()


def test_a_memory_that_a_batch_has_no_use_for():
    model, trainer = towers(), rc.InBatchTrainer(optax.sgd(0.1))
    with pytest.raises(TypeError, match="`memory` is a NegativeCache"):
        trainer.init(model, filled(model))  # pyright: ignore[reportArgumentType]
    both = rc.InBatchTrainer(optax.sgd(0.1), frequencies=jnp.ones(120))
    with pytest.raises(ValueError, match="one of the two"):
        both.init(model, rc.StreamedFrequencies.of(120))
    state = trainer.init(model, rc.StreamedFrequencies.of(50))
    with pytest.raises(ValueError, match="`ids` has 60"):
        eg.fit(trainer, state, eg.Minibatches(batch(), 3), key=KEY, num_steps=1)
    for given, name in (({"num": 0}, "num"), ({"num": 3, "rate": 0.0}, "rate")):
        with pytest.raises(ValueError, match=f"`{name}` is 0"):
            rc.StreamedFrequencies.of(**given)


def test_new_items_come_into_a_cache():
    """It is then that of all items, embedded at once."""
    model, items = towers(), corpus()
    some = rc.NegativeCache.fill(model.document, items[:60], step=7, capacity=80)
    more = some.added(model.document, items[60:75])
    whole = rc.NegativeCache.fill(model.document, items[:75], step=7, capacity=80)
    for name in ("items", "ids", "digests", "stamps"):
        np.testing.assert_array_equal(getattr(more, name), getattr(whole, name))
    np.testing.assert_allclose(more.rows.embeddings(), whole.rows.embeddings())
    # In rows that were freed, and by numbers of their own.
    gone = more.removed([3, 4])
    back = gone.added(model.document, items[100:102], ids=[100, 101], step=9)
    np.testing.assert_array_equal(back.ids[3:5], [100, 101])
    np.testing.assert_array_equal(back.stamps[jnp.asarray([2, 3, 4])], [7, 9, 9])


@pytest.mark.parametrize(
    ("items", "given", "message"),
    [
        (corpus()[60:90], {}, r"20 free rows: make room by `cache\.resized\("),
        (corpus()[60:62], {"ids": [3, 80]}, "`ids` has 3, which the cache has"),
        (corpus()[60:62], {"ids": [80, 80]}, "`ids` repeat"),
        (corpus()[60:62, 0], {}, "pad both to one length"),
        (corpus()[60:62] * 1.0, {}, "would cut them"),
        (corpus()[60:62] + 100, {}, "not finite"),
        (corpus()[60:62], {"step": -1}, "`step` is -1"),
    ],
)
def test_new_items_that_do_not_fit_are_refused(items, given, message):
    table = jnp.concatenate([towers().document.vectors, jnp.full((100, 8), jnp.nan)])
    tower = eqx.tree_at(lambda t: t.vectors, towers().document, table)
    cache = rc.NegativeCache.fill(tower, corpus()[:60], capacity=80)
    with pytest.raises(ValueError, match=message):
        cache.added(tower, items, **given)


def test_what_is_asked_for_and_left_out_is_warned_of():
    model = towers()
    index = rc.Index.of(model.document, corpus())
    seen = np.asarray([[1, 2], [3, 4]])
    with pytest.warns(UserWarning, match="such as 3 of query 1"):
        found = rc.evaluate(model, corpus()[:2], [[5], [3, 6]], index, known=seen)
    assert found.recall[1] <= 0.5


def test_gains_may_be_rows_of_any_length():
    model = towers()
    index = rc.Index.of(model.document, corpus())
    given = model, corpus()[:2]
    rows = rc.Relevant([[0, 1], [2]], [[2.0, 1.0], [3.0]])  # pyright: ignore
    whole = rc.Relevant(
        jnp.asarray([[0, 1], [2, -1]]), jnp.asarray([[2.0, 1.0], [3.0, 0.0]])
    )
    found, wanted = (rc.evaluate(*given, x, index, k=120) for x in (rows, whole))
    np.testing.assert_allclose(found.ndcg, wanted.ndcg)
    uneven = rc.Relevant([[0, 1], [2]], [[2.0], [3.0]])  # pyright: ignore
    with pytest.raises(ValueError, match="pass a gain for each number"):
        rc.evaluate(*given, uneven, index)
    # What answers is left out of hard negatives as it is given to `evaluate`.
    cache, rows = filled(model), rc.Relevant(jnp.asarray([[0, 1], [2, -1]]))
    mined = rc.mined(*given, cache, 119, known=rows)  # pyright: ignore
    assert not np.isin(np.asarray(mined[0]), [0, 1]).any()
    assert set(np.asarray(mined[1]).tolist()) == set(range(120)) - {2}


def test_a_new_item_moves_no_row_of_a_lazy_table():
    """Momentum of row 0 acted in each step with an item that the table has not."""
    keys = jax.random.split(KEY, 3)
    items = rc.IdsAndFeatures(
        rc.Table(10, 4, key=keys[0]), rc.Table(3, 4, key=keys[1]), dropout=0.0
    )
    model = rc.TwoTowers(rc.Table(6, 4, key=keys[2]), items)
    trainer = rc.LazyTablesTrainer(rc.InBatchTrainer(optax.adam(0.1)))
    pairs = lambda rows: rc.Pairs(jnp.arange(3), (jnp.array(rows), jnp.arange(3)))
    state, _ = trainer.step(trainer.init(model), pairs([0, 1, 2]), key=KEY)
    before = state.model.document.table.vectors
    state, _ = trainer.step(state, pairs([5, 6, -1]), key=KEY)
    after = state.model.document.table.vectors
    np.testing.assert_array_equal(
        np.flatnonzero(np.any(before != after, axis=1)), [5, 6]
    )
    assert np.isfinite(after).all()


def test_no_document_is_removed_by_a_number_that_wraps():
    cache = rc.NegativeCache.fill(lambda x: x, jnp.eye(8), batch_size=8)
    with pytest.raises(ValueError, match="2\\^30"):
        cache.removed(np.array([2**32 + 5]))
    assert set(np.asarray(cache.removed([5, 5]).ids)) == {0, 1, 2, 3, 4, 6, 7, -1}
    assert cache.removed([]) is cache
