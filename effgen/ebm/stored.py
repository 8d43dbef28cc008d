"""A density in one file: parameters, `log Z` and its diagnostics, without walkers."""

import hashlib
import io
import json
import os
from pathlib import Path
from typing import Any

import equinox as eqx

from effgen.core.files import replacing
from effgen.core.manifest import installed_version
from effgen.core.state import named_arrays

from .evaluation import Energy


# What `NormalizedEnergy` knows besides its energy is written in this layout.
_FORMAT = 1


def written(path: str | os.PathLike[str], tree: Any, shape: tuple[int, ...]) -> None:
    """Write `tree`'s arrays to `path`, whole or not at all, with what they are."""
    stream = io.BytesIO()
    eqx.tree_serialise_leaves(stream, tree)
    about = {
        "format": _FORMAT,
        "effgen": installed_version("effgen-jax"),
        "shape": shape,
        "arrays": _arrays(tree),
        "sha256": hashlib.sha256(stream.getvalue()).hexdigest(),
    }
    with replacing(path) as part:
        part.write_bytes(json.dumps(about).encode() + b"\n" + stream.getvalue())


def read(
    path: str | os.PathLike[str], energy: Energy, told: Any
) -> tuple[Energy, Any, tuple[int, ...]]:
    """Return an energy like `energy`, what is told of it like `told`, and the shape.

    Raises:
        ValueError: If the file is damaged, of another format, or holds another energy,
            array by array.
    """
    head, _, arrays = Path(path).read_bytes().partition(b"\n")
    try:
        about = json.loads(head)
        sound = about["sha256"] == hashlib.sha256(arrays).hexdigest()
    except (ValueError, KeyError, TypeError):
        sound, about = False, {}
    if not sound:
        raise ValueError(
            f"`path` `{path}` is damaged, or no saved density: save it anew."
        )
    if about["format"] != _FORMAT:
        raise ValueError(
            f"`path` `{path}` has format {about['format']}, by effgen "
            f"{about['effgen']}; this one reads format {_FORMAT}."
        )
    like = (energy, told)
    _check_same(about["arrays"], _arrays(like))
    energy, told = eqx.tree_deserialise_leaves(io.BytesIO(arrays), like)
    return energy, told, tuple(about["shape"])


def _arrays(tree: Any) -> dict[str, str]:
    named = named_arrays(tree).items()
    return {name: f"{array.dtype}{list(array.shape)}" for name, array in named}


def _check_same(saved: dict[str, str], asked: dict[str, str]) -> None:
    names = [name for name in {**saved, **asked} if saved.get(name) != asked.get(name)]
    if names:
        told = "; ".join(
            f"{name}: {saved.get(name, 'nothing')} was saved, the one given has "
            f"{asked.get(name, 'nothing')}"
            for name in names[:3]
        )
        raise ValueError(
            f"`energy` is not built as the saved one, in {len(names)} array(s): {told}"
            ". Pass one from the same constructor, with the same settings."
        )
