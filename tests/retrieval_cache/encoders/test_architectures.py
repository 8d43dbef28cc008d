"""Other encoders than BERT, prompts, and layers of embeddings, against PyTorch's."""

import json
import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from effgen import retrieval_cache as rc
from effgen.retrieval_cache.encoders.architectures import ARCHITECTURES
from effgen.retrieval_cache.encoders.bert import Bert, Dense, named_tensors
from effgen.retrieval_cache.encoders.sequences import by_distance
from effgen.retrieval_cache.encoders.tokenizer import Tokenizer
from effgen.retrieval_cache.search.export import save_sentence_transformer
from tests.retrieval_cache.pretrained import (
    LENGTH,
    WORDS,
    config,
    tiny,
    tokens,
    write,
    write_tokenizer,
)


def bag():
    return rc.HashedBag(9, 4, 4, key=jax.random.key(0))


@eqx.filter_jit
def embedded(bert, rows):
    return bert(rows)


def renamed(kind, bert):
    """Return the tensors of a BERT under another encoder's names, and its config."""
    own = ARCHITECTURES[kind]
    found = named_tensors(bert)
    if not own.has_types:
        del found["embeddings.token_type_embeddings.weight"]
    if own.is_shifted:
        places = found["embeddings.position_embeddings.weight"]
        behind = jnp.full((2, places.shape[1]), 9.0)
        found["embeddings.position_embeddings.weight"] = jnp.concatenate(
            [behind, places]
        )
    for theirs, usual in own.parts.items():
        found = {name.replace(usual, theirs): x for name, x in found.items()}
    said = config(model_type=kind, max_position_embeddings=LENGTH + 2 * own.is_shifted)
    if kind == "distilbert":
        names = {"hidden_size": "dim", "num_hidden_layers": "n_layers"}
        names |= {"num_attention_heads": "n_heads", "intermediate_size": "hidden_dim"}
        said = {names.get(name, name): x for name, x in said.items()}
    return {own.prefix + name: x for name, x in found.items()}, said


@pytest.mark.parametrize(
    "kind",
    ["distilbert", "roberta", pytest.param("xlm-roberta", marks=pytest.mark.slow)],
)
def test_a_bert_under_other_names_is_the_same(tmp_path, kind):
    own = ARCHITECTURES[kind]
    bert = tiny(is_normalized=False, padding=own.usual["pad_token_id"])
    if not own.has_types:
        bert = eqx.tree_at(lambda b: b.types, bert, jnp.zeros((1, 16)))
    arrays, said = renamed(kind, bert)
    write(tmp_path, {"config.json": said}, arrays)
    found = Bert.load(tmp_path)
    rows = np.where(tokens() == 0, bert.padding, tokens() + 1)
    rows = np.minimum(rows, len(WORDS) - 1)
    np.testing.assert_array_equal(embedded(found, rows), embedded(bert, rows))
    assert found.padding == bert.padding
    assert len(found.places) == LENGTH
    write_tokenizer(tmp_path)
    assert Tokenizer.load(tmp_path).length == LENGTH
    assert Tokenizer.load(tmp_path).padding == bert.padding


def test_distances_are_told_apart_as_mpnet_does():
    relative = jnp.arange(32.0)[:, None]
    found = by_distance(relative, 300, jnp.float32)[0, 0]
    # From token 150: each distance up to 7 its own, then wider, 15 at most on a side.
    assert found[150, 143:158].tolist() == [7, 6, 5, 4, 3, 2, 1, 0, *range(17, 24)]
    assert found[150, 142] == 8
    assert found[150, 158] == 24
    assert found[150, 0] == 15
    assert found[150, 299] == 31
    assert bool(jnp.all(jnp.diff(found[150, :151]) <= 0))


@pytest.mark.one_case("False-tanh")
@pytest.mark.parametrize("activation", ["identity", "tanh"])
@pytest.mark.parametrize("is_normalized", [True, False])
def test_layers_of_embeddings_come_back(tmp_path, activation, is_normalized):
    pytest.importorskip("safetensors")
    source = write_tokenizer(write(tmp_path / "source", {"config.json": config()}))
    keys = jax.random.split(jax.random.key(3), 3)
    layers = (
        Dense(jax.random.normal(keys[0], (10, 16)), None, "identity"),
        Dense(jax.random.normal(keys[1], (6, 10)), jnp.ones(6), activation),
    )
    bert = tiny(dense=layers, is_normalized=is_normalized)
    plain = embedded(tiny(is_normalized=False), tokens())
    wanted = plain @ layers[0].weight.T @ layers[1].weight.T + 1
    wanted = jnp.tanh(wanted) if activation == "tanh" else wanted
    wanted = rc.normalized(wanted) if is_normalized else wanted
    np.testing.assert_allclose(embedded(bert, tokens()), wanted, rtol=1e-4, atol=1e-6)
    model = rc.TwoTowers.tied(rc.Bucketed(bert))
    save_sentence_transformer(model, source, tmp_path / "saved")
    found = Bert.load(tmp_path / "saved")
    assert eqx.tree_equal(found, bert)
    path = tmp_path / "saved" / "2_Dense" / "config.json"
    said = json.loads(path.read_text())
    path.write_text(json.dumps(said | {"activation_function": "torch.nn.ReLU"}))
    with pytest.raises(ValueError, match=r"activation torch\.nn\.ReLU"):
        Bert.load(tmp_path / "saved")


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (bag, TypeError, "is a HashedBag"),
        (lambda: rc.TwoTowers.tied(bag()), TypeError, "is a HashedBag"),
        (
            lambda: rc.Transformer(
                9, 4, width=4, num_heads=1, size=4, key=jax.random.key(0)
            ),
            TypeError,
            r"is a Transformer.*`save_embeddings`.*`Bert\.random",
        ),
        (lambda: rc.Bucketed(bag()), TypeError, "is a HashedBag"),
        (lambda: rc.TwoTowers(tiny(), tiny()), TypeError, "is two towers"),
        (lambda: tiny(relative=jnp.zeros((32, 4))), ValueError, "is an MPNet"),
    ],
)
def test_what_cannot_be_written_is_named(tmp_path, make, error, message):
    with pytest.raises(error, match=message):
        save_sentence_transformer(make(), tmp_path, tmp_path / "saved")


def test_a_folder_s_prompts_go_before_texts(tmp_path):
    said = {"prompts": {"query": "query : ", "document": ""}}
    files = {"config.json": config(), "config_sentence_transformers.json": said}
    folder = write_tokenizer(write(tmp_path / "a", files))
    plain, asked = Tokenizer.load(folder), Tokenizer.load(folder, prompt="query")
    assert plain.prompts == {"query": "query : "}
    np.testing.assert_array_equal(asked(["a b"]), plain(["query : a b"]))
    np.testing.assert_array_equal(asked(["a b"], prompt=""), plain(["a b"]))
    with pytest.raises(ValueError, match=r"`prompt` is 'passage' and .* \['query'\]"):
        Tokenizer.load(folder, prompt="passage")
    files["config_sentence_transformers.json"] = said | {"default_prompt_name": "query"}
    default = Tokenizer.load(write_tokenizer(write(tmp_path / "b", files)))
    np.testing.assert_array_equal(default(["a b"]), asked(["a b"]))


MODELS = {
    "distilbert": (
        "DistilBert",
        {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48},
    ),
    "mpnet": ("MPNet", {}),
    "roberta": ("Roberta", {"type_vocab_size": 1}),
    "xlm-roberta": ("XLMRoberta", {"type_vocab_size": 1}),
}


@pytest.mark.parametrize("kind", MODELS)
def test_small_random_models_are_those_of_transformers(tmp_path, kind):
    torch = pytest.importorskip("torch")
    library = pytest.importorskip("transformers")
    name, sizes = MODELS[kind]
    if kind != "distilbert":
        sizes = sizes | {"hidden_size": 32, "num_hidden_layers": 2}
        sizes = sizes | {"num_attention_heads": 4, "intermediate_size": 48}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        made = getattr(library, f"{name}Config")(
            vocab_size=90, initializer_range=0.4, **sizes
        )
        theirs = getattr(library, f"{name}Model")(made).eval()
        theirs.save_pretrained(tmp_path)
    rows = np.random.default_rng(0).integers(4, 90, (4, 150))
    there = np.arange(150)[None] < np.array([150, 3, 40, 100])[:, None]
    rows = np.where(there, rows, made.pad_token_id)
    with torch.no_grad():
        given = torch.tensor(rows), torch.tensor(there.astype(int))
        last = theirs(*given).last_hidden_state.double().numpy()
    wanted = (last * there[..., None]).sum(axis=1) / there.sum(axis=1)[:, None]
    np.testing.assert_allclose(
        Bert.load(tmp_path)(jnp.asarray(rows)), wanted, atol=1e-5
    )
