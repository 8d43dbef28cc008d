"""Folders of pretrained encoders, as sentence-transformers lays them out, read."""

import json
import os
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from effgen.core.extras import needed


Folder = str | os.PathLike[str]

_CHAINS = (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"])
_ONLY = {
    "model_type": "bert",
    "hidden_act": "gelu",
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "add_cross_attention": False,
}
_USUAL = {
    "vocab_size": 30_522,
    "max_position_embeddings": 512,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3_072,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
    "pad_token_id": 0,
}


class Description(NamedTuple):
    """What a folder says of its encoder.

    **Attributes:** `config`, the numbers of `config.json`, by their names there;
    `pooling`, `"mean"` or `"cls"`; `is_normalized`, whether embeddings have length one.
    """

    config: dict[str, Any]
    pooling: str
    is_normalized: bool


def described(folder: Folder) -> Description:
    """Return what a folder says of its encoder, if that is a plain BERT.

    Without `modules.json`, as a folder of Hugging Face's is, embeddings are means of
    tokens and not normalized: as sentence-transformers takes it.

    **Raises:** `FileNotFoundError` for a file that is not there, `ValueError` for an
    encoder of another kind.
    """
    modules = _modules(Path(folder))
    path = modules["Transformer"] / "config.json"
    config = {"model_type": None} | read_json(path)
    for name, only in _ONLY.items():
        if config.get(name, only) != only:
            raise ValueError(
                f"`{path}` says `{name}` is {config[name]!r}, and a `Bert` is "
                f"{only!r}: load another model, or write this one as a module."
            )
    numbers = {name: config.get(name, usual) for name, usual in _USUAL.items()}
    pooling = _pooling(modules["Pooling"]) if "Pooling" in modules else "mean"
    return Description(numbers, pooling, _is_normalized(modules))


def encoder_folder(folder: Folder) -> Path:
    """Return where in a folder the encoder and its tokenizer are, mostly its root."""
    return _modules(Path(folder))["Transformer"]


def tensors(
    folder: Folder, shapes: dict[str, tuple[int, ...]]
) -> dict[str, np.ndarray]:
    """Return the tensors of a folder's `model.safetensors`, in float32.

    Names may begin with `bert.`, and norms may have a `gamma` and a `beta`. Poolers,
    heads and position numbers are left out.

    **Arguments:** `shapes`, of the tensors that there should be, by name.

    **Raises:** `FileNotFoundError` without the file; `ValueError` for tensors that are
    missing, of another shape, or part of no BERT; `ImportError` without safetensors.
    """
    path = encoder_folder(folder) / "model.safetensors"
    if not path.exists():
        raise FileNotFoundError(
            f"`{path}` is not there: save the model anew with safetensors, in one file."
        )
    stored = safetensors("Bert.load").load_file(path)
    read = {_plain(name): x for name, x in stored.items()}
    found = {name: x for name, x in read.items() if _is_used(name)}
    _check(found, shapes, path)
    return {name: np.asarray(x, np.float32) for name, x in found.items()}


def read_json(path: Path) -> Any:
    """Return what a JSON file holds.

    **Raises:** `FileNotFoundError` without it.
    """
    if not path.exists():
        raise FileNotFoundError(
            f"`{path}` is not there: pass the folder of a model of "
            "sentence-transformers or Hugging Face."
        )
    return json.loads(path.read_text(encoding="utf-8"))


def safetensors(by: str) -> ModuleType:
    """Return `safetensors.numpy`, which `by` needs.

    **Raises:** `ImportError` with the command that installs it.
    """
    return needed("safetensors", by=by, extra="text", module="safetensors.numpy")


def _modules(folder: Path) -> dict[str, Path]:
    """Return where each of a folder's modules is, by its kind."""
    path = folder / "modules.json"
    if not path.exists():
        return {"Transformer": folder}
    entries = read_json(path)
    kinds = [entry["type"].rpartition(".")[2] for entry in entries]
    if kinds not in _CHAINS:
        raise ValueError(
            f"`{path}` chains {', '.join(kinds)}, and a `Bert` is a Transformer, a "
            "Pooling, and perhaps a Normalize: load another model."
        )
    return {k: folder / entry["path"] for k, entry in zip(kinds, entries, strict=True)}


def _pooling(folder: Path) -> str:
    """Return how tokens are pooled, said by one name or by a switch for each."""
    config = read_json(folder / "config.json")
    switches = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}
    on = [k for k, v in config.items() if k.startswith("pooling_mode_") and v is True]
    modes = config.get("pooling_mode", [switches.get(k, k) for k in on] or "mean")
    (mode, *more) = [modes] if isinstance(modes, str) else modes
    prompts = "in" if config.get("include_prompt", True) else "ex"
    if more or mode not in switches.values() or prompts == "ex":
        raise ValueError(
            f"`{folder / 'config.json'}` pools by {modes}, prompts {prompts}cluded, "
            "and a `Bert` by 'mean' or 'cls' with prompts: load another model."
        )
    return mode


def _is_normalized(modules: dict[str, Path]) -> bool:
    if "Normalize" not in modules:
        return False
    path = modules["Normalize"] / "config.json"
    usual = "sentence_embedding"
    config = read_json(path) if path.exists() else {}
    if any(config.get(f"module_{x}_name", usual) != usual for x in ("input", "output")):
        raise ValueError(
            f"`{path}` normalizes something other than `{usual}`: load another model."
        )
    return True


def _plain(name: str) -> str:
    name = name.removeprefix("bert.")
    for old, new in (("gamma", "weight"), ("beta", "bias")):
        name = name.replace(f"LayerNorm.{old}", f"LayerNorm.{new}")
    return name


def _is_used(name: str) -> bool:
    inside = name.startswith(("embeddings.", "encoder."))
    return inside and not name.endswith("position_ids")


def _check(
    found: dict[str, np.ndarray], shapes: dict[str, tuple[int, ...]], path: Path
) -> None:
    missing = sorted(set(shapes) - set(found))
    unknown = sorted(set(found) - set(shapes))
    for names, what in ((missing, "lacks"), (unknown, "also has")):
        if names:
            raise ValueError(
                f"`{path}` {what} {len(names)} tensors ({', '.join(names[:3])}...): "
                "its `config.json` describes another model."
            )
    for name, shape in shapes.items():
        if found[name].shape != shape:
            raise ValueError(
                f"`{name}` in `{path}` has shape {found[name].shape}, and by "
                f"`config.json` {shape}: they are of different models."
            )
