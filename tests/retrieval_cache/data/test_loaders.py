"""Batches of pairs: their shapes, what is drawn, and that runs resume."""

import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import effgen as eg
from effgen import retrieval_cache as rc
from effgen.retrieval_cache.data.corpora import Corpus
from effgen.retrieval_cache.data.loaders import grain_pairs, merged, pairs_of
from effgen.retrieval_cache.encoders.words import HashedWords
from tests.cases import KEY


TOKENIZE = HashedWords(num_words=4_096, length=8)


def corpus(num=24):
    """Return one whose even queries two documents answer, of which one is shared."""
    judgments = []
    for i in range(num):
        judgments.append((f"question number {i}", f"answer number {i}", 1.0))
        if i % 2 == 0:
            judgments.append((f"question number {i}", "all even ones", 1.0))
            judgments.append((f"question number {i}", f"answer number {i + 1}", 0.5))
        for j in range(2, 5):
            other = f"answer number {(i + j) % num}"
            judgments.append((f"question number {i}", other, 0.0))
    return Corpus.of_texts(judgments, name="numbers", license="none")


def test_pairs_are_rows_of_tokens():
    found, texts = pairs_of(corpus(), TOKENIZE, num_negatives=2), corpus()
    rows = sum(map(len, texts.full))
    assert rows == 36
    assert (found.queries.shape, found.queries.dtype) == ((rows, 8), np.uint16)
    assert (found.documents.shape, found.documents.dtype) == ((rows, 8), np.uint16)
    assert (found.ids.shape, found.ids.dtype) == ((rows,), np.int32)
    assert (found.known.shape, found.known.dtype) == ((rows, 3), np.int32)
    assert found.negatives.shape == (rows, 2, 8)
    assert (found.negative_ids.shape, found.negative_ids.dtype) == ((rows, 2), np.int32)
    every = TOKENIZE(texts.documents)
    np.testing.assert_array_equal(found.documents, every[found.ids])
    np.testing.assert_array_equal(found.negatives, every[found.negative_ids])
    assert all(i in known for i, known in zip(found.ids, found.known))
    for query, known, negatives in zip(
        found.queries.tolist(), found.known.tolist(), found.negative_ids.tolist()
    ):
        number = TOKENIZE(texts.queries).tolist().index(query)
        assert tuple(i for i in known if i >= 0) == texts.relevant[number]
        assert tuple(negatives) == texts.negatives[number][:2]


def test_pairs_without_negatives_have_none():
    found = pairs_of(corpus(), TOKENIZE, HashedWords(num_words=4_096, length=4))
    assert found.negatives is found.negative_ids is None
    assert found.queries.shape == (36, 4)


def test_tokens_may_be_any_tree():
    def tokenize(texts):
        tokens = TOKENIZE(texts)
        return {"tokens": tokens, "mask": tokens > 0}

    found = pairs_of(corpus(), tokenize, num_negatives=3)
    assert found.documents["mask"].shape == (36, 8)
    assert found.negatives["tokens"].shape == (36, 3, 8)


def test_documents_that_a_tokenizer_cannot_tell_apart_are_one():
    judgments = [
        ("first", "the same start, one end", 1.0),
        ("second", "the same start, another end", 1.0),
        ("second", "a start", 0.0),
        ("third", "a start", 1.0),
        ("third", "the same start, one end", 0.5),
        ("third", "the same start, another end", 0.0),
    ]
    texts = Corpus.of_texts(judgments, name="starts", license="none")
    with pytest.warns(rc.TruncationWarning, match="2 of 3 texts are cut"):
        found = merged(texts, HashedWords(length=3))
    assert found.documents == ["the same start, one end", "a start"]
    assert found.relevant == [(0,), (0,), (1, 0)]
    assert found.gains == [(1,), (1,), (1, 0.5)]
    assert found.negatives == [(), (1,), ()]
    with pytest.warns(rc.TruncationWarning, match="2 of 3 texts are cut to 4"):
        assert merged(texts, HashedWords(length=4)).digest() == texts.digest()


def test_too_many_negatives_are_refused():
    for make in (pairs_of, lambda *a, **k: grain_pairs(*a, 4, **k)):
        with pytest.raises(ValueError, match="query 0 has 3"):
            make(corpus(), TOKENIZE, num_negatives=4)


@pytest.mark.slow
def test_what_is_known_is_held_once_for_all_pairs():
    judgments = [("a user", f"item {i}", 1.0) for i in range(500)]
    judgments += [(f"user {i}", f"item {i}", 1.0) for i in range(500)]
    users = Corpus.of_texts(judgments, name="users", license="none")
    pairs = pairs_of(users, TOKENIZE)
    assert pairs.known.shape == (1_000, 500)
    assert pairs.known.nbytes == 4 * (1_000 + 2 * 1_000)
    for kind in (eg.Minibatches, eg.HostMinibatches):
        batch = kind(pairs, 8).batch_at(0, key=KEY)
        assert batch.known.shape == (8, 500)
        assert all(i in row for i, row in zip(batch.ids, batch.known))


def uneven():
    """Return one whose three queries have two negatives, one, and none."""
    judgments = [(f"question {i}", f"answer {i}", 1.0) for i in range(3)]
    judgments += [("question 0", f"nothing {i}", 0.0) for i in range(2)]
    judgments += [("question 1", "nothing 2", 0.0)]
    return Corpus.of_texts(judgments, name="uneven", license="none")


@pytest.mark.slow
def test_queries_may_have_unequally_many_negatives():
    corpus = uneven()
    found = pairs_of(corpus, TOKENIZE, num_negatives=2)
    own, (a, b, c) = (
        found.ids,
        (corpus.documents.index(f"nothing {i}") for i in range(3)),
    )
    np.testing.assert_array_equal(
        found.negative_ids, [[a, b], [c, own[1]], [own[2], own[2]]]
    )
    batches = grain_pairs(corpus, TOKENIZE, 3, num_negatives=2)
    drawn = batches[0]
    for i, row in zip(drawn.ids.tolist(), drawn.negative_ids.tolist(), strict=True):
        wanted = {own[0]: {a, b}, own[1]: {c, own[1]}, own[2]: {own[2]}}[i]
        assert set(row) == wanted
    # The loss is that of the softmax over the six documents, each once.
    model, _ = model_and_cache()
    cache = rc.NegativeCache.fill(model.document, TOKENIZE(corpus.documents))
    queries = model.query(jnp.asarray(TOKENIZE(corpus.queries)))
    scores = 5.0 * queries @ model.document(jnp.asarray(TOKENIZE(corpus.documents))).T
    wanted = jax.nn.logsumexp(scores, axis=1) - scores[jnp.arange(3), own]
    trainer = rc.InBatchTrainer(optax.sgd(0.0), temperature=0.2)
    step = eqx.filter_jit(trainer.step)
    _, metrics = step(trainer.init(model), found, key=KEY)
    np.testing.assert_allclose(metrics["loss"], wanted.mean(), rtol=1e-5)
    exact = eqx.filter_jit(rc.full_softmax_loss)(model, found, cache, 5.0)
    np.testing.assert_allclose(exact, wanted.mean(), rtol=1e-5)


def model_and_cache():
    keys = jax.random.split(KEY)
    towers = rc.TwoTowers(
        rc.HashedBag(4_096, 8, 8, key=keys[0]), rc.HashedBag(4_096, 8, 8, key=keys[1])
    )
    return towers, rc.NegativeCache.fill(towers.document, TOKENIZE(corpus().documents))


@pytest.mark.one_case("grain")
@pytest.mark.parametrize(
    "make",
    [
        lambda: eg.Minibatches(pairs_of(corpus(), TOKENIZE), 6),
        lambda: eg.HostMinibatches(pairs_of(corpus(), TOKENIZE, num_negatives=2), 6),
        lambda: grain_pairs(corpus(), TOKENIZE, 6, num_negatives=2),
    ],
    ids=["device", "host", "grain"],
)
def test_trainers_take_them_and_resume_exactly(make):
    towers, cache = model_and_cache()
    trainer = rc.NegativeCacheTrainer(optax.adam(1e-2), num_negatives=4)
    state = trainer.init(towers, cache)
    whole, _ = eg.fit(trainer, state, make(), key=KEY, num_steps=11)
    half, _ = eg.fit(trainer, state, make(), key=KEY, num_steps=4)
    rest, _ = eg.fit(trainer, half, make(), key=KEY, num_steps=7)
    assert eg.state_digest(whole) == eg.state_digest(rest)
    assert bool(jnp.all(jnp.isfinite(whole.model.query.table)))


def grain_ids(batches, steps):
    return [tuple(batches[i].ids.tolist()) for i in steps]


def test_grain_s_batches_depend_on_seed_and_place_alone():
    batches = grain_pairs(corpus(), TOKENIZE, 5, num_negatives=2)
    found = [batches[i] for i in range(9)]
    again = [grain_pairs(corpus(), TOKENIZE, 5, num_negatives=2)[i] for i in (8, 3)]
    for a, b in zip((found[8], found[3]), again):
        jax.tree.map(np.testing.assert_array_equal, a, b)
    other = grain_pairs(corpus(), TOKENIZE, 5, num_negatives=2, seed=1)
    assert grain_ids(other, range(4)) != grain_ids(batches, range(4))
    assert found[0].queries.shape == (5, 8)
    assert found[0].negatives.shape == (5, 2, 8)
    assert found[0].ids.dtype == found[0].known.dtype == np.int32


def test_an_epoch_of_grain_s_has_each_query_once_and_draws_its_answer_anew():
    texts = corpus()
    batches = grain_pairs(texts, TOKENIZE, 6, num_negatives=2)
    numbers = {tuple(row): i for i, row in enumerate(TOKENIZE(texts.queries).tolist())}
    drawn = [{} for _ in texts.queries]
    left = [set() for _ in texts.queries]
    for epoch in range(20):
        seen = []
        for step in range(4 * epoch, 4 * epoch + 4):
            batch = batches[step]
            for row, query in enumerate(batch.queries.tolist()):
                number, document = numbers[tuple(query)], int(batch.ids[row])
                seen.append(number)
                drawn[number][document] = drawn[number].get(document, 0) + 1
                negatives = batch.negative_ids[row].tolist()
                assert len(set(negatives)) == 2
                left[number] |= set(negatives)
        assert sorted(seen) == list(range(24))
    for number, found in enumerate(drawn):
        assert set(found) == set(texts.full[number])
        assert left[number] == set(texts.negatives[number])
    halves = [found[min(found)] for found in drawn[::2]]
    assert 90 < sum(halves) < 150  # of 240: less than one in 10,000 are further off


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="`batch_size` is 25 and there are 24"):
        grain_pairs(corpus(), TOKENIZE, 25)


def test_without_grain_the_error_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "grain", None)
    with pytest.raises(ImportError, match=r"'\.\[data\]'"):
        grain_pairs(corpus(), TOKENIZE, 5)
