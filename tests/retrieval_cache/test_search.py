"""Search and measures against straightforward ones."""

import jax.numpy as jnp
import numpy as np
import pytest

from effgen import retrieval_cache as rc
from tests.retrieval_cache.cases import corpus, filled, towers


def ranking(seed=0, queries=40, documents=60, k=10):
    rng = np.random.default_rng(seed)
    ranked = np.stack([rng.permutation(documents)[:k] for _ in range(queries)])
    relevant = np.full((queries, 5), -1)
    gains = np.zeros((queries, 5))
    for i in range(queries):
        num = rng.integers(1, 6)
        relevant[i, :num] = rng.permutation(documents)[:num]
        gains[i, :num] = rng.integers(1, 4, num)
    return ranked, relevant, gains


def test_measures_are_those_of_ir_measures():
    measures = pytest.importorskip("ir_measures")
    ranked, relevant, gains = ranking()
    given = rc.Relevant(jnp.asarray(relevant), jnp.asarray(gains))
    qrels = {
        str(i): {str(d): int(g) for d, g in zip(*row, strict=True) if d >= 0}
        for i, row in enumerate(zip(relevant, gains, strict=True))
    }
    run = {
        str(i): {str(d): float(len(row) - r) for r, d in enumerate(row)}
        for i, row in enumerate(ranked)
    }
    wanted = [measures.RR @ 10, measures.R @ 10, measures.nDCG @ 10]
    theirs = {m: {} for m in wanted}
    for row in measures.iter_calc(wanted, qrels, run):
        theirs[row.measure][row.query_id] = row.value
    ours = (rc.reciprocal_rank, rc.recall, rc.discounted_gain)
    for measure, function in zip(wanted, ours, strict=True):
        found = function(jnp.asarray(ranked), given)
        expected = [theirs[measure][str(i)] for i in range(len(ranked))]
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_measures_of_rankings_known_exactly():
    ranked = jnp.asarray([[3, 1, 2], [4, 5, 6]])
    relevant = rc.Relevant(jnp.asarray([[1, 9], [7, -1]]))
    np.testing.assert_allclose(rc.reciprocal_rank(ranked, relevant), [0.5, 0.0])
    np.testing.assert_allclose(rc.recall(ranked, relevant), [0.5, 0.0])
    best = 1 + 1 / np.log2(3)
    gain = 1 / np.log2(3) / best
    np.testing.assert_allclose(
        rc.discounted_gain(ranked, relevant), [gain, 0.0], rtol=1e-6
    )


def test_search_is_exact():
    model = towers(500, 16)
    index = rc.Index.of(model.document, corpus(500), ids=np.arange(500) + 7)
    queries = model.query(corpus(20))
    found = index.search(queries, 9)
    scores = np.asarray(queries @ model.document(corpus(500)).T)
    order = np.argsort(-scores, axis=1)[:, :9]
    np.testing.assert_array_equal(found.ids, order + 7)
    without = index.search(queries, 9, known=found.ids[:, :2])
    np.testing.assert_array_equal(without.ids[:, :7], found.ids[:, 2:])
    with pytest.raises(ValueError, match="`k` is 600"):
        index.search(queries, 600)
    with pytest.raises(ValueError, match="embed both with one model"):
        index.search(queries[:, :3], 5)


@pytest.mark.parametrize(
    ("encode", "ids", "message"),
    [
        (lambda x: jnp.full((len(x), 3), jnp.inf), None, "9 documents are not finite"),
        (lambda x: jnp.ones(len(x)), None, "returned shape"),
        (lambda x: jnp.ones((len(x), 3)), np.zeros(9, int), "`ids` repeat"),
        (lambda x: jnp.ones((len(x), 3)), np.arange(8), "pass 9 integers"),
        (lambda x: jnp.ones((len(x), 3)), np.arange(9) + 2**30, "up to 2"),
    ],
)
def test_an_index_that_cannot_be_searched_says_why(encode, ids, message):
    with pytest.raises(ValueError, match=message):
        rc.Index.of(encode, corpus(9), ids=ids)


def test_a_model_that_knows_is_measured_so():
    table = towers(100).query
    model = rc.TwoTowers(table, table)
    index = rc.Index.of(model.document, corpus(100))
    found = rc.evaluate(model, corpus(100), jnp.arange(100)[:, None], index)
    assert found.means() == {"mrr": 1.0, "recall": 1.0, "ndcg": 1.0}
    for same in (jnp.arange(100), list(range(100)), [[i, i] for i in range(100)]):
        assert rc.evaluate(model, corpus(100), same, index).means()["mrr"] == 1.0
    uneven = [[i] if i % 2 else [i, 0] for i in range(100)]
    assert rc.evaluate(model, corpus(100), uneven, index).means()["mrr"] == 1.0
    with pytest.raises(ValueError, match="one row a query"):
        rc.evaluate(model, corpus(100), jnp.arange(9)[:, None], index)
    with pytest.raises(ValueError, match="`relevant` is float32"):
        rc.evaluate(model, corpus(100), jnp.arange(100.0), index)


def test_hard_negatives_are_the_best_that_do_not_answer():
    model = towers()
    queries, known = corpus(10), jnp.arange(10)[:, None]
    found = rc.mined(model, queries, filled(model), 5, known=known, skip=1)
    scores = np.array(model.query(queries) @ model.document(corpus()).T)
    scores[np.arange(10), np.arange(10)] = -np.inf
    order = np.argsort(-scores, axis=1)[:, 1:6]
    np.testing.assert_array_equal(found, order)
