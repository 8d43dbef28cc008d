"""Folders of pretrained encoders, as sentence-transformers lays them out, read."""

import json
import os
import re
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from effgen.core.outcome.extras import needed

from .architectures import ARCHITECTURES, Architecture


Folder = str | os.PathLike[str]

_ACTIVATIONS = {"Identity": "identity", "Tanh": "tanh"}


class Description(NamedTuple):
    """What a folder says of its encoder.

    Attributes:
        folder: Where the encoder and its tokenizer are.
        config: The numbers of `config.json`, by BERT's names for them.
        pooling: `"mean"` or `"cls"`.
        is_normalized: Whether embeddings have length one.
        kind: In what it differs from BERT.
        dense: Layers of embeddings: a weight, a bias and an activation each.
    """

    folder: Path
    config: dict[str, Any]
    pooling: str
    is_normalized: bool
    kind: Architecture
    dense: list[tuple[np.ndarray, np.ndarray | None, str]]


def described(folder: Folder, route: str | None, reader: str) -> Description:
    """Return what a folder says of its encoder, if it is one that `reader` reads.

    Without `modules.json`, as a folder of Hugging Face's is, embeddings are means of
    tokens and not normalized: as sentence-transformers takes it.

    Raises:
        FileNotFoundError: For a file that is not there.
        ValueError: For an encoder of another kind, and an unknown route.
    """
    modules = _modules(Path(folder), route)
    at = _first(modules, "Transformer")
    path = at / "config.json"
    config = read_json(path)
    kind = architecture(path, config)
    if kind.reader != reader:
        raise ValueError(
            f"`{path}` says `model_type` is {config['model_type']!r}: load it by "
            f"`{kind.reader}.load`."
        )
    for name, only in kind.only.items():
        if config.get(name, only) != only:
            raise ValueError(_refusal(path, name, config[name], repr(only), reader))
    pooling = _first(modules, "Pooling")
    return Description(
        at,
        kind.numbers(config),
        "mean" if pooling is None else _pooling(pooling),
        _is_normalized(_first(modules, "Normalize")),
        kind,
        [_dense(at) for name, at in modules if name == "Dense"],
    )


def architecture(path: Path, config: dict[str, Any]) -> Architecture:
    """Return in what the encoder of a `config.json` differs from BERT.

    Raises:
        ValueError: For another.
    """
    kind = config.get("model_type")
    if kind not in ARCHITECTURES:
        names = ", ".join(map(repr, ARCHITECTURES))
        raise ValueError(_refusal(path, "model_type", kind, f"one of {names}", "Bert"))
    return ARCHITECTURES[kind]


def _refusal(path: Path, name: str, said: Any, only: str, reader: str) -> str:
    return (
        f"`{path}` says `{name}` is {said!r}, and a `{reader}` is {only}: load another "
        "model, or write this one as a module."
    )


def encoder_folder(folder: Folder, route: str | None = None) -> Path:
    """Return where in a folder the encoder and its tokenizer are, mostly its root."""
    return _first(_modules(Path(folder), route), "Transformer")


def tensors(
    said: Description, shapes: dict[str, tuple[int, ...]]
) -> dict[str, np.ndarray]:
    """Return the tensors of a folder's `model.safetensors`, in float32.

    Names may begin with the encoder's own, such as `bert.`, and norms may have a
    `gamma` and a `beta`. Poolers, heads and position numbers are left out.

    Arguments:
        said: What the folder says of its encoder.
        shapes: Of the tensors that there should be, by name.

    Raises:
        FileNotFoundError: Without the file.
        ValueError: For tensors that are missing, of another shape, or of no such
            encoder.
        ImportError: Without safetensors.
    """
    kind, path = said.kind, said.folder / "model.safetensors"
    if not path.exists():
        raise FileNotFoundError(
            f"`{path}` is not there: save the model anew with safetensors, in one file."
        )
    stored = safetensors(f"{kind.reader}.load").load_file(path)
    read = {_plain(name): x for name, x in kind.tensors(stored, said.config).items()}
    found = {name: x for name, x in read.items() if _is_used(name, kind)}
    _check(found, shapes, path)
    return {name: np.asarray(x, np.float32) for name, x in found.items()}


def read_json(path: Path) -> Any:
    """Return what a JSON file holds.

    Raises:
        FileNotFoundError: Without it.
    """
    if not path.exists():
        raise FileNotFoundError(
            f"`{path}` is not there: pass the folder of a model of "
            "sentence-transformers or Hugging Face."
        )
    return json.loads(path.read_text(encoding="utf-8"))


def safetensors(by: str) -> ModuleType:
    """Return `safetensors.numpy`, which `by` needs.

    Raises:
        ImportError: Without it; the message has the command that installs it.
    """
    return needed("safetensors", by=by, extra="text", module="safetensors.numpy")


def _modules(folder: Path, route: str | None) -> list[tuple[str, Path]]:
    """Return a folder's modules in turn, and where each is."""
    path = folder / "modules.json"
    if not path.exists():
        return [("Transformer", folder)]
    found = [
        (_kind(entry["type"]), folder / entry["path"]) for entry in read_json(path)
    ]
    if found and found[0][0] == "Router":
        found = [*_routed(found[0][1], route), *found[1:]]
    elif route is not None:
        raise ValueError(
            f"`route` is {route!r}, and `{path}` has no Router: leave `route` out."
        )
    kinds = [kind for kind, _ in found]
    chain = "Transformer Pooling( Dense)*( Normalize)*"
    if not re.fullmatch(chain, " ".join(kinds)):
        raise ValueError(
            f"`{path}` chains {', '.join(kinds)}, and a `Bert` is a Transformer, a "
            "Pooling, perhaps some Dense, and perhaps a Normalize: load another model."
        )
    return found


def _routed(folder: Path, route: str | None) -> list[tuple[str, Path]]:
    """Return the modules of one route, such as that of queries."""
    said = read_json(folder / "router_config.json")
    if route not in said["structure"]:
        names = " or ".join(repr(name) for name in said["structure"])
        raise ValueError(
            f"`route` is {route!r}, and `{folder}` has an encoder for each of several "
            f"routes: pass {names}."
        )
    names = said["structure"][route]
    return [(_kind(said["types"][name]), folder / name) for name in names]


def _kind(name: str) -> str:
    return name.rpartition(".")[2]


def _first(modules: list[tuple[str, Path]], kind: str) -> Any:
    """Return where the first module of a kind is, `None` without one."""
    return next((at for name, at in modules if name == kind), None)


def _dense(folder: Path) -> tuple[np.ndarray, np.ndarray | None, str]:
    """Return the weight, bias and activation of a layer of embeddings."""
    config, path = read_json(folder / "config.json"), folder / "model.safetensors"
    said = config.get("activation_function", "torch.nn.modules.activation.Tanh")
    activation = _ACTIVATIONS.get(said.rpartition(".")[2])
    usual = "sentence_embedding"
    names = [config.get(f"module_{x}_name") or usual for x in ("input", "output")]
    if activation is None or names != [usual, usual]:
        raise ValueError(
            f"`{folder / 'config.json'}` has the activation {said} from {names[0]} to "
            f"{names[1]}, and a `Bert` has Identity or Tanh of embeddings: load "
            "another model."
        )
    if not path.exists():
        raise FileNotFoundError(
            f"`{path}` is not there: save the model anew with safetensors."
        )
    found = safetensors("Bert.load").load_file(path)
    bias = found.get("linear.bias")
    bias = None if bias is None else np.asarray(bias, np.float32)
    return np.asarray(found["linear.weight"], np.float32), bias, activation


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


def _is_normalized(folder: Path | None) -> bool:
    if folder is None:
        return False
    path = folder / "config.json"
    usual = "sentence_embedding"
    config = read_json(path) if path.exists() else {}
    if any(config.get(f"module_{x}_name", usual) != usual for x in ("input", "output")):
        raise ValueError(
            f"`{path}` normalizes something other than `{usual}`: load another model."
        )
    return True


def _plain(name: str) -> str:
    for old, new in (("gamma", "weight"), ("beta", "bias")):
        name = name.replace(f"LayerNorm.{old}", f"LayerNorm.{new}")
    return name


def _is_used(name: str, kind: Architecture) -> bool:
    inside = name.startswith(kind.roots)
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
