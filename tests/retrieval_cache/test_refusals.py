"""What would be wrong in silence, and is refused by name."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import effgen as eg
from effgen import retrieval_cache as rc
from effgen.retrieval_cache.data.pairs import as_numbers, marks


KEY = jax.random.key(0)
WORDS = rc.HashedWords(num_words=64, length=4)
MODEL = rc.TwoTowers.tied(rc.HashedBag(64, 4, 4, key=jax.random.key(0)))
TOKENS = WORDS([f"word{i}" for i in range(8)])
NUMBERS = np.arange(8)
ROWS = jnp.asarray(NUMBERS)[:, None]


@pytest.fixture(scope="module")
def index():
    return rc.Index.of(MODEL.document, TOKENS)


@pytest.mark.parametrize(
    ("tokens", "error", "match"),
    [
        (TOKENS.astype(int) + 64, ValueError, "not finite"),
        (TOKENS.astype(int) - 64, ValueError, "not finite"),
        (TOKENS.astype(float), TypeError, "pass integers"),
        (TOKENS[:, 0], TypeError, "pass integers"),
        (["one text", "another"], TypeError, "holds text"),
    ],
)
def test_what_are_no_tokens_of_an_encoder(tokens, error, match):
    """JAX reads the nearest row for one past the end: another word's."""
    with pytest.raises(error, match=match):
        rc.NegativeCache.fill(MODEL.document, tokens)


@pytest.mark.parametrize(
    ("relevant", "error", "match"),
    [
        (NUMBERS + 2**32, ValueError, "up to 2^31"),
        (NUMBERS[:4], ValueError, "4 rows and there are 8 queries"),
        (rc.Relevant(ROWS, jnp.full((8, 1), jnp.nan)), ValueError, "finite"),
        (rc.Relevant(ROWS, jnp.ones((8, 2))), ValueError, "gains of shape"),
        (rc.Corpus("", "", ["a"], ["b"], [(0,)]), TypeError, "`answers(corpus)`"),
    ],
)
def test_judgments_of_other_documents(index, relevant, error, match):
    with pytest.raises(error, match=re.escape(match)):
        rc.evaluate(MODEL, TOKENS, relevant, index)


def test_judgments_of_nothing_that_is_there_are_warned_of(index):
    with pytest.warns(UserWarning, match="none of them is in the index"):
        found = rc.evaluate(MODEL, TOKENS, NUMBERS + 500, index)
    assert found.means()["mrr"] == 0


def test_what_a_user_has_seen_is_left_out(index):
    queries = MODEL.query(TOKENS)
    best = np.asarray(index.search(queries, 2).ids)
    found = rc.evaluate(MODEL, TOKENS, best[:, 1], index, known=best[:, :1])
    np.testing.assert_array_equal(found.mrr, 1)
    with pytest.raises(ValueError, match="`known` has 3 rows"):
        rc.evaluate(MODEL, TOKENS, NUMBERS, index, known=best[:3])


def test_first_arguments_that_are_others(index):
    cache = rc.NegativeCache.fill(MODEL.document, TOKENS)
    with pytest.raises(TypeError, match="without a tower `query`"):
        rc.evaluate(MODEL.query, TOKENS, NUMBERS, index)
    with pytest.raises(TypeError, match="`index` is a NegativeCache"):
        rc.evaluate(MODEL, TOKENS, NUMBERS, cache)  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="embed them first"):
        index.search(TOKENS, 2)
    with pytest.raises(ValueError, match="`known` is float64"):
        index.search(MODEL.query(TOKENS), 2, known=NUMBERS[:, None] + 0.7)
    with pytest.raises(ValueError, match="`skip` is -1"):
        rc.mined(MODEL, TOKENS, cache, 2, known=NUMBERS, skip=-1)


def test_known_documents_may_be_rows_of_any_length(index):
    queries = MODEL.query(TOKENS)
    best = np.asarray(index.search(queries, 1).ids)[:, 0]
    rest = index.search(queries, np.int64(7), known=[[i] for i in best]).ids
    assert not (np.asarray(rest) == best[:, None]).any()


@pytest.mark.parametrize(
    "given",
    [
        {"documents": [None, "b"]},
        {"documents": "ab"},
        {"queries": ["q", 3]},
        {"relevant": [0, 1]},
        {"relevant": [(0.5,), (1,)]},
        {"relevant": [("0",), ("1",)]},
    ],
)
def test_corpora_of_what_are_no_texts_or_numbers(given):
    fields = {"documents": ["a", "b"], "queries": ["q", "r"], "relevant": [(0,), (1,)]}
    with pytest.raises(TypeError, match=next(iter(given))):
        rc.Corpus("name", "license", **(fields | given))


@pytest.mark.parametrize(
    "texts", [[None, "a"], [1, 2], [b"a"], [["a"]], [float("nan")], b"a"]
)
def test_texts_that_are_none(texts):
    with pytest.raises(TypeError, match="`texts`"):
        WORDS(texts)


def test_negatives_given_as_one_text(tmp_path):
    """They would be written as their letters."""
    with pytest.raises(TypeError, match="`negatives` has 'neg'"):
        rc.save_triples(tmp_path / "triples.jsonl", ["q"], ["a"], ["neg"])


@pytest.mark.parametrize(
    "given",
    [
        {"temperature": float("inf")},
        {"label_smoothing": 1.5},
        {"frequencies": -np.ones(8)},
        {"frequencies": np.full(8, np.nan)},
    ],
)
def test_settings_out_of_range(given):
    name = next(iter(given))
    with pytest.raises(ValueError, match=f"`{name}`"):
        rc.NegativeCacheTrainer(optax.adam(1e-2), **given)
    for trainer in (rc.InBatchTrainer, rc.FullSoftmaxTrainer, rc.CrossBatchTrainer):
        if name != "frequencies":
            with pytest.raises(ValueError, match=f"`{name}`"):
                trainer(optax.adam(1e-2), **given)


def test_what_is_no_optimizer():
    with pytest.raises(TypeError, match="`optim` is a float"):
        rc.InBatchTrainer(1e-2).init(MODEL)  # pyright: ignore[reportArgumentType]


def test_sizes_that_are_none():
    fill, document = rc.NegativeCache.fill, MODEL.document
    given: Any
    for given in ({"batch_size": 0}, {"capacity": 8.5}, {"step": -1}):
        with pytest.raises(ValueError, match=f"`{next(iter(given))}`"):
            fill(document, TOKENS, **given)
    with pytest.raises(ValueError, match="places for 2"):
        rc.Transformer(64, 2, key=jax.random.key(0), width=8)(jnp.asarray(TOKENS))


def test_a_cache_of_a_later_step_is_refused_or_restamped():
    """What a new run embeds would count as the oldest, and be embedded for ever."""
    cache = rc.NegativeCache.fill(MODEL.document, TOKENS, step=50)
    pairs = rc.Pairs(TOKENS, TOKENS, NUMBERS)
    source = eg.Minibatches(pairs, 4)
    for trainer in (
        rc.NegativeCacheTrainer(optax.sgd(0.1), 4),
        rc.CrossBatchTrainer(optax.sgd(0.1)),
    ):
        state = trainer.init(MODEL, cache)
        with pytest.raises(ValueError, match=r"of step 50 and the run is at step 0"):
            eg.fit(trainer, state, source, key=KEY, num_steps=1)
    older = cache.written(jnp.asarray([2]), jnp.ones((1, 4)), jnp.asarray(70))
    np.testing.assert_array_equal(older.restamped().stamps[:4], [-20, -20, 0, -20])
    again = older.restamped(100)
    np.testing.assert_array_equal(again.stamps[:4], [80, 80, 100, 80])
    # A smaller cache still keeps the newest, whatever sign their steps have.
    kept = older.restamped().removed([7]).resized(7)
    assert set(np.asarray(kept.ids).tolist()) == set(range(7))
    np.testing.assert_array_equal(older.rebuilt(MODEL.document).stamps, 70)
    with pytest.raises(ValueError, match=r"`step` is 1\.5"):
        older.rebuilt(MODEL.document, step=1.5)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.uint16, np.uint32])
def test_documents_numbers_may_be_any_integers(dtype):
    pairs = rc.Pairs(TOKENS, TOKENS, NUMBERS.astype(dtype))
    np.testing.assert_array_equal(marks(pairs).ids, NUMBERS)
    most = np.iinfo(dtype).max
    found = as_numbers(np.asarray([0, 3, most], dtype))
    np.testing.assert_array_equal(found, [0, 3, min(most, 2**31 - 1)])
    if np.iinfo(dtype).min < 0:
        np.testing.assert_array_equal(as_numbers(np.asarray([-7, 2], dtype)), [-1, 2])


def test_a_temperature_that_would_not_be_trained():
    own = rc.TwoTowers.tied(MODEL.encoder, rc.LearnedTemperature.of(0.07))
    trainer = rc.InBatchTrainer(optax.sgd(0.1))
    with pytest.raises(ValueError, match=r"`temperature` is 0\.05 and the model"):
        trainer.init(own)
    with pytest.raises(ValueError, match=r"`least` is 0\.5 and `most` 0\.1"):
        rc.LearnedTemperature(jnp.zeros(()), 0.5, 0.1)


def test_what_was_drawn_is_written_back_before_documents_change_places():
    with pytest.raises(ValueError, match=r"put `WriteBack\(\)` first"):
        rc.NegativeCacheTrainer(
            optax.sgd(0.1), refresh=(rc.PositivesIn(), rc.WriteBack())
        )
    with pytest.raises(ValueError, match=r"`refresh` is 1\.5"):
        rc.NegativeCacheTrainer(optax.sgd(0.1), refresh=1.5)


@pytest.mark.parametrize("often", [np.full(8, 4.0), np.full(8, 1 / 8)])
def test_frequencies_of_a_stream_are_those_of_a_step(often):
    """Counts would correct nothing, and shares too much."""
    cache = rc.NegativeCache.fill(MODEL.document, TOKENS)
    rc.PositivesIn(np.full(8, 0.5)).check(cache, 4)
    with pytest.raises(ValueError, match="`frequencies` sum to"):
        rc.PositivesIn(often).check(cache, 4)


def test_a_queue_that_would_cut_documents():
    cache = rc.NegativeCache.fill(MODEL.document, TOKENS)
    wide = TOKENS.astype(np.int32)
    trainer = rc.CrossBatchTrainer(optax.sgd(0.1))
    source = eg.Minibatches(rc.Pairs(wide, wide, NUMBERS), 4)
    with pytest.raises(ValueError, match="int32 and the cache's items uint16"):
        eg.fit(trainer, trainer.init(MODEL, cache), source, key=KEY, num_steps=1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"known": NUMBERS[:, None], "ids": None},
            "`known`, numbers of documents",
        ),
        ({"negative_ids": NUMBERS[:, None]}, "`negative_ids` and no `negatives`"),
        (
            {"negatives": TOKENS[:, None], "negative_ids": np.zeros((8, 2), int)},
            "or their numbers, of shapes",
        ),
        ({"negatives": TOKENS[:4, None]}, "a batch of 8 pairs has `negatives`"),
    ],
)
def test_batches_of_fields_that_would_do_nothing(change, message):
    pairs = rc.Pairs(TOKENS, TOKENS, NUMBERS)._replace(**change)
    trainer = rc.InBatchTrainer(optax.sgd(0.1))
    with pytest.raises(ValueError, match=message):
        eg.fit(trainer, trainer.init(MODEL), [pairs], key=KEY, num_steps=1)


def test_logits_of_settings_that_mean_nothing():
    cache = rc.NegativeCache.fill(MODEL.document, TOKENS)
    given: Any = (MODEL.query(TOKENS), cache, MODEL.document)
    known = NUMBERS[:, None]
    with pytest.raises(ValueError, match="`num_negatives` is 0"):
        rc.cache_logit(*given, key=KEY, known=known, num_negatives=0)
    with pytest.raises(TypeError, match="`known` is float"):
        rc.cache_logit(*given, key=KEY, known=known * 1.0)
    with pytest.raises(ValueError, match="`max_log_ratio` is -1"):
        rc.PseudoLogit(-1.0)


def test_numbers_that_jax_would_cut():
    with pytest.raises(ValueError, match="1099511627776, which JAX would cut"):
        rc.NegativeCache.fill(MODEL.document, np.full((8, 4), 2**40))


def test_frequencies_may_be_a_list_and_are_looked_at():
    for given, message in (([1, -2], "some below zero"), ([0, 0], "all zero")):
        with pytest.raises(ValueError, match=message):
            rc.InBatchTrainer(optax.sgd(0.1), frequencies=given)  # pyright: ignore
    with pytest.raises(ValueError, match="`frequencies` are <U"):
        rc.NegativeCacheTrainer(optax.sgd(0.1), frequencies=["a"])  # pyright: ignore


def test_tokens_of_a_pretrained_encoder_are_integers():
    """Others were cut to integers."""
    given = {"width": 4, "depth": 1, "num_heads": 2, "inner_size": 4}
    bert = rc.Bert.random(64, 4, key=KEY, **given)
    with pytest.raises(TypeError, match="`tokens` are float32: pass an array"):
        bert(jnp.ones((2, 4)))
    with pytest.raises(ValueError, match="`dropout` is 1"):
        rc.Bert.random(64, 4, key=KEY, dropout=1.0, **given)
