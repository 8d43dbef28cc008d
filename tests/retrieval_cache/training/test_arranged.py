"""Arranged batches: every pair once an epoch, and groups of one cluster."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import effgen as eg
from effgen import retrieval_cache as rc
from effgen.retrieval_cache.training.arranged import (
    ArrangedMinibatches,
    arranged,
    clusters,
)
from tests.cases import KEY
from tests.retrieval_cache import cases


NUM, SIZE, GROUP = 210, 20, 5


def labels(sizes=(95, 40, 33, 22, 4, 4, 4, 4, 4)):
    """Return clusters in an order of their own, the last ones without a full group."""
    found = np.repeat(np.arange(len(sizes)), sizes)
    return np.random.default_rng(0).permutation(found)


def source(group=GROUP, given=None):
    given = labels() if given is None else given
    return ArrangedMinibatches(np.arange(NUM), SIZE, given, group=group)


def test_every_pair_is_in_an_epoch_once_and_half_a_batch_in_groups():
    batches, given = source(), labels()
    for epoch in range(3):
        found = np.stack([batches.batch_at(10 * epoch + i, key=KEY) for i in range(10)])
        assert len(np.unique(found)) == 200
        order = arranged(given, SIZE, GROUP, np.random.default_rng(epoch))
        assert len(np.unique(order)) == 200
        groups = given[order[:, : SIZE // 2].reshape(10, 2, GROUP)]
        assert np.all(groups == groups[:, :, :1])
    assert not np.array_equal(found[0], batches.batch_at(0, key=KEY))


def test_clusters_without_a_full_group_leave_batches_as_they_come():
    alone = arranged(np.arange(NUM), SIZE, GROUP, np.random.default_rng(0))
    assert alone.shape == (10, 20)
    assert len(np.unique(alone)) == 200
    # Three groups for ten batches: as many in each but for one.
    few = np.r_[np.zeros(15, int), np.arange(1, NUM - 14)]
    order = arranged(few, SIZE, GROUP, np.random.default_rng(0))
    assert sorted(np.sum(few[order] == 0, axis=1))[-3:] == [5, 5, 5]
    assert len(np.unique(order)) == 200


def test_a_run_goes_on_exactly_by_the_same_labels():
    model, trainer = cases.towers(NUM), rc.InBatchTrainer(optax.adam(0.1))
    numbers = np.arange(NUM, dtype=np.int32)
    pairs = rc.Pairs(numbers[:, None], numbers[:, None], numbers)
    take = lambda state, num: eg.fit(
        trainer,
        state,
        ArrangedMinibatches(pairs, SIZE, labels(), group=GROUP),
        key=KEY,
        num_steps=num,
    )[0]
    whole = take(trainer.init(model), 13)
    parts = take(take(trainer.init(model), 6), 7)
    jax.tree.map(np.testing.assert_array_equal, whole.model, parts.model)


def test_clusters_are_of_what_is_near():
    centers = np.asarray(jax.random.normal(KEY, (4, 8))) * 10
    which = np.random.default_rng(0).integers(4, size=400)
    noise = np.random.default_rng(1).normal(size=(400, 8))
    found = clusters(centers[which] + 0.1 * noise, 4, key=KEY)
    pure = [len(np.unique(which[found == label])) for label in np.unique(found)]
    # A start may have two of one center, and then another holds two.
    assert pure.count(1) >= len(pure) - 1
    assert clusters(noise, key=KEY).max() < 20
    assert np.array_equal(clusters(noise, key=KEY), clusters(noise, key=KEY))


def test_free_rows_of_a_cache_are_no_cluster_without_a_word():
    vectors = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
    ids = np.arange(20)[::-1]
    cache = rc.NegativeCache.fill(jnp.asarray, vectors, ids=ids, capacity=24)
    rows = np.asarray(cache.rows.embeddings())
    assert len(rows) == 24
    with pytest.warns(UserWarning, match=r"are zeros, the first row 20: .* free rows"):
        clusters(rows, 3, key=KEY)
    there = np.flatnonzero(np.asarray(cache.ids) >= 0)
    labels = np.zeros(20, np.int32)
    labels[np.asarray(cache.ids)[there]] = clusters(rows[there], 3, key=KEY)
    assert np.array_equal(labels[::-1], clusters(vectors, 3, key=KEY))


def test_what_cannot_be_arranged_is_refused():
    with pytest.raises(ValueError, match="`group` is 11 and half of a batch 10"):
        source(11)
    with pytest.raises(ValueError, match=r"shape \(3,\) and there are 210 pairs"):
        source(given=np.arange(3))
    with pytest.raises(TypeError, match="`labels` are float64"):
        source(given=np.ones(NUM))
    with pytest.raises(ValueError, match="`num` is 500"):
        clusters(np.ones((400, 2)), 500, key=KEY)
    with pytest.raises(ValueError, match=r"shape \(400,\)"):
        clusters(np.ones(400), key=KEY)
    with pytest.raises(ValueError, match="not finite"):
        clusters(np.full((4, 2), np.nan), key=KEY)


def test_rows_of_columns_are_by_position():
    pd = pytest.importorskip("pandas")
    shuffled = pd.Series(np.arange(NUM)).sample(frac=1, random_state=0)
    both = shuffled, shuffled.to_numpy()
    batches = ArrangedMinibatches(both, SIZE, labels(), group=GROUP)
    for step in range(4):
        by_label, plain = batches.batch_at(step, key=KEY)
        np.testing.assert_array_equal(by_label, plain)
