"""What other programs read: embeddings, indices, encoders, and mined negatives.

Files appear under their name once they are whole: what is interrupted leaves none.
"""

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from effgen.core.saving.files import replacing
from effgen.retrieval_cache.encoders.bert import Bert, named_tensors
from effgen.retrieval_cache.encoders.buckets import Bucketed
from effgen.retrieval_cache.encoders.layers import Dense
from effgen.retrieval_cache.encoders.modern_bert import ModernBert, modern_tensors
from effgen.retrieval_cache.encoders.pretrained import (
    Folder,
    encoder_folder,
    safetensors,
)
from effgen.retrieval_cache.encoders.tokenizer import text_settings
from effgen.retrieval_cache.encoders.towers import Tied, TwoTowers

from .index import Index


_TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
    "special_tokens_map.json",
    "added_tokens.json",
)
# Where all of its releases up to 6 find the modules.
_ORIGIN = "sentence_transformers.models"
_PROMPTS = "config_sentence_transformers.json"


def save_embeddings(
    index: Index | Float[Any, "documents size"], path: str | os.PathLike[str]
) -> None:
    """Write the embeddings of documents, in float32.

    Arguments:
        index: An `Index`, or embeddings, `(documents, size)`, whose numbers then are
            those of their rows.
        path: A `.safetensors` file of `embeddings` and `ids`, or a `.npy` file of
            embeddings alone, row by number.

    Raises:
        ValueError: For another ending, embeddings that are not finite or no matrix, or
            for a `.npy` file if the numbers are not `0 .. documents - 1`.
        ImportError: Without safetensors, for its files.
    """
    rows, ids = _documents(index)
    ending = Path(path).suffix
    if ending == ".safetensors":
        module = safetensors("save_embeddings")
        with replacing(path) as temporary:
            module.save_file({"embeddings": rows, "ids": ids}, temporary)
    elif ending == ".npy":
        rows = rows[_order(ids)]
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.save(file, rows)
    else:
        raise ValueError(
            f"`path` ends in {ending!r}: pass one that ends in .safetensors or .npy."
        )


def faiss_index(index: Index | Float[Any, "documents size"]) -> Any:
    """Return an index of faiss that finds what `Index.search` does, by their numbers.

    Arguments:
        index: An `Index`, or embeddings, `(documents, size)`, whose numbers then are
            those of their rows.

    Returns:
        A `faiss.IndexIDMap2` of an `IndexFlatIP`, in float32.

    Raises:
        ImportError: Without faiss; the message has the command that installs it.
        ValueError: For embeddings that are not finite or no matrix.
    """
    try:
        import faiss  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError(
            "`faiss_index` needs faiss: pip install faiss-cpu."
        ) from error
    rows, ids = _documents(index)
    found = faiss.IndexIDMap2(faiss.IndexFlatIP(rows.shape[1]))
    found.add_with_ids(rows, ids)
    return found


def save_sentence_transformer(
    bert: Bert | ModernBert | Tied | Bucketed,
    tokenizer_folder: Folder,
    folder: Folder,
    *,
    route: str | None = None,
) -> None:
    """Write a folder that sentence-transformers, and the encoder's `load`, read.

    A message that a pooler is missing can be ignored: no embedding is made with it.

    Arguments:
        bert: A `Bert` or `ModernBert`, or a model of one for queries and documents,
            `TwoTowers.tied(bert)`, `Bucketed` or not.
        tokenizer_folder: The folder it was loaded from, for its tokenizer, length of
            texts and prompts.
        folder: The path of the folder, which is made, with those above it.
        route: Whose tokenizer, where `tokenizer_folder` has a `Router`.

    Raises:
        TypeError: For another encoder.
        ValueError: For an MPNet, whose attention no BERT has.
        FileExistsError: For a file, or a folder that is not empty.
        FileNotFoundError: Without a tokenizer.
        ImportError: Without safetensors.
    """
    bert = _encoder_of(bert)
    if Path(folder).is_file() or (
        Path(folder).is_dir() and any(Path(folder).iterdir())
    ):
        raise FileExistsError(f"`folder`, {folder}, is there already: pass another.")
    module = safetensors("save_sentence_transformer")
    with replacing(folder) as temporary:
        temporary.mkdir()
        at = encoder_folder(tokenizer_folder, route)
        for name, value in _settings(bert, at).items():
            (temporary / name).parent.mkdir(exist_ok=True)
            _write_json(temporary / name, value)
        _copy_tokenizer(at, temporary)
        if (Path(tokenizer_folder) / _PROMPTS).exists():
            shutil.copyfile(Path(tokenizer_folder) / _PROMPTS, temporary / _PROMPTS)
        named = {k: np.asarray(x, np.float32) for k, x in _tensors(bert).items()}
        # transformers reads no file that does not say this.
        module.save_file(named, temporary / "model.safetensors", {"format": "pt"})
        for i, layer in enumerate(bert.dense):
            arrays = {"linear.weight": layer.weight, "linear.bias": layer.bias}
            arrays = {k: np.asarray(x) for k, x in arrays.items() if x is not None}
            path = temporary / _dense_folder(i) / "model.safetensors"
            module.save_file(arrays, path, {"format": "pt"})


def _tensors(bert: Bert | ModernBert) -> dict[str, Any]:
    return modern_tensors(bert) if isinstance(bert, ModernBert) else named_tensors(bert)


def _encoder_of(model: Any) -> Bert | ModernBert:
    """Return the one encoder of a model."""
    bert = model
    while isinstance(bert, Tied | Bucketed):
        bert = bert.encoder
    if isinstance(model, TwoTowers):
        raise TypeError(
            "`bert` is two towers, and a folder is of one encoder: write `model.query` "
            "and `model.document` to a folder each."
        )
    if isinstance(bert, ModernBert):
        return bert
    if not isinstance(bert, Bert):
        raise TypeError(
            f"`bert` is a {type(bert).__name__}, which sentence-transformers has no "
            "module for: write what it makes by `save_embeddings`, or train a `Bert`, "
            "such as `Bert.random(...)`, which can be written."
        )
    if bert.relative is not None:
        raise ValueError(
            "`bert` is an MPNet, whose attention no BERT has: it cannot be written as "
            "one. Write what it makes by `save_embeddings`."
        )
    return bert


def _dense_folder(i: int) -> str:
    return f"{i + 2}_Dense"


def save_triples(
    path: str | os.PathLike[str],
    queries: Sequence[str],
    positives: Sequence[str],
    negatives: Sequence[Sequence[str]],
) -> None:
    """Write mined negatives, a line of JSON for each query.

        {"query": "...", "positive": "...", "negatives": ["...", "..."]}

    With `ids` from `mined`, `negatives` is
    `[[texts[i] for i in row if i >= 0] for row in ids]`.

    Arguments:
        path: The file to write.
        queries: Texts.
        positives: A text that answers each.
        negatives: Texts that do not, a list for each query.

    Raises:
        TypeError: For values that are no texts.
        ValueError: For different numbers of queries, positives and negatives.
    """
    if not len(queries) == len(positives) == len(negatives):
        raise ValueError(
            f"there are {len(queries)} `queries`, {len(positives)} `positives` and "
            f"{len(negatives)} `negatives`: pass one of each a query."
        )
    for name, texts in (("queries", queries), ("positives", positives)):
        _check_texts(name, texts)
    for row in negatives:
        _check_texts("negatives", row)
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for query, positive, rest in zip(queries, positives, negatives, strict=True):
            line = {"query": query, "positive": positive, "negatives": list(rest)}
            print(json.dumps(line, ensure_ascii=False), file=file)


def _check_texts(name: str, texts: Any) -> None:
    if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
        raise TypeError(
            f"`{name}` has {str(texts)[:40]!r}: pass texts, and of negatives a list of "
            "them for each query."
        )


def _documents(
    index: Index | Float[Any, "documents size"],
) -> tuple[Float[np.ndarray, "documents size"], Int[np.ndarray, " documents"]]:
    """Return embeddings and numbers of the rows that hold a document."""
    if not isinstance(index, Index):
        rows = np.ascontiguousarray(index, np.float32)
        if np.ndim(index) != 2 or not np.isfinite(rows).all():
            raise ValueError(
                f"embeddings have shape {np.shape(index)}, or are not finite: pass one "
                "row of numbers a document."
            )
        return rows, np.arange(len(rows))
    ids = np.asarray(index.ids, np.int64)
    rows = np.asarray(index.rows.embeddings(), np.float32)
    return np.ascontiguousarray(rows[ids >= 0]), ids[ids >= 0]


def _order(ids: Int[np.ndarray, " documents"]) -> Int[np.ndarray, " documents"]:
    """Return the rows by number."""
    order = np.argsort(ids)
    if not np.array_equal(ids[order], np.arange(len(ids))):
        raise ValueError(
            f"a .npy file has no numbers, and those of {len(ids)} documents are not "
            "0, 1, 2...: write a .safetensors file."
        )
    return order


def _settings(bert: Bert | ModernBert, tokenizer_folder: Path) -> dict[str, Any]:
    """Return the JSON files of a folder."""
    dense = [_dense_folder(i) for i in range(len(bert.dense))]
    last = [f"{len(dense) + 2}_Normalize"] if bert.is_normalized else []
    paths = ["", "1_Pooling", *dense, *last]
    kinds = ["Transformer", *(path.partition("_")[2] for path in paths[1:])]
    files = {
        "config.json": (
            _modern_config(bert) if isinstance(bert, ModernBert) else _config(bert)
        ),
        "sentence_bert_config.json": text_settings(tokenizer_folder),
        "modules.json": [
            {"idx": i, "name": str(i), "path": path, "type": f"{_ORIGIN}.{kind}"}
            for i, (kind, path) in enumerate(zip(kinds, paths, strict=True))
        ],
        "1_Pooling/config.json": {
            "word_embedding_dimension": bert.words.shape[1],
            "pooling_mode_cls_token": bert.pooling == "cls",
            "pooling_mode_mean_tokens": bert.pooling == "mean",
            "pooling_mode_max_tokens": False,
            "pooling_mode_mean_sqrt_len_tokens": False,
        },
    }
    files |= {f"{path}/config.json": {} for path in last}
    layers = zip(dense, bert.dense, strict=True)
    return files | {f"{path}/config.json": _dense_config(x) for path, x in layers}


def _dense_config(layer: Dense) -> dict[str, Any]:
    name = {"identity": "linear.Identity", "tanh": "activation.Tanh"}[layer.activation]
    return {
        "in_features": layer.weight.shape[1],
        "out_features": layer.weight.shape[0],
        "bias": layer.bias is not None,
        "activation_function": f"torch.nn.modules.{name}",
    }


def _config(bert: Bert) -> dict[str, Any]:
    """Return `config.json`, in the words of Hugging Face."""
    depth, inner_size, _ = bert.layers.up.weight.shape
    return {
        "architectures": ["BertModel"],
        "model_type": "bert",
        "vocab_size": bert.words.shape[0],
        "max_position_embeddings": bert.places.shape[0],
        "type_vocab_size": bert.types.shape[0],
        "hidden_size": bert.words.shape[1],
        "num_hidden_layers": depth,
        "num_attention_heads": bert.num_heads,
        "intermediate_size": inner_size,
        "hidden_act": "gelu",
        "position_embedding_type": "absolute",
        "layer_norm_eps": bert.epsilon,
        "pad_token_id": bert.padding,
        "hidden_dropout_prob": float(bert.dropout.p),
        "attention_probs_dropout_prob": 0.0,
        "torch_dtype": "float32",
    }


def _modern_config(bert: ModernBert) -> dict[str, Any]:
    """Return `config.json` of a ModernBERT, in the words of Hugging Face."""
    depth, inner_size = bert.layers.down.weight.shape[::2]
    kinds = ("full_attention", "sliding_attention")
    turns = [{"rope_type": "default", "rope_theta": base} for base in bert.bases]
    return {
        "architectures": ["ModernBertModel"],
        "model_type": "modernbert",
        "vocab_size": bert.words.shape[0],
        "max_position_embeddings": bert.length,
        "hidden_size": bert.words.shape[1],
        "num_hidden_layers": depth,
        "num_attention_heads": bert.num_heads,
        "intermediate_size": inner_size,
        "layer_types": [kinds[is_local] for is_local in bert.local],
        "local_attention": 2 * bert.reach,
        "rope_parameters": dict(zip(kinds, turns, strict=True)),
        # Releases of transformers before 5 read these.
        "global_rope_theta": bert.bases[0],
        "local_rope_theta": bert.bases[1],
        "global_attn_every_n_layers": _every(bert.local),
        "norm_eps": bert.epsilon,
        "pad_token_id": bert.padding,
        "torch_dtype": "float32",
    }


def _every(local: tuple[bool, ...]) -> int:
    """Return how often a layer reads all, `num` where only the first does."""
    return next((i for i, x in enumerate(local) if i and not x), len(local))


def _copy_tokenizer(at: Path, target: Path) -> None:
    there = [name for name in _TOKENIZER if (at / name).exists()]
    if not {"tokenizer.json", "vocab.txt"} & set(there):
        raise FileNotFoundError(
            f"`tokenizer_folder`, {at}, has no tokenizer.json: pass the folder that "
            "the encoder was loaded from."
        )
    for name in there:
        shutil.copyfile(at / name, target / name)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
