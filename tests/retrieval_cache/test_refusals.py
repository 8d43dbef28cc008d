"""What would be wrong in silence, and is refused by name."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from effgen import retrieval_cache as rc


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
