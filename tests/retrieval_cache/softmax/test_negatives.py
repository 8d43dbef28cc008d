"""One rule of what is no negative, in the loss, the pass and `cache_logit`."""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from effgen import retrieval_cache as rc
from effgen.retrieval_cache.data.pairs import Marks, marks
from effgen.retrieval_cache.softmax import Scored, sample_rows, scan, softmax_pass
from effgen.retrieval_cache.softmax.negatives import (
    _spread,
    excluded_by,
    negatives_in_batch,
    same,
    scored_in_batch,
)
from tests.retrieval_cache.cases import KEY, batch, corpus, filled, towers


def pairs_of(queries, documents, **rest):
    column = lambda x: jnp.asarray(x, jnp.int32)[:, None]
    arrays = {name: jnp.asarray(x, jnp.int32) for name, x in rest.items()}
    return rc.Pairs(column(queries), column(documents), **arrays)


def in_batch(pairs, cache=None):
    return negatives_in_batch(pairs, marks(pairs), cache).tolist()


def in_cache(pairs, cache):
    scored = Scored.of(cache, excluded_by(pairs, marks(pairs), cache))
    return np.broadcast_to(scored.negative(), (len(pairs.queries), cache.capacity))


@pytest.mark.parametrize(
    "pairs",
    [
        pytest.param(pairs_of([1, 2, 3], [7, 7, 9], ids=[7, 7, 9]), id="same number"),
        pytest.param(pairs_of([1, 2, 3], [7, 7, 9], ids=[7, 8, 9]), id="same content"),
        pytest.param(pairs_of([1, 2, 3], [7, 7, 9]), id="no numbers"),
        pytest.param(pairs_of([1, 1, 3], [7, 8, 9], ids=[7, 8, 9]), id="same query"),
        pytest.param(
            pairs_of([1, 2, 3], [7, 8, 9], ids=[7, 8, 9], known=[[8], [7], [-1]]),
            id="known",
        ),
    ],
)
def test_what_answers_in_a_batch_is_no_negative(pairs):
    assert in_batch(pairs) == [
        [False, False, True],
        [False, False, True],
        [True] * 2 + [False],
    ]


def test_an_equal_query_s_answers_are_answers_with_what_equals_them():
    # Queries 0 and 1 are equal; document 2 has the content of 1's, and is another's.
    pairs = pairs_of([1, 1, 3, 4], [7, 8, 8, 9], ids=[7, 8, 20, 9])
    found = in_batch(pairs)
    assert found[0] == found[1] == [False, False, False, True]
    assert found[2] == [True, False, False, True]


@pytest.mark.slow
def test_a_document_of_known_content_is_no_negative_anywhere():
    documents = jnp.asarray([5, 6, 5, 7, 8, 9])[:, None]
    cache = rc.NegativeCache.fill(lambda x: jnp.ones((len(x), 2)), documents)
    shuffled = rc.NegativeCache.fill(
        lambda x: jnp.ones((len(x), 2)), documents, ids=[30, 10, 50, 20, 40, 60]
    )
    for cached, number in ((cache, 0), (shuffled, 30)):
        pairs = pairs_of([1, 2], [7, 8], known=[[number, -1], [-1, -1]])
        found = in_cache(pairs, cached)
        assert found[0].tolist() == [False, True, False, False, False, True]
        assert found[1].tolist() == [True, True, True, False, False, True]
        # A batch's document without a number is known by the content of the known one.
        twin = pairs_of([1, 2], [7, 5], known=[[number, -1], [-1, -1]])
        assert in_batch(twin, cached)[0] == [False, False]


def test_what_a_batch_has_twice_counts_once():
    # Documents 0 and 2 are one by number, 3 and 4 by content.
    pairs = pairs_of([1, 2, 3, 4, 5], [7, 8, 7, 9, 9], ids=[7, 8, 7, 9, 10])
    found = scored_in_batch(pairs, marks(pairs))
    assert found[1].tolist() == [True, False, False, True, False]
    assert found[0].tolist() == [False, True, False, True, False]
    assert found[4].tolist() == [True, True, False, False, False]


def test_numbers_that_no_row_has_exclude_nothing():
    cache = rc.NegativeCache.fill(
        lambda x: jnp.ones((len(x), 2)), corpus(6), ids=[9, 8, 7, 6, 5, 4]
    )
    found = cache.contents(jnp.asarray([[9, 100], [4, -1]]))
    assert found[0, 0] == cache.digests[0]
    assert found[1, 0] == cache.digests[5]
    assert found[0, 1] == found[1, 1] == -1


def known_rows(num=6, width=40, total=120, seed=0):
    """Return many numbers a query, in no order, some of them twice, some of nothing."""
    rng = np.random.default_rng(seed)
    found = rng.integers(0, total + 20, (num, width)).astype(np.int32)
    return np.where(rng.random(found.shape) < 0.2, -1, found)


@pytest.mark.one_case("False")
@pytest.mark.parametrize("is_ordered", [True, False])
def test_many_known_documents_are_left_out_as_few_are(is_ordered, monkeypatch):
    model, known = towers(), known_rows()
    ids = np.arange(120) if is_ordered else np.random.default_rng(1).permutation(120)
    cache = rc.NegativeCache.fill(model.document, corpus(), ids=ids)
    one = batch()
    pairs = one._replace(ids=jnp.asarray(ids[one.ids], jnp.int32), known=known)
    excluded = excluded_by(pairs, marks(pairs), cache)
    wanted = np.stack([~np.isin(ids, [*row, *pairs.ids]) for row in known])
    scored = Scored.of(cache, excluded)
    np.testing.assert_array_equal(scored.negative()[:, :120], wanted)
    slots = jnp.asarray([7, 3, 119, 3])
    np.testing.assert_array_equal(scored.take(slots).negative(), wanted[:, slots])
    # Tile by tile, and by the draws' blocks.
    monkeypatch.setitem(scan._TILE_SCORES, "cpu", 6 * 32)
    queries, scale = model.query(pairs.queries), jnp.asarray(5.0)
    found = softmax_pass(scored, queries, scale, 16)
    scores = 5.0 * np.asarray(queries @ model.document(corpus()).T, np.float64)
    scores = np.where(wanted, scores, -np.inf)
    np.testing.assert_allclose(
        found.log_partition, np.logaddexp.reduce(scores, axis=1), rtol=1e-5
    )
    owners = jnp.repeat(jnp.arange(6), 50)
    drawn = sample_rows(scored, found, queries, scale, owners, 16, key=KEY)
    assert wanted[owners, drawn].all()


def test_what_has_the_content_of_many_known_documents_is_left_out_too():
    """Rows of one content, of which one is known: none is a negative, anywhere."""
    model, known = towers(), known_rows()
    contents = np.arange(120) % 90
    cache = rc.NegativeCache.fill(model.document, contents[:, None])
    assert cache.repeats
    assert not filled(model).repeats
    one = batch()
    pairs = one._replace(documents=jnp.asarray(contents)[one.ids][:, None], known=known)
    excluded = excluded_by(pairs, marks(pairs), cache)
    row_contents = [
        contents[[i for i in {*row} if 0 <= i < 120]] for row in known.tolist()
    ]
    own = contents[np.asarray(one.ids)]
    wanted = np.stack([~np.isin(contents, [*row, *own]) for row in row_contents])
    scored = Scored.of(cache, excluded)
    np.testing.assert_array_equal(scored.negative()[:, :120], wanted)
    slots = jnp.asarray([7, 3, 119, 3])
    np.testing.assert_array_equal(scored.take(slots).negative(), wanted[:, slots])


@pytest.mark.slow
@pytest.mark.parametrize("estimator", [rc.PseudoLogit(), rc.GumbelMax()])
def test_estimates_with_many_known_documents_are_the_full_softmax_s(estimator):
    model = towers()
    pairs, cache = batch()._replace(known=known_rows()), filled(model)
    given = {"key": KEY, "temperature": 0.2, "num_draws": 2, "num_negatives": 12}
    found = rc.check_gradients(model, pairs, cache, estimator=estimator, **given)
    scores = 5.0 * model.query(pairs.queries) @ model.document(corpus()).T
    for i, row in enumerate(pairs.known):
        others = np.setdiff1d(row[(row >= 0) & (row < 120)], [pairs.ids[i]])
        scores = scores.at[i, others].set(-jnp.inf)
    own = scores[jnp.arange(6), pairs.ids]
    wanted = jnp.mean(jax.nn.logsumexp(scores, axis=1) - own)
    np.testing.assert_allclose(found.loss, wanted, rtol=1e-5)
    np.testing.assert_allclose(found.exact_loss, wanted, rtol=1e-5)


@pytest.mark.slow
def test_a_step_s_program_does_not_grow_with_what_is_known():
    model = towers()
    trainer = rc.NegativeCacheTrainer(optax.sgd(0.1), num_negatives=12)
    state = trainer.init(model, filled(model))

    def size(width):
        pairs = batch()._replace(known=known_rows(width=width))
        step = eqx.filter_make_jaxpr(partial(trainer.step, key=KEY))
        return len(str(step(state, pairs)[0]).splitlines())

    # As many digits: lines of a jaxpr are broken by their length.
    assert size(4_000) == size(1_000)


@pytest.mark.one_case("known")
@pytest.mark.parametrize("by", ["batch", "tuple", "known"])
def test_a_logit_beside_a_batch_s_scores_is_the_full_softmax(by):
    model, pairs = towers(), batch()
    cache = filled(model)
    queries, own = model.query(pairs.queries), model.document(pairs.documents)
    scores = 20.0 * queries @ own.T
    given = {
        "batch": {"batch": pairs},
        "tuple": {"batch": tuple(pairs[:3])},
        "known": {"known": jnp.broadcast_to(pairs.ids, (6, 6))},
    }[by]
    logit, *_ = eqx.filter_jit(rc.cache_logit)(
        queries, cache, model.document, key=KEY, scale=20.0, **given
    )
    both = jnp.concatenate([scores, logit[:, None]], axis=1)
    found = jnp.mean(jax.nn.logsumexp(both, axis=1) - jnp.diag(scores))
    exact = eqx.filter_jit(rc.full_softmax_loss)(model, pairs, cache, 20.0)
    np.testing.assert_allclose(found, exact, rtol=1e-5)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "neither `batch` nor `known`"),
        ({"batch": batch(3)}, "`batch` is of 3 rows and there are 6"),
        ({"known": jnp.zeros((3, 1), int)}, "`known` is of 3 rows"),
        ({"known": jnp.zeros(6, int)}, "`known` is of"),
    ],
)
def test_a_logit_of_nothing_left_out_is_refused(given, message):
    model = towers()
    with pytest.raises(ValueError, match=message):
        rc.cache_logit(
            model.query(batch().queries),
            filled(model),
            model.document,
            key=KEY,
            **given,
        )


@pytest.mark.parametrize("seed", range(20))
def test_answers_spread_to_all_that_is_equal(seed):
    """Against the products of the relations, which take the batch's cube of time."""
    rng = np.random.default_rng(seed)
    answers = rng.random((7, 9)) < 0.2
    asked = rng.integers(0, 5, 7)
    given = Marks(*(jnp.asarray(rng.integers(-1, 6, 9)) for _ in range(2)))
    equal = (asked[:, None] == asked[None]).astype(int)
    alike = np.asarray(same(given, given)) | np.eye(9, dtype=bool)
    found = _spread(jnp.asarray(answers), jnp.asarray(asked), given)
    wanted = equal @ answers.astype(int) @ alike.astype(int) > 0
    np.testing.assert_array_equal(found, wanted)
