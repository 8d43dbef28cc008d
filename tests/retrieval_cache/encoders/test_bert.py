"""A BERT against a plain one in NumPy, its folders, and its tokenizer."""

import dataclasses
import sys
from types import SimpleNamespace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.special import erf

from effgen import retrieval_cache as rc
from effgen.retrieval_cache.encoders.bert import Bert, named_tensors
from effgen.retrieval_cache.encoders.tokenizer import Tokenizer
from effgen.retrieval_cache.encoders.towers import is_random
from tests.retrieval_cache.pretrained import (
    LENGTH,
    SENTENCES,
    SIMILARITIES,
    WORDS,
    chain,
    config,
    minilm,
    tiny,
    tokens,
    write,
    write_tokenizer,
)


@eqx.filter_jit
def embedded(bert, rows, key=None):
    return bert(rows, key=key)


POOLINGS = [("mean", True), ("cls", False)]
OTHERS = [("cls", True), ("mean", False)]


def plain(found, row, num_heads, pooling):
    """Return the embedding of one sequence without padding, step by step."""

    def dense(x, name):
        return x @ found[f"{name}.weight"].T + found[f"{name}.bias"]

    def normed(x, name):
        x = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-12)
        return x * found[f"{name}.weight"][None] + found[f"{name}.bias"][None]

    def heads(x, name):
        return np.split(dense(x, name), num_heads, axis=1)

    x = found["embeddings.word_embeddings.weight"][row]
    x = x + found["embeddings.position_embeddings.weight"][: len(row)]
    x = x + found["embeddings.token_type_embeddings.weight"][:1]
    x = normed(x, "embeddings.LayerNorm")
    for i in range(2):
        at = f"encoder.layer.{i}"
        read = []
        names = (f"{at}.attention.self.{n}" for n in ("query", "key", "value"))
        for query, key, value in zip(*(heads(x, n) for n in names), strict=True):
            weights = np.exp(query @ key.T / np.sqrt(query.shape[1]))
            read.append(weights / weights.sum(1, keepdims=True) @ value)
        y = dense(np.concatenate(read, axis=1), f"{at}.attention.output.dense")
        x = normed(x + y, f"{at}.attention.output.LayerNorm")
        y = dense(x, f"{at}.intermediate.dense")
        y = dense(y * (1 + erf(y / np.sqrt(2))) / 2, f"{at}.output.dense")
        x = normed(x + y, f"{at}.output.LayerNorm")
    return x.mean(0) if pooling == "mean" else x[0]


@pytest.mark.parametrize(
    ("pooling", "is_normalized"),
    [*POOLINGS, *(pytest.param(*other, marks=pytest.mark.slow) for other in OTHERS)],
)
def test_embeddings_are_those_of_a_plain_one(pooling, is_normalized):
    bert = tiny(pooling=pooling, is_normalized=is_normalized)
    found = {k: np.asarray(x, np.float64) for k, x in named_tensors(bert).items()}
    rows = [row[row > 0] for row in tokens()]
    expected = np.stack([plain(found, row, 4, pooling) for row in rows])
    if is_normalized:
        expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    found = embedded(bert, tokens())
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-6)
    with jax.enable_x64(True):
        wide = lambda x: x.astype(jnp.float64) if eqx.is_array(x) else x
        double = dataclasses.replace(jax.tree.map(wide, bert), compute=jnp.float64)
        away = np.linalg.norm(embedded(double, tokens()) - expected, axis=1)
        # Not 1e-12, as `jax.nn.dot_product_attention` takes its softmax in float32.
        assert np.max(away / np.linalg.norm(expected, axis=1)) < 2e-7


def test_padding_changes_nothing():
    bert, rows = tiny(), tokens(length=9)
    longer = np.pad(rows, ((0, 2), (0, 3)))
    found = embedded(bert, longer.astype(np.uint16))
    np.testing.assert_allclose(found[:-2], embedded(bert, rows), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(found[-2:], 0)  # a text without a token
    other = dataclasses.replace(bert, padding=len(WORDS) - 1)
    moved = np.where(
        rows == 0, len(WORDS) - 1, np.where(rows == len(WORDS) - 1, 1, rows)
    )
    same = np.where(rows == len(WORDS) - 1, 1, rows)
    expected = embedded(bert, same)
    np.testing.assert_allclose(embedded(other, moved), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.one_case("True")
@pytest.mark.parametrize("recompute", [False, True])
def test_every_parameter_that_matters_has_a_gradient(recompute):
    bert, rows = tiny(recompute=recompute), tokens()
    direction = jax.random.normal(jax.random.key(2), (len(rows), 16))
    loss = lambda bert, rows: jnp.sum(bert(rows) * direction)
    gradients = eqx.filter_jit(eqx.filter_grad(loss))(bert, rows)
    found = named_tensors(gradients)
    for name, gradient in found.items():
        assert jnp.all(jnp.isfinite(gradient)), name
        if name.endswith("self.key.bias"):
            # A softmax does not see what is added to all of its numbers.
            np.testing.assert_allclose(gradient, 0, atol=1e-5)
        else:
            assert jnp.max(jnp.abs(gradient)) > 1e-4, name
    used = np.isin(np.arange(len(WORDS)), rows[rows > 0])
    moves = jnp.any(found["embeddings.word_embeddings.weight"] != 0, axis=1)
    np.testing.assert_array_equal(moves, used)
    plainly = eqx.filter_jit(eqx.filter_grad(loss))(tiny(), rows)
    same = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    jax.tree.map(same, jax.tree.leaves(gradients), jax.tree.leaves(plainly))


@pytest.mark.slow
def test_it_learns_and_leaves_its_numbers_as_they_are():
    bert, rows = tiny(dropout=eqx.nn.Dropout(0.1)), tokens(8)
    target = jax.nn.one_hot(jnp.arange(8), 16)
    optim = optax.adam(3e-3)

    def loss(bert, key):
        return -jnp.mean(jnp.sum(bert(rows, key=key) * target, axis=1))

    @eqx.filter_jit
    def step(bert, opt_state, key):
        gradients = eqx.filter_grad(loss)(bert, key)
        updates, opt_state = optim.update(gradients, opt_state)
        return eqx.apply_updates(bert, updates), opt_state

    value = eqx.filter_jit(loss)
    before, opt_state = value(bert, None), optim.init(eqx.filter(bert, eqx.is_array))
    for key in jax.random.split(jax.random.key(3), 30):
        bert, opt_state = step(bert, opt_state, key)
    assert value(bert, None) < before - 0.2
    assert bert.dropout.p == 0.1


def test_bfloat16_is_close():
    bert, rows = tiny(), tokens()
    found = embedded(dataclasses.replace(bert, compute=jnp.bfloat16), rows)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(
        jnp.sum(found * embedded(bert, rows), axis=1), 1, atol=2e-3
    )
    np.testing.assert_allclose(jnp.linalg.norm(found, axis=1), 1, rtol=1e-5)


def test_dropout_is_for_training_alone():
    rows, keys = tokens(), jax.random.split(jax.random.key(0))
    still, shaken = tiny(), tiny(dropout=eqx.nn.Dropout(0.2))
    np.testing.assert_array_equal(embedded(still, rows, keys[0]), embedded(still, rows))
    np.testing.assert_array_equal(embedded(shaken, rows), embedded(still, rows))
    found = [embedded(shaken, rows, key) for key in keys]
    assert jnp.max(jnp.abs(found[0] - found[1])) > 1e-3
    np.testing.assert_array_equal(found[0], embedded(shaken, rows, keys[0]))
    quiet = eqx.nn.inference_mode(shaken)
    np.testing.assert_array_equal(embedded(quiet, rows, keys[0]), embedded(still, rows))
    assert [is_random(b, b) for b in (still, shaken, quiet)] == [False, True, False]


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match=r"`tokens` have shape \(2, 13\).*12 at most"):
        tiny()(np.ones((2, LENGTH + 1), int))
    with pytest.raises(ValueError, match=r"pass `\(batch, length\)`"):
        tiny()(np.ones(3, int))
    with pytest.raises(ValueError, match="`pooling` is 'max'"):
        tiny(pooling="max")
    with pytest.raises(ValueError, match="`num_heads` is 3, which does not divide"):
        tiny(num_heads=3)


def test_a_folder_of_hugging_face_is_a_mean(tmp_path):
    found = Bert.load(write(tmp_path, {"config.json": config()}))
    bert = tiny(is_normalized=False)
    assert eqx.tree_equal(found, bert)


MODES = [
    ({"pooling_mode": "cls", "embedding_dimension": 16}, "cls"),
    ({"pooling_mode": ["mean"]}, "mean"),
    ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
    ({"word_embedding_dimension": 16}, "mean"),
]


@pytest.mark.parametrize(("pooling", "mode"), MODES)
def test_a_folder_says_its_pooling(tmp_path, pooling, mode):
    files = {
        "config.json": config(layer_norm_eps=1e-6, pad_token_id=1),
        "modules.json": chain("Transformer", "Pooling", "Normalize", origin="a.b"),
        "1_Pooling/config.json": pooling,
    }
    found = Bert.load(write(tmp_path, files), compute=jnp.bfloat16, dropout=0.5)
    changes = {"compute": jnp.bfloat16, "dropout": eqx.nn.Dropout(0.5)}
    assert eqx.tree_equal(found, tiny(pooling=mode, epsilon=1e-6, padding=1, **changes))


def test_names_of_other_checkpoints_are_known(tmp_path):
    def other(name):
        old = name.replace("Norm.weight", "Norm.gamma").replace(
            "Norm.bias", "Norm.beta"
        )
        return f"bert.{old}"

    tensors = {other(name): x for name, x in named_tensors(tiny()).items()}
    tensors["bert.embeddings.position_ids"] = jnp.arange(LENGTH)
    tensors["bert.pooler.dense.weight"] = tensors["cls.predictions.bias"] = jnp.ones(3)
    files = {
        "0_Transformer/config.json": config(),
        "modules.json": chain("Transformer", "Pooling"),
        "1_Pooling/config.json": {},
    }
    files["modules.json"][0]["path"] = "0_Transformer"
    write(tmp_path, files)
    write(tmp_path / "0_Transformer", {}, tensors)
    assert eqx.tree_equal(Bert.load(tmp_path), tiny(is_normalized=False))


def test_half_precision_is_read_as_single(tmp_path):
    half = {name: x.astype(jnp.float16) for name, x in named_tensors(tiny()).items()}
    found = named_tensors(Bert.load(write(tmp_path, {"config.json": config()}, half)))
    for name, x in found.items():
        assert x.dtype == jnp.float32
        np.testing.assert_array_equal(x, half[name].astype(jnp.float32))


REFUSED = [
    ({"model_type": "t5"}, "`model_type` is 't5', and a `Bert` is one of 'bert'"),
    ({"model_type": None}, "`model_type` is None"),
    ({"hidden_act": "gelu_new"}, "`hidden_act` is 'gelu_new'"),
    ({"position_embedding_type": "relative_key"}, "is 'relative_key'.*'absolute'"),
    ({"is_decoder": True}, "`is_decoder` is True"),
    ({"num_attention_heads": 3}, "`num_heads` is 3"),
    ({"num_hidden_layers": 3}, "lacks 16 tensors.*encoder.layer.2"),
    ({"num_hidden_layers": 1}, "also has 16 tensors.*encoder.layer.1"),
    ({"intermediate_size": 32}, r"has shape \(24,.*, and by `config.json` \(32,"),
]


@pytest.mark.parametrize(("changes", "match"), REFUSED)
def test_another_encoder_is_refused(tmp_path, changes, match):
    write(tmp_path, {"config.json": config(**changes)})
    with pytest.raises(ValueError, match=match):
        Bert.load(tmp_path)


CHAINED = [
    ({"modules.json": chain("Transformer", "Pooling", "CNN")}, "Pooling, CNN, and"),
    ({"modules.json": chain("BoW", "Dense")}, "chains BoW, Dense, and"),
    ({"1_Pooling/config.json": {"pooling_mode_max_tokens": True}}, "max_tokens"),
    ({"1_Pooling/config.json": {"pooling_mode": ["cls", "mean"]}}, "'cls', 'mean'"),
    ({"1_Pooling/config.json": {"include_prompt": False}}, "prompts excluded"),
    (
        {"2_Normalize/config.json": {"module_input_name": "token_embeddings"}},
        "other than `sentence_embedding`",
    ),
]


@pytest.mark.parametrize(("changes", "match"), CHAINED)
def test_another_end_is_refused(tmp_path, changes, match):
    files = {
        "config.json": config(),
        "modules.json": chain("Transformer", "Pooling", "Normalize"),
        "1_Pooling/config.json": {"pooling_mode_mean_tokens": True},
    }
    with pytest.raises(ValueError, match=match):
        Bert.load(write(tmp_path, files | changes))


def test_what_is_not_there_is_named(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"config\.json` is not there: pass"):
        Bert.load(tmp_path)
    write(tmp_path, {"config.json": config()})
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "safetensors.numpy", None)
        with pytest.raises(ImportError, match="pip install"):
            Bert.load(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="save the model anew with safetensors"):
        Bert.load(tmp_path)


@pytest.fixture
def folder(tmp_path):
    write(tmp_path, {"config.json": config()})
    return write_tokenizer(tmp_path)


def test_texts_become_rows(folder):
    tokenizer = Tokenizer.load(folder, length=6)
    a, b, c, d, e = (WORDS.index(x) for x in "abcde")
    with pytest.warns(rc.TruncationWarning, match="1 of 4 texts are cut to 6 tokens"):
        found = tokenizer(["a b", "", "a b c d e", "z"])
    assert tokenizer.truncation(["a b", "a b c d e"]) == (6, 1, 2, 1, 11)
    assert tokenizer.truncation(["a b c d e a b c d e"]).tokens == 6
    expected = [
        [2, a, b, 3, 0, 0],
        [2, 3, 0, 0, 0, 0],
        [2, a, b, c, d, 3],
        [2, 1, 3, 0, 0, 0],
    ]
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == np.uint16
    asked = tokenizer(["e"], prompt="query: ")
    np.testing.assert_array_equal(asked, [[2, 4, 5, e, 3, 0]])
    assert tokenizer([]).shape == (0, 6)
    with pytest.raises(TypeError, match="`texts` is one text"):
        tokenizer("a b")


LENGTHS = [
    ({}, LENGTH),
    ({"tokenizer_config.json": {"model_max_length": 10**30}}, LENGTH),
    ({"tokenizer_config.json": {"model_max_length": 8}}, 8),
    ({"sentence_bert_config.json": {"max_seq_length": 100}}, LENGTH),
    (
        {
            "sentence_bert_config.json": {"max_seq_length": 5},
            "tokenizer_config.json": {"model_max_length": 8},
        },
        5,
    ),
]


@pytest.mark.parametrize(("files", "length"), LENGTHS)
def test_a_folder_says_its_length(folder, files, length):
    assert Tokenizer.load(write(folder, files)).length == length


def test_a_folder_says_its_case_and_padding(folder):
    said = {"max_seq_length": 5, "do_lower_case": True}
    changed = config(pad_token_id=7)
    write(folder, {"sentence_bert_config.json": said, "config.json": changed})
    found = Tokenizer.load(folder)(["A"])
    np.testing.assert_array_equal(found, [[2, WORDS.index("a"), 3, 7, 7]])
    with pytest.raises(ValueError, match="`length` is 2, and 2 tokens mark"):
        Tokenizer.load(folder, length=2)


@pytest.mark.parametrize("kind", ["roberta", "distilbert", "xlm-roberta"])
def test_older_folders_say_their_length_and_case(folder, kind):
    said = {"max_seq_length": 5, "do_lower_case": True}
    write(folder, {f"sentence_{kind}_config.json": said})
    found = Tokenizer.load(folder)
    assert (found.length, found.lower) == (5, True)


@pytest.mark.parametrize("name", ["[PAD]", {"content": "[PAD]"}])
def test_a_model_that_masks_another_token_than_pads_is_refused(folder, name):
    write(folder, {"tokenizer_config.json": {"pad_token": name}})
    Tokenizer.load(folder)
    write(folder, {"config.json": config(pad_token_id=7)})
    with pytest.raises(ValueError, match=r"write `pad_token_id` 0 there"):
        Tokenizer.load(folder)


def test_outer_white_space_is_no_text(folder):
    """Tokenizers of bytes, such as RoBERTa's, would have tokens for it."""
    read = []
    tokenizer = Tokenizer.load(folder, length=6)
    whole = tokenizer.tokenizer
    keep = lambda texts: [read.extend(texts), whole.encode_batch_fast(texts)][1]
    library = SimpleNamespace(
        encode_batch_fast=keep, get_vocab_size=whole.get_vocab_size
    )
    tokenizer.tokenizer = library
    tokenizer([" a b\n", "\ta"], prompt=" query: ")
    assert read == ["query:  a b", "query: \ta"]


def test_what_a_tokenizer_needs_is_named(folder, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "tokenizers", None)
        with pytest.raises(ImportError, match="pip install"):
            Tokenizer.load(folder, length=5)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json` is not there"):
        Tokenizer.load(folder, length=5)


def test_large_vocabularies_take_wider_numbers():
    library = pytest.importorskip("tokenizers")
    for num, dtype in ((1 << 16, np.uint16), ((1 << 16) + 1, np.int32)):
        words = {f"w{i}": i for i in range(num)}
        found = library.Tokenizer(library.models.WordLevel(words, unk_token="w0"))
        rows = Tokenizer(found, 2)([f"w{num - 1}"])
        assert rows.dtype == dtype
        np.testing.assert_array_equal(rows, [[num - 1, 0]])


def test_similarities_of_minilm():
    pytest.importorskip("safetensors")
    pytest.importorskip("tokenizers")
    folder = minilm()
    bert = Bert.load(folder)
    tokenizer = Tokenizer.load(folder)
    assert (tokenizer.length, bert.num_heads, bert.words.shape[1]) == (256, 12, 384)
    rows = Tokenizer.load(folder, length=16)(SENTENCES)
    found = np.asarray(embedded(bert, rows))
    np.testing.assert_allclose(found @ found.T, SIMILARITIES, atol=6e-5)
    near = np.asarray(embedded(dataclasses.replace(bert, compute=jnp.bfloat16), rows))
    np.testing.assert_allclose(near @ near.T, SIMILARITIES, atol=2e-2)
