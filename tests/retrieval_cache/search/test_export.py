"""What is written is what is read back, whole or not at all."""

import json
import sys
import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from effgen import retrieval_cache as rc
from effgen.retrieval_cache.cache.rows import stored
from effgen.retrieval_cache.encoders.bert import Bert
from effgen.retrieval_cache.encoders.tokenizer import Tokenizer
from effgen.retrieval_cache.search.export import (
    faiss_index,
    save_embeddings,
    save_sentence_transformer,
    save_triples,
)
from tests.retrieval_cache.pretrained import (
    SENTENCES,
    SIMILARITIES,
    WORDS,
    config,
    minilm,
    tiny,
    tokens,
    write,
    write_tokenizer,
)


IDS = (7, 3, -1, 11, 0, -1)


def index(dtype=jnp.float32, ids=IDS):
    rows = rc.normalized(jax.random.normal(jax.random.key(0), (len(ids), 8)))
    return rc.Index(stored(rows, dtype), jnp.asarray(ids))


@pytest.mark.parametrize(
    "dtype",
    [jnp.float32, pytest.param(jnp.bfloat16, marks=pytest.mark.slow), jnp.int8],
)
def test_embeddings_have_their_numbers(tmp_path, dtype):
    module = pytest.importorskip("safetensors.numpy")
    save_embeddings(index(dtype), tmp_path / "new" / "corpus.safetensors")
    found = module.load_file(tmp_path / "new" / "corpus.safetensors")
    np.testing.assert_array_equal(found["ids"], [7, 3, 11, 0])
    assert found["embeddings"].dtype == np.float32
    expected = index(dtype).rows.embeddings()[jnp.asarray([0, 1, 3, 4])]
    np.testing.assert_array_equal(found["embeddings"], expected)


def test_embeddings_without_numbers_are_in_order(tmp_path):
    path = tmp_path / "corpus.npy"
    mixed = index(ids=(2, -1, 0, 1))
    save_embeddings(mixed, path)
    order = jnp.asarray([2, 3, 0])
    np.testing.assert_array_equal(np.load(path), mixed.rows.embeddings()[order])
    rows = np.arange(6.0).reshape(3, 2)
    save_embeddings(rows, str(path))
    np.testing.assert_array_equal(np.load(path), rows)
    with pytest.raises(ValueError, match=r"not 0, 1, 2\.\.\.: write a \.safetensors"):
        save_embeddings(index(), path)
    with pytest.raises(ValueError, match=r"`path` ends in '\.txt'"):
        save_embeddings(index(), tmp_path / "corpus.txt")
    assert [p.name for p in tmp_path.iterdir()] == ["corpus.npy"]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.int8])
def test_faiss_finds_what_search_does(dtype):
    pytest.importorskip("faiss")
    ids = np.random.default_rng(0).permutation(1_000)[:300]
    ids[::7] = -1
    corpus = index(dtype, tuple(ids.tolist()))
    queries = np.asarray(jax.random.normal(jax.random.key(1), (20, 8)))
    scores, found = faiss_index(corpus).search(queries, 10)
    ranked = corpus.search(jnp.asarray(queries), 10)
    np.testing.assert_array_equal(found, ranked.ids)
    np.testing.assert_allclose(scores, ranked.scores, rtol=1e-5, atol=1e-6)
    given = faiss_index(corpus.rows.embeddings())
    np.testing.assert_allclose(given.reconstruct(4), corpus.rows.embeddings()[4])


def test_faiss_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ImportError, match="pip install faiss-cpu"):
        faiss_index(index())


@pytest.fixture
def source(tmp_path):
    """A folder with a tokenizer, as models are loaded from."""
    pytest.importorskip("safetensors")
    prompts = {"prompts": {"query": "query: "}}
    files = {
        "config.json": config(),
        "sentence_bert_config.json": {"max_seq_length": 6},
        "config_sentence_transformers.json": prompts,
    }
    return write_tokenizer(write(tmp_path / "source", files))


@pytest.mark.one_case("False-cls")
@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("is_normalized", [True, False])
def test_an_encoder_comes_back_bit_by_bit(tmp_path, source, pooling, is_normalized):
    bert = tiny(
        pooling=pooling,
        is_normalized=is_normalized,
        padding=1,
        epsilon=1e-7,
        dropout=eqx.nn.Dropout(0.1),
    )
    save_sentence_transformer(bert, source, tmp_path / "deep" / "saved")
    found = Bert.load(tmp_path / "deep" / "saved", dropout=0.1)
    assert eqx.tree_equal(found, bert)
    embedded = eqx.filter_jit(lambda bert: bert(tokens()))
    np.testing.assert_array_equal(embedded(found), embedded(bert))
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["saved"]
    said = json.loads((tmp_path / "deep" / "saved" / "config.json").read_text())
    assert said["vocab_size"] == len(WORDS)
    assert said["hidden_dropout_prob"] == 0.1


def test_its_tokenizer_and_prompts_come_along(tmp_path, source):
    save_sentence_transformer(tiny(), source, tmp_path / "saved")
    found = Tokenizer.load(tmp_path / "saved")
    np.testing.assert_array_equal(found(["a b"]), Tokenizer.load(source)(["a b"]))
    prompts = json.loads(
        (tmp_path / "saved" / "config_sentence_transformers.json").read_text()
    )
    assert prompts == {"prompts": {"query": "query: "}}
    # What was saved is a source in its turn.
    save_sentence_transformer(tiny(), tmp_path / "saved", tmp_path / "again")
    for path in (tmp_path / "saved").rglob("*.*"):
        again = tmp_path / "again" / path.relative_to(tmp_path / "saved")
        assert again.read_bytes() == path.read_bytes()


def test_a_folder_is_written_whole_or_not_at_all(tmp_path, source):
    target = tmp_path / "target"
    (source / "tokenizer.json").rename(source / "kept.json")
    with pytest.raises(FileNotFoundError, match=r"has no tokenizer\.json: pass"):
        save_sentence_transformer(tiny(), source, target)
    assert [p.name for p in tmp_path.iterdir()] == ["source"]
    (source / "kept.json").rename(source / "tokenizer.json")
    target.mkdir()
    save_sentence_transformer(tiny(), source, target)
    with pytest.raises(FileExistsError, match="is there already: pass another"):
        save_sentence_transformer(tiny(), source, target)


@pytest.mark.slow
def test_minilm_comes_back(tmp_path):
    pytest.importorskip("safetensors")
    pytest.importorskip("tokenizers")
    bert = Bert.load(minilm())
    save_sentence_transformer(bert, minilm(), tmp_path / "saved")
    again = Bert.load(tmp_path / "saved")
    assert eqx.tree_equal(again, bert)


def test_sentence_transformers_scores_the_same(tmp_path):
    library = pytest.importorskip("sentence_transformers")
    bert = Bert.load(minilm())
    folder = tmp_path / "saved"
    save_sentence_transformer(bert, minilm(), folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = library.SentenceTransformer(str(folder), device="cpu")
        found = theirs.encode(list(SENTENCES))
    np.testing.assert_allclose(found @ found.T, SIMILARITIES, atol=6e-5)
    ours = bert(Tokenizer.load(folder, length=32)(SENTENCES))
    np.testing.assert_allclose(found, ours, atol=1e-5)


def test_triples_are_lines(tmp_path):
    path = tmp_path / "mined.jsonl"
    save_triples(path, ["q", "été"], ["p", "o"], [["n", "m"], []])
    lines = [json.loads(x) for x in path.read_text(encoding="utf-8").splitlines()]
    assert lines == [
        {"query": "q", "positive": "p", "negatives": ["n", "m"]},
        {"query": "été", "positive": "o", "negatives": []},
    ]
    before = path.read_bytes()
    with pytest.raises(TypeError):
        save_triples(path, ["q", "r"], ["p", object()], [[], []])
    with pytest.raises(ValueError, match="there are 1 `queries`, 2 `positives` and 0"):
        save_triples(path, ["q"], ["p", "o"], [])
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["mined.jsonl"]
