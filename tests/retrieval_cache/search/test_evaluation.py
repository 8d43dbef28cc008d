"""Search and measures against straightforward ones."""

import jax
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


@pytest.mark.slow
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


@pytest.mark.slow
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


def test_measures_of_grades_are_those_of_the_definition():
    for seed in range(3):
        ranked, relevant, gains = ranking(seed)
        given = rc.Relevant(jnp.asarray(relevant), jnp.asarray(gains))
        found = rc.discounted_gain(jnp.asarray(ranked), given)
        for i, row in enumerate(ranked):
            grade = dict(zip(relevant[i], gains[i], strict=True)) | {-1: 0.0}
            best = sorted(grade.values(), reverse=True)[:10]
            sums = [
                sum(g / np.log2(r + 2) for r, g in enumerate(x))
                for x in ([grade.get(d, 0.0) for d in row], best)
            ]
            np.testing.assert_allclose(found[i], sums[0] / sums[1], rtol=1e-6)


@pytest.mark.slow
def test_what_is_named_twice_counts_once_with_its_best_gain():
    ranked = jnp.asarray([[3, 1, 2], [3, 3, 1]])
    once = rc.Relevant(jnp.asarray([[3, 1, -1]] * 2), jnp.asarray([[2.0, 1, 0]] * 2))
    twice = rc.Relevant(jnp.asarray([[3, 1, 3]] * 2), jnp.asarray([[1.0, 1, 2]] * 2))
    for measure in (rc.reciprocal_rank, rc.recall, rc.discounted_gain):
        np.testing.assert_array_equal(measure(ranked, twice), measure(ranked, once))
    plain = rc.Relevant(jnp.asarray([[3, 3]]))
    assert rc.discounted_gain(ranked[:1], plain)[0] == 1
    assert rc.recall(ranked[:1], plain)[0] == 1
    # A document that is ranked twice is found once.
    gain = (2 + 1 / 2) / (2 + 1 / np.log2(3))
    np.testing.assert_allclose(rc.discounted_gain(ranked, once)[1], gain, rtol=1e-6)


def test_a_query_without_judgments_has_no_part_in_the_means():
    model = towers(20)
    index = rc.Index.of(model.document, corpus(20))
    for unjudged in ([[3], []], np.array([[3], [-1]])):
        both = rc.evaluate(model, corpus(20)[3:5], unjudged, index)
        one = rc.evaluate(model, corpus(20)[3:4], np.array([[3]]), index)
        assert both.means() == one.means()
        assert all(np.isnan(x[1]) for x in both)
    # Judged, and nothing answers: zero, as trec_eval has it.
    none = rc.Relevant(jnp.asarray([[3]]), jnp.zeros((1, 1)))
    assert rc.evaluate(model, corpus(1), none, index).means()["ndcg"] == 0
    with pytest.raises(ValueError, match="no query has a judgment"):
        rc.evaluate(model, corpus(1), np.array([[-1]]), index).means()


@pytest.mark.slow
def test_a_corpus_may_be_smaller_than_a_ranking_is_deep():
    table = towers(5).query
    model = rc.TwoTowers(table, table)
    index = rc.Index.of(model.document, corpus(5))
    found = rc.evaluate(model, corpus(5), np.arange(5), index)
    assert found.means() == {"mrr": 1.0, "recall": 1.0, "ndcg": 1.0}
    cache = filled(model, 5, capacity=7)
    mined = rc.mined(model, corpus(5), cache, 20, known=np.arange(5), skip=1)
    assert mined.shape == (5, 20)
    for i, row in enumerate(mined):
        assert (row[3:] == -1).all()
        assert len(set(row[:3].tolist()) - {i}) == 3


@pytest.mark.slow
def test_several_depths_are_as_many_evaluations():
    model = towers(60)
    index = rc.Index.of(model.document, corpus(60))
    relevant = [[i, (i + 1) % 60] for i in range(60)]
    found = rc.evaluate(
        model, corpus(60), relevant, index, k=(1, 10, 100), batch_size=7
    )
    assert list(found) == [1, 10, 100]
    for k, one in found.items():
        alone = rc.evaluate(model, corpus(60), relevant, index, k=k)
        for name in one._fields:
            np.testing.assert_array_equal(getattr(one, name), getattr(alone, name))
    assert found[100].means()["recall"] == 1
    for k in (0, (), (3, -1), 2.5, "10"):
        with pytest.raises(ValueError, match="`k` is"):
            rc.evaluate(model, corpus(60), relevant, index, k=k)


def test_measures_hold_no_array_of_all_by_all():
    ranked = jnp.zeros((300, 100), jnp.int32)
    relevant = rc.Relevant(jnp.zeros((300, 2_000), jnp.int32))
    for measure in (rc.reciprocal_rank, rc.recall, rc.discounted_gain):
        used = jax.jit(measure).lower(ranked, relevant).compile().memory_analysis()
        # A few of the size of what is given; the product of all would be 60 MB in bits.
        assert used.temp_size_in_bytes < 8 * relevant.ids.nbytes


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


@pytest.mark.slow
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


@pytest.mark.parametrize("known", [[[0], [1, -1]], np.array([0, 1])])
def test_copies_of_the_answer_are_no_negatives(known):
    vectors = jax.random.normal(jax.random.key(0), (8, 8))
    vectors /= jnp.linalg.norm(vectors, axis=1, keepdims=True)
    tower = lambda numbers: vectors[numbers]
    items = np.array([0, 1, 2, 3, 0, 5, 6, 0])
    cache = rc.NegativeCache.fill(tower, items)
    model = rc.TwoTowers(tower, tower)
    found = np.asarray(rc.mined(model, np.array([0, 1]), cache, 7, known=known))
    assert sorted(found[0]) == [-1, -1, 1, 2, 3, 5, 6]
    assert sorted(found[1]) == [0, 2, 3, 4, 5, 6, 7]


def test_a_query_that_is_not_finite_finds_nothing():
    model = towers()
    found = rc.Index.from_cache(filled(model)).search(jnp.full((1, 8), jnp.nan), 3)
    assert found.ids.tolist() == [[-1] * 3]
    assert found.scores.tolist() == [[-jnp.inf] * 3]
