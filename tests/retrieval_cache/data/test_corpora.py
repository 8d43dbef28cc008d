"""Corpora: what is checked, split, and handed on; and the hashes of words."""

import dataclasses
import functools
import time
import unicodedata

import numpy as np
import pytest

from effgen import retrieval_cache as rc
from effgen.retrieval_cache.data.corpora import (
    Corpus,
    answers,
    graded,
    padded,
    split,
    subset,
    with_negatives,
)
from effgen.retrieval_cache.encoders.words import HashedWords, words_of


def corpus(**changed):
    fields = {
        "name": "animals",
        "license": "none",
        "documents": ["a cat", "a dog", "a cow"],
        "queries": ["meow", "woof", "fur"],
        "relevant": [(0,), (1,), (1, 0)],
    }
    return Corpus(**(fields | changed))


def many(num=500):
    texts = [(f"query {i}", f"document {i % 40}", 1.0) for i in range(num)]
    return Corpus.of_texts(texts, ["alone"], name="many", license="none")


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"documents": []}, "`documents` is empty"),
        ({"queries": [], "relevant": []}, "`queries` is empty"),
        ({"relevant": [(0,)]}, "`relevant` has 1 rows and there are 3 queries"),
        ({"relevant": [(0,), (3,), (1,)]}, "query 1 has 3 and there are 3 documents"),
        ({"relevant": [(0,), (-1,), (1,)]}, "query 1 has -1"),
        ({"relevant": [(0,), (), (1,)]}, "no document answers query 1"),
        ({"negatives": [(0,)]}, "`negatives` has 1 rows"),
        ({"negatives": [(9,), (), ()]}, "`negatives` of query 0 has 9"),
        ({"gains": [(1.0,), (1.0,), (1.0,)]}, "differ in length"),
        ({"gains": [(1.0,), (1.0,), (1.0, 0.0)]}, "not all positive"),
        ({"gains": [(1.0,), (0.5,), (1.0, 0.5)]}, "no document answers query 1"),
    ],
)
def test_fields_that_do_not_fit_are_refused(changed, told):
    with pytest.raises(ValueError, match=told):
        corpus(**changed)


def test_a_large_corpus_is_named_in_a_line():
    assert repr(many()) == "Corpus(name='many', license='none')"


def test_judgments_of_repeated_texts_are_joined():
    judgments = [
        ("meow", "a cat", 1.0),
        ("woof", "a dog", 1.0),
        ("meow", "a lion", 0.5),
        ("meow", "a dog", 0.0),
        ("meow", "a cat", 0.25),
        ("meow", "a lion", -1.0),
        ("silence", "a dog", 0.0),
    ]
    found = Corpus.of_texts(judgments, ["a cow"], name="", license="")
    assert found.documents == ["a cow", "a cat", "a dog", "a lion"]
    assert found.queries == ["meow", "woof"]
    assert found.relevant == [(1, 3), (2,)]
    assert found.gains == [(1.0, 0.5), (1.0,)]
    assert found.negatives == [(2,), ()]
    assert found.full == [(1,), (2,)]


def test_a_corpus_without_grades_or_negatives_has_none():
    found = Corpus.judged({7: "a"}, {"x": "?"}, [("x", 7, 1)], name="", license="")
    assert (found.gains, found.negatives, found.full) == (None, None, [(0,)])


def test_digests_tell_contents_apart_and_stay():
    known = "e89040076483e21e1ac040fdb4dcf871fa9bcfae83e84cdd9032231d5220acc2"
    assert corpus().digest() == known
    assert corpus(name="other").digest() == known
    numbers = [tuple(np.array(row)) for row in corpus().relevant]
    assert corpus(relevant=numbers).digest() == known
    changes = (
        {"documents": ["a cat", "a dog", "a cow "]},
        {"queries": ["meow", "woof", "für"]},
        {"relevant": [(0,), (1,), (0, 1)]},
        {"gains": [(1.0,), (1.0,), (1.0, 1.0)]},
        {"negatives": [(1,), (), ()]},
    )
    assert len({corpus(**x).digest() for x in changes} | {known}) == 6


def test_a_split_is_fixed_and_keeps_all_documents():
    train, test = split(many(), 100)
    assert (len(train.queries), len(test.queries)) == (400, 100)
    assert set(train.queries).isdisjoint(test.queries)
    assert train.documents == test.documents == many().documents
    assert test.queries[:3] == ["query 6", "query 8", "query 10"]
    assert split(many(), 100)[1].digest() == test.digest()
    assert split(many(), 100, seed=1)[1].digest() != test.digest()
    for i, query in enumerate(test.queries):
        number = int(query.split()[1])
        assert test.documents[test.relevant[i][0]] == f"document {number % 40}"


def test_a_grown_corpus_is_split_nearly_as_before():
    smaller, larger = (set(split(many(n), 100)[1].queries) for n in (500, 510))
    assert len(smaller & larger) > 90


def test_a_split_takes_gains_and_negatives_along():
    full = corpus(gains=[(1.0,), (2.0,), (1.0, 0.5)], negatives=[(1,), (0, 2), ()])
    for part in split(full, 1):
        for i, query in enumerate(part.queries):
            whole = full.queries.index(query)
            for name in ("relevant", "gains", "negatives"):
                assert getattr(part, name)[i] == getattr(full, name)[whole]


@pytest.mark.parametrize("held_out", [0, 500, 501, -1])
def test_a_split_needs_a_query_on_either_side(held_out):
    with pytest.raises(ValueError, match="`held_out` is"):
        split(many(), held_out)


def test_a_subset_keeps_the_queries_that_its_documents_answer():
    full = many()
    found = subset(full, 20)
    assert len(found.documents) == 20
    assert found.documents == [x for x in full.documents if x in found.documents]
    for query, row in zip(full.queries, full.relevant):
        assert (query in found.queries) == (full.documents[row[0]] in found.documents)
    for query, row in zip(found.queries, found.relevant):
        number = int(query.split()[1])
        assert [found.documents[j] for j in row] == [f"document {number % 40}"]
    assert subset(full, 41).relevant == full.relevant
    with pytest.raises(ValueError, match="`num_documents` is 42"):
        subset(full, 42)


def test_a_subset_drops_a_query_left_with_partial_answers():
    full = corpus(
        documents=["a cat", "a dog"],
        gains=[(1.0,), (1.0,), (1.0, 0.5)],
        negatives=[(1,), (0,), ()],
    )
    found = [subset(full, 1, seed) for seed in range(20)]
    asked = {x.documents[0]: (x.queries, x.gains, x.negatives) for x in found}
    assert asked == {
        "a cat": (["meow"], None, None),
        "a dog": (["woof", "fur"], None, None),
    }


def test_a_subset_that_answers_nothing_is_refused():
    full = corpus(relevant=[(0,)] * 3)
    with pytest.raises(ValueError, match="`queries` is empty"):
        [subset(full, 1, seed) for seed in range(20)]


def test_mined_negatives_are_taken_in():
    found = with_negatives(corpus(), np.array([[2, 1], [-1, -1], [2, -1]]))
    assert found.negatives == [(2, 1), (), (2,)]
    assert corpus(negatives=[(2, 1), (), (2,)]).digest() == found.digest()
    with pytest.raises(ValueError, match="`negatives` has 1 rows"):
        with_negatives(corpus(), np.array([[2]]))


def test_known_rows_are_filled_up():
    found = padded([(3,), (1, 2), ()])
    assert found.tolist() == [[3, -1], [1, 2], [-1, -1]]
    assert found.dtype == np.int32
    assert padded([(3,)], 3).tolist() == [[3, -1, -1]]
    assert padded([()]).tolist() == [[-1]]
    with pytest.raises(ValueError, match="`width` is 1 and a row has 2"):
        padded([(3,), (1, 2)], 1)


def test_grades_are_trained_on_from_half_of_the_best_on():
    grades = [("q", "d1", 3), ("q", "d2", 1), ("q", "d3", 0), ("q", "d4", 2)]
    texts = {f"d{i}": f"text {i}" for i in range(1, 5)}
    judged = functools.partial(
        rc.Corpus.judged, texts, {"q": "a query"}, name="", license=""
    )
    assert judged(grades).full == [(0, 3)]
    assert judged(grades).negatives == [(2,)]
    assert judged(grades, full_gain=1).full == [(0, 1, 3)]
    assert judged(grades, full_gain=3).full == [(0,)]
    with pytest.raises(ValueError, match="pass the least gain of a full answer"):
        judged([*grades, ("q", "d1", 3), ("q", "d4", 2)], full_gain=4)
    with pytest.raises(ValueError, match="with a gain of 2"):
        judged([("q", "d1", 1), ("q", "d2", 1)], full_gain=2)
    for wrong in (0, True, "2"):
        with pytest.raises(ValueError, match="`full_gain` is"):
            judged(grades, full_gain=wrong)


def test_parts_of_a_corpus_go_by_the_whole_one_s_grades():
    graded = corpus(gains=[(4.0,), (2.0,), (1.0, 2.0)])
    train, test = rc.split(graded, 1)
    assert train.full_gain == test.full_gain == graded.full_gain == 2
    assert rc.merged(graded, rc.HashedWords()).full_gain == 2
    assert corpus().full_gain == 1


def test_what_evaluation_is_to_find():
    found = corpus(gains=[(1.0,), (2.0,), (0.5, 1.0)])
    assert answers(found).ids.tolist() == [[0], [1], [0]]
    assert answers(found).gains is None
    assert graded(found).ids.tolist() == [[0, -1], [1, -1], [1, 0]]
    assert graded(found).gains.tolist() == [[1, 0], [2, 0], [0.5, 1]]
    assert graded(corpus()).gains is None
    ranked = np.array([[1, 0], [1, 0], [1, 0]])
    np.testing.assert_allclose(
        rc.reciprocal_rank(ranked, answers(found)), [0.5, 1, 0.5]
    )
    np.testing.assert_allclose(rc.discounted_gain(ranked, graded(found))[1], 1)


def test_words_are_runs_of_letters_and_digits():
    assert words_of("It's Naïve_2, 3.0-ab!") == ["it", "s", "naïve_2", "3", "0", "ab"]
    assert words_of("  ... ") == []
    assert words_of("cafe\u0301 \ufb01sh") == ["café", "fish"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("किताब पढ़ना", ["किताब", "पढ़ना"]),  # Hindi
        ("கணினி", ["கணினி"]),  # Tamil
        ("শিক্ষা", ["শিক্ষা"]),  # Bengali
        ("หนังสือ", ["ห", "นั", "ง", "สื", "อ"]),  # Thai
        ("检索模型", ["检", "索", "模", "型"]),
        ("東京-ab タワーです", ["東", "京", "ab", "タワー", "で", "す"]),
        ("한국어 책", ["한국어", "책"]),
        ("می\u200cخواهم", ["می\u200cخواهم"]),  # Persian, with a joiner
        ("co\u00adoperate 🙂", ["cooperate"]),
    ],
)
def test_words_of_any_script_keep_their_marks(text, words):
    normal = [unicodedata.normalize("NFKC", word) for word in words]
    assert words_of(text) == normal


def test_truncation_is_counted_and_warned_of_once():
    words = HashedWords(num_words=1_000, length=3, grams=(3,))
    texts = ["a", "cat", "a cat and a dog"]
    sizes = [len(words.tokens(text)) for text in texts]
    with pytest.warns(rc.TruncationWarning, match="of 3 texts are cut to 3 tokens"):
        words(texts)
    words(texts)  # said once
    found = words.truncation(texts)
    over = [max(size - 3, 0) for size in sizes]
    assert (found.texts, found.tokens) == (sum(x > 0 for x in over), sum(over))
    assert (found.num_texts, found.num_tokens) == (3, sum(sizes))
    HashedWords(num_words=1_000, length=64, grams=(3,))(texts)  # nothing is cut


def test_hashes_stay_the_same():
    tokenize = HashedWords(num_words=1_000, length=4)
    assert tokenize(["The cat", ""]).tolist() == [[925, 769, 0, 0], [0, 0, 0, 0]]
    large = HashedWords(num_words=100_000, length=2)(["naïve café"])
    assert (large.tolist(), large.dtype) == ([[63753, 7459]], np.int32)


def test_tokens_are_cut_filled_up_and_typed():
    tokenize = HashedWords(num_words=1 << 16, length=3)
    with pytest.warns(rc.TruncationWarning, match="1 of 4 texts"):
        found = tokenize(["one two three four", "two", "ONE", ""])
    assert (found.shape, found.dtype) == ((4, 3), np.uint16)
    assert found[1].tolist() == [found[0, 1], 0, 0]
    assert found[2, 0] == found[0, 0]
    assert found[3].tolist() == [0, 0, 0]
    assert found[0].min() > 0
    assert tokenize([]).shape == (0, 3)
    assert HashedWords((1 << 16) + 1).dtype == np.int32


@pytest.mark.slow
def test_all_numbers_are_used_and_evenly():
    tokens = HashedWords(num_words=51, length=1)([f"word{i}" for i in range(50_000)])
    counts = np.bincount(tokens[:, 0], minlength=51)
    assert counts[0] == 0
    assert ((counts[1:] - 1_000) ** 2 / 1_000).sum() < 100  # 49 degrees of freedom


def test_pieces_follow_their_word():
    plain, pieces = HashedWords(1 << 16), HashedWords(1 << 16, grams=(3,))
    cats, cat = pieces.tokens("cats"), pieces.tokens("cat")
    assert cats[0] == plain.tokens("cats")[0]
    assert (len(cats), len(cat)) == (1 + 4, 1 + 3)  # <ca cat ats ts>, <ca cat at>
    assert len(set(cats) & set(cat)) == 2
    assert cat[0] not in cats
    assert pieces.tokens("a cat") == pieces.tokens("a") + cat


def test_seeds_and_settings_make_other_tokenizers():
    first, other = HashedWords(1_000), HashedWords(1_000, seed=1)
    text = " ".join(f"word{i}" for i in range(50))
    assert first.tokens(text) != other.tokens(text)
    assert first == HashedWords(1_000) != other
    assert dataclasses.replace(first, seed=1) == other


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"num_words": 1}, "`num_words` is 1"),
        ({"length": 0}, "`length` is 0"),
        ({"seed": -1}, "`seed` is -1"),
        ({"grams": (3, 0)}, "`grams` is"),
    ],
)
def test_settings_out_of_range_are_refused(settings, told):
    with pytest.raises(ValueError, match=told):
        HashedWords(**settings)


def test_one_text_is_not_several():
    with pytest.raises(TypeError, match="`texts` is one text"):
        HashedWords()("a cat")


@pytest.mark.slow
def test_a_hundred_thousand_texts_take_seconds():
    texts = [f"a short text of word{i} and word{i * 7 % 5_000}" for i in range(100_000)]
    start = time.perf_counter()
    HashedWords()(texts)
    assert time.perf_counter() - start < 20


@pytest.mark.parametrize("gains", [[1.0, np.nan], [np.nan, 1.0], [np.inf]])
def test_gains_are_finite(gains):
    judgments = [("x", 7, gain) for gain in gains]
    with pytest.raises(ValueError, match="gain of document 7 for query 'x' is"):
        Corpus.judged({7: "a"}, {"x": "?"}, judgments, name="", license="")
