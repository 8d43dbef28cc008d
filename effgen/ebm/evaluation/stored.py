"""A density in one file: parameters, `log Z` and its diagnostics, without walkers."""

import dataclasses
import hashlib
import io
import json
import os
from numbers import Real
from pathlib import Path
from typing import Any

import equinox as eqx

from effgen.core.contract.state import named_arrays
from effgen.core.saving.files import replacing
from effgen.core.saving.manifest import installed_version
from effgen.ebm.contract.energy import Energy


# What `NormalizedEnergy` knows besides its energy is written in this layout.
_FORMAT = 2


def written(
    path: str | os.PathLike[str], energy: Energy, told: Any, support: dict[str, Any]
) -> None:
    """Write the arrays of `energy` and its diagnostics `told`, whole or not at all.

    The file also has the energy's settings and its `support`, in JSON.
    """
    stream = io.BytesIO()
    eqx.tree_serialise_leaves(stream, (energy, told))
    about = {
        "format": _FORMAT,
        "effgen": installed_version("effgen-jax"),
        **support,
        "arrays": _arrays((energy, told)),
        "settings": _settings(energy, "energy"),
        "sha256": hashlib.sha256(stream.getvalue()).hexdigest(),
    }
    with replacing(path) as part:
        part.write_bytes(json.dumps(about).encode() + b"\n" + stream.getvalue())


def read(
    path: str | os.PathLike[str], energy: Energy, told: Any
) -> tuple[Energy, Any, dict[str, Any]]:
    """Return an energy like `energy`, what is told of it like `told`, and its support.

    Raises:
        ValueError: If the file is damaged, of another format, or holds another energy,
            array by array and setting by setting.
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
    _check_same("array", about["arrays"], _arrays(like))
    _check_same("setting", about["settings"], _settings(energy, "energy"))
    energy, told = eqx.tree_deserialise_leaves(io.BytesIO(arrays), like)
    return energy, told, about


def _arrays(tree: Any) -> dict[str, str]:
    named = named_arrays(tree).items()
    return {name: f"{array.dtype}{list(array.shape)}" for name, array in named}


def _settings(node: Any, name: str) -> dict[str, str]:
    """Return the static numbers and strings of the modules of a tree, by name.

    They are no arrays, so they must be given again. An example is a well's scale.
    """
    found: dict[str, str] = {}
    if isinstance(node, eqx.Module):
        for field in dataclasses.fields(node):
            value, place = getattr(node, field.name, None), f"{name}.{field.name}"
            if not field.metadata.get("static", False):
                found |= _settings(value, place)
            elif (told := _told(value)) is not None:
                found[place] = told
    elif isinstance(node, dict | list | tuple):
        parts = node.items() if isinstance(node, dict) else enumerate(node)
        for key, part in parts:
            found |= _settings(part, f"{name}[{key!r}]")
    return found


def _told(value: Any) -> str | None:
    if isinstance(value, str):
        return value
    if isinstance(value, Real):
        return repr(float(value))
    if isinstance(value, tuple):
        parts = [_told(part) for part in value]
        return None if None in parts else f"({', '.join(map(str, parts))})"
    return None


def _check_same(kind: str, saved: dict[str, str], asked: dict[str, str]) -> None:
    names = [name for name in {**saved, **asked} if saved.get(name) != asked.get(name)]
    if names:
        told = "; ".join(
            f"{name}: {saved.get(name, 'nothing')} was saved, the one given has "
            f"{asked.get(name, 'nothing')}"
            for name in names[:3]
        )
        raise ValueError(
            f"`energy` is not built as the saved one, in {len(names)} {kind}(s): {told}"
            ". Pass one from the same constructor, with the same settings."
        )
