"""ModernBERT and folders with a Router, against a plain computation in float64."""

import dataclasses
import functools
import json
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf

from effgen import retrieval_cache as rc
from effgen.retrieval_cache.encoders.layers import Affine, Dense
from effgen.retrieval_cache.encoders.modern_bert import (
    GatedLayers,
    ModernBert,
    modern_tensors,
)
from effgen.retrieval_cache.search.export import save_sentence_transformer
from tests.retrieval_cache.pretrained import (
    WORDS,
    chain,
    config,
    tokens,
    write,
    write_tokenizer,
)


WIDTH, HEADS, INNER, DEPTH, LENGTH = 16, 2, 12, 4, 12


def drawn(rng, *shape):
    return jnp.asarray(rng.normal(size=shape), jnp.float32)


@functools.cache
def moved():
    """Return a small ModernBERT whose layers are local but for the first and last."""
    rng = np.random.default_rng(0)
    affine = lambda *shape: Affine(0.4 * drawn(rng, DEPTH, *shape))
    layers = GatedLayers(
        affine(WIDTH),
        affine(3 * WIDTH, WIDTH),
        affine(WIDTH, WIDTH),
        affine(WIDTH),
        affine(2 * INNER, WIDTH),
        affine(WIDTH, INNER),
    )
    layers = eqx.tree_at(lambda x: x.norm.weight, layers, replace_fn=_first_unread)
    return ModernBert(
        drawn(rng, len(WORDS), WIDTH),
        Affine(drawn(rng, WIDTH)),
        layers,
        Affine(drawn(rng, WIDTH)),
        dropout=eqx.nn.Dropout(0.0),
        num_heads=HEADS,
        local=(False, True, True, False),
        reach=2,
        bases=(160_000.0, 10.0),
        length=LENGTH,
        padding=0,
    )


def _first_unread(weight):
    return weight.at[0].set(1.0)


def said(**changes):
    """Return the `config.json` of `moved`."""
    kinds = ["full_attention", *2 * ["sliding_attention"], "full_attention"]
    turns = {kinds[0]: {"rope_theta": 160_000.0}, kinds[1]: {"rope_theta": 10.0}}
    return {
        "model_type": "modernbert",
        "vocab_size": len(WORDS),
        "max_position_embeddings": LENGTH,
        "hidden_size": WIDTH,
        "num_hidden_layers": DEPTH,
        "num_attention_heads": HEADS,
        "intermediate_size": INNER,
        "layer_types": kinds,
        "local_attention": 5,
        "rope_parameters": turns,
        "pad_token_id": 0,
    } | changes


def plain(bert, row):
    """Return one text's embedding, token by token, with turns as complex numbers."""
    named = {k: np.asarray(x, np.float64) for k, x in modern_tensors(bert).items()}
    row = row[row != bert.padding]
    places, half = np.arange(len(row)), WIDTH // HEADS // 2

    def norm(x, weight):
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5) * weight

    def turned(x, base):
        rates = base ** (-np.arange(half) / half)
        z = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * places[:, None] * rates)
        return np.concatenate([z.real, z.imag], -1)

    x = norm(
        named["embeddings.tok_embeddings.weight"][row], named["embeddings.norm.weight"]
    )
    for i, is_local in enumerate(bert.local):
        own = {k.removeprefix(f"layers.{i}."): v for k, v in named.items()}
        y = norm(x, own["attn_norm.weight"]) if i else x
        base = bert.bases[is_local]
        out = np.zeros_like(x)
        for head in range(HEADS):
            parts = (y @ own["attn.Wqkv.weight"].T).reshape(len(row), 3, HEADS, -1)
            query, key, value = parts[:, :, head].swapaxes(0, 1)
            scores = turned(query, base) @ turned(key, base).T / np.sqrt(2 * half)
            far = np.abs(places[:, None] - places) > bert.reach
            scores = np.where(is_local & far, -np.inf, scores)
            share = np.exp(scores - scores.max(1, keepdims=True))
            share /= share.sum(1, keepdims=True)
            out[:, head * 2 * half : (head + 1) * 2 * half] = share @ value
        x = x + out @ own["attn.Wo.weight"].T
        units, gates = np.split(
            norm(x, own["mlp_norm.weight"]) @ own["mlp.Wi.weight"].T, 2, axis=-1
        )
        units = units * (1 + erf(units / np.sqrt(2))) / 2
        x = x + (units * gates) @ own["mlp.Wo.weight"].T
    x = norm(x, named["final_norm.weight"])
    x = x.mean(0) if bert.pooling == "mean" else x[0]
    return x / np.linalg.norm(x) if bert.is_normalized else x


@eqx.filter_jit
def embedded(bert, rows):
    return bert(rows)


@pytest.mark.parametrize(
    ("pooling", "is_normalized"), [("mean", False), ("cls", False), ("mean", True)]
)
def test_embeddings_are_those_of_a_plain_one(pooling, is_normalized):
    bert = dataclasses.replace(moved(), pooling=pooling, is_normalized=is_normalized)
    rows = tokens(num=6, length=LENGTH)
    wanted = [plain(bert, row) for row in rows]
    np.testing.assert_allclose(embedded(bert, rows), wanted, rtol=1e-4, atol=2e-5)
    found = embedded(rc.Bucketed(bert, chunk=2), rows)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=2e-5)


def test_no_layer_computed_twice_changes_a_gradient():
    rows = tokens(num=3, length=LENGTH)

    @eqx.filter_jit
    def slopes(bert):
        loss = lambda bert: jnp.sum(bert(rows)[:, :3])
        return eqx.filter_grad(loss)(bert)

    found = slopes(moved())
    again = slopes(dataclasses.replace(moved(), recompute=True))
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(again), strict=True)
    for a, b in pairs:
        assert bool(jnp.all(jnp.isfinite(a)))
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)
    # The first layer has no norm before its attention.
    np.testing.assert_array_equal(found.layers.norm.weight[0], 0)


def folder_of(folder, **changes):
    arrays = modern_tensors(moved())
    return write_tokenizer(write(folder, {"config.json": said(**changes)}, arrays))


@pytest.mark.parametrize("prefix", ["", "model."])
def test_a_folder_is_read_and_written(tmp_path, prefix):
    pytest.importorskip("safetensors")
    arrays = {prefix + name: x for name, x in modern_tensors(moved()).items()}
    arrays["head.dense.weight"] = jnp.ones((2, 2))
    files = {"config.json": said()}
    source = write_tokenizer(write(tmp_path / "source", files, arrays))
    bert = ModernBert.load(source)
    assert eqx.tree_equal(bert, dataclasses.replace(moved(), is_normalized=False))
    layer = Dense(jnp.ones((3, WIDTH)), None, "tanh")
    bert = dataclasses.replace(bert, is_normalized=True, dense=(layer,), pooling="cls")
    save_sentence_transformer(rc.TwoTowers.tied(bert), source, tmp_path / "saved")
    assert eqx.tree_equal(ModernBert.load(tmp_path / "saved"), bert)
    assert rc.Tokenizer.load(tmp_path / "saved").length == LENGTH


def test_older_settings_say_the_same(tmp_path):
    older = {"layer_types": None, "rope_parameters": None, "local_rope_theta": 10.0}
    found = ModernBert.load(folder_of(tmp_path, **older))
    assert eqx.tree_equal(found, dataclasses.replace(moved(), is_normalized=False))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"norm_bias": True}, "`norm_bias` is True, and a `ModernBert` is False"),
        ({"hidden_activation": "relu"}, "is 'relu'"),
        ({"vocab_size": 9}, "has shape"),
        ({"num_hidden_layers": 3, "layer_types": None}, "also has 6 tensors"),
        (
            {"rope_parameters": {"full_attention": {"rope_type": "yarn"}}},
            "`rope_type` 'yarn'",
        ),
    ],
)
def test_other_encoders_are_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        ModernBert.load(folder_of(tmp_path, **changes))


def test_each_kind_names_who_reads_it(tmp_path):
    with pytest.raises(ValueError, match=r"'modernbert': load it by `ModernBert\.load"):
        rc.Bert.load(folder_of(tmp_path / "modern"))
    write(tmp_path / "bert", {"config.json": config()})
    with pytest.raises(ValueError, match=r"'bert': load it by `Bert\.load"):
        ModernBert.load(tmp_path / "bert")
    with pytest.raises(ValueError, match="odd"):
        dataclasses.replace(moved(), num_heads=WIDTH)
    with pytest.raises(ValueError, match="length 12 at most"):
        moved()(jnp.ones((1, 13), jnp.int32))


def routed(folder, *after):
    """Write a Router of a ModernBERT for queries and a BERT for documents."""
    pytest.importorskip("safetensors")
    modules = {
        "query_0_Transformer": "sentence_transformers.models.Transformer",
        "query_1_Pooling": "sentence_transformers.models.Pooling",
        "document_0_Transformer": "sentence_transformers.models.Transformer",
        "document_1_Pooling": "sentence_transformers.models.Pooling",
        "document_2_Normalize": "sentence_transformers.models.Normalize",
    }
    structure = {
        "query": [name for name in modules if name.startswith("query")],
        "document": [name for name in modules if name.startswith("document")],
    }
    entries = chain("Router", *after)
    entries[0]["path"] = ""
    folder = Path(folder)
    folder_of(folder / "query_0_Transformer")
    write_tokenizer(write(folder / "document_0_Transformer", {"config.json": config()}))
    files = {
        "modules.json": entries,
        "router_config.json": {"types": modules, "structure": structure},
        "query_1_Pooling/config.json": {"pooling_mode": "cls"},
        "document_1_Pooling/config.json": {"pooling_mode": "mean"},
    }
    for name, value in files.items():
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).write_text(json.dumps(value))
    return folder


def test_each_route_of_a_router_is_read(tmp_path):
    folder = routed(tmp_path)
    query = ModernBert.load(folder, route="query")
    document = rc.Bert.load(folder, route="document")
    assert (query.pooling, query.is_normalized) == ("cls", False)
    assert (document.pooling, document.is_normalized) == ("mean", True)
    assert rc.Tokenizer.load(folder, route="query", length=7)(["a"]).shape == (1, 7)
    save_sentence_transformer(query, folder, tmp_path / "saved", route="query")
    assert eqx.tree_equal(ModernBert.load(tmp_path / "saved"), query)


def test_what_follows_a_router_is_of_every_route(tmp_path):
    folder = routed(tmp_path, "Normalize")
    assert ModernBert.load(folder, route="query").is_normalized
    assert rc.Bert.load(folder, route="document").is_normalized


def test_unknown_routes_are_named(tmp_path):
    folder = routed(tmp_path / "router")
    for load in (ModernBert.load, rc.Bert.load, rc.Tokenizer.load):
        with pytest.raises(ValueError, match="pass 'query' or 'document'"):
            load(folder)
        with pytest.raises(ValueError, match="`route` is 'answer'"):
            load(folder, route="answer")
    own = folder_of(tmp_path / "one")
    (own / "modules.json").write_text(json.dumps(chain("Transformer", "Pooling")))
    with pytest.raises(ValueError, match="has no Router: leave `route` out"):
        rc.Tokenizer.load(own, route="query")
