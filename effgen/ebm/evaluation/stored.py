"""A density in one file: parameters, `log Z` and its diagnostics, without walkers."""

import hashlib
import io
import json
import os
from pathlib import Path
from typing import Any

import equinox as eqx

from effgen.core.contract.state import named_arrays
from effgen.core.saving.files import replacing
from effgen.core.saving.manifest import installed_version
from effgen.core.saving.settings import settings_of
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
        "settings": settings_of(energy, "energy"),
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
    _check_same("setting", about["settings"], settings_of(energy, "energy"))
    energy, told = eqx.tree_deserialise_leaves(io.BytesIO(arrays), like)
    return energy, told, about


def _arrays(tree: Any) -> dict[str, str]:
    named = named_arrays(tree).items()
    return {name: f"{array.dtype}{list(array.shape)}" for name, array in named}


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
