"""What a checkpoint holds: its leaves by name, each with a digest of its bytes."""

import functools
import hashlib
import json
import platform
import re
from collections.abc import Collection
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from effgen.core.contract.digests import digest
from effgen.core.contract.state import TrainState, is_key, named_arrays

from .settings import settings_of
from .tensors import CorruptCheckpoint, Part, assembled


Manifest = dict[str, Any]

FORMAT = 2
"""The newest layout of checkpoints that is read, and the one that is written."""


def parts_of(name: str, leaf: Any) -> list[Part]:
    """Return what this process has to write of an array: of each piece, one replica.

    Random keys become their words. Nothing is copied.
    """
    leaf = jax.random.key_data(leaf) if is_key(leaf) else leaf
    if not isinstance(leaf, jax.Array):
        return [Part(name, (0,) * leaf.ndim, leaf, whole=True)]
    if leaf.is_fully_addressable and jax.process_index() > 0:
        return []  # every process holds it; the first writes
    return [
        Part(name, _start(shard), shard.data, whole=shard.data.shape == leaf.shape)
        for shard in leaf.addressable_shards
        if shard.replica_id == 0
    ]


def _start(shard: Any) -> tuple[int, ...]:
    return tuple(axis.start or 0 for axis in shard.index)


def describe(state: PyTree) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the shape and dtype of each array, and the value of each Python scalar."""
    arrays = {name: _description(leaf) for name, leaf in named_arrays(state).items()}
    leaves, _ = jax.tree_util.tree_flatten_with_path(state)
    scalars = {
        jax.tree_util.keystr(path): repr(leaf)
        for path, leaf in leaves
        if isinstance(leaf, bool | int | float | complex | str)
    }
    return arrays, scalars


def _description(leaf: Any) -> dict[str, Any]:
    # A random key is stored as its words: in another shape and dtype than its own.
    stored = jax.eval_shape(jax.random.key_data, leaf) if is_key(leaf) else leaf
    return {
        "shape": list(leaf.shape),
        "dtype": str(leaf.dtype),
        "stored_shape": list(stored.shape),
        "stored_dtype": str(stored.dtype),
    }


def outline(state: TrainState, position: Any, score: Any) -> Manifest:
    """Return what is known of a checkpoint before its bytes are written."""
    arrays, scalars = describe(state)
    return {
        "format": FORMAT,
        "step": int(state.step),
        "arrays": arrays,
        "scalars": scalars,
        "settings": settings_of(state, ""),
        "position": position,
        "score": score,
        "versions": _versions(),
    }


@functools.cache
def _versions() -> dict[str, str]:
    packages = ("jax", "equinox", "optax")
    found = {name: installed_version(name) for name in packages}
    ours = {"effgen": installed_version("effgen-jax")}
    return ours | found | {"python": platform.python_version()}


def installed_version(package: str) -> str:
    """Return the version of an installed package, or `"unknown"`."""
    try:
        return version(package)
    except PackageNotFoundError:  # run from its source, not installed
        return "unknown"


def sealed(manifest: Manifest) -> Manifest:
    """Return `manifest` with its own digest. The seal is the same in every format."""
    return manifest | {"sha256": _text_digest(manifest)}


def opened(text: bytes, where: str) -> Manifest:
    """Return the manifest that `text` holds, once its seal and format are good."""
    try:
        manifest = json.loads(text)
        body = {name: value for name, value in manifest.items() if name != "sha256"}
        sound = manifest["sha256"] == _text_digest(body)
    except (ValueError, AttributeError, KeyError, RecursionError):
        sound = False
    if not sound:
        raise CorruptCheckpoint("its manifest has changed since it was written")
    if manifest.get("format", 1) > FORMAT:
        writer = manifest.get("versions", {}).get("effgen", "a newer one")
        raise ValueError(
            f"the checkpoint at `{where}` has format {manifest['format']}, of effgen "
            f"{writer}; this effgen, {_versions()['effgen']}, reads formats up to "
            f"{FORMAT}: upgrade effgen. The checkpoint is not damaged."
        )
    return manifest


def state_digest(state: PyTree) -> str:
    """Return one SHA-256 over all arrays of `state`: equal only if all bits are.

    The arrays' names, shapes and dtypes count too; leaves that are no arrays do not.
    The arrays are read one after another; in several processes, each whole in turn.

    >>> import jax.numpy as jnp
    >>> state_digest([jnp.zeros(3)]) == state_digest([jnp.zeros(3)])
    True
    >>> state_digest([jnp.zeros(3)]) == state_digest([-jnp.zeros(3)])
    False

    Arguments:
        state: A state, or any pytree.

    Returns:
        64 hexadecimal digits.
    """
    leaves = named_arrays(state).items()
    return _text_digest({name: digest(_whole(leaf)) for name, leaf in leaves})


def _whole(leaf: Any) -> np.ndarray:
    leaf = jax.random.key_data(leaf) if is_key(leaf) else leaf
    if not isinstance(leaf, jax.Array) or leaf.is_fully_replicated:
        return np.asarray(leaf)
    if not leaf.is_fully_addressable:
        from jax.experimental import multihost_utils

        return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))
    # JAX keeps what `np.asarray` gathers for as long as the array lives.
    pieces = ((part.start, np.asarray(part.block)) for part in parts_of("", leaf))
    return assembled(leaf.shape, leaf.dtype, pieces)


def check_fit(
    manifest: Manifest, like: TrainState, only: Collection[str] | None, where: str
) -> None:
    """Raise `ValueError`, leaf by leaf, unless the checkpoint fits `like`.

    Of `only` these fields, and there a float may be of another precision. The error
    names the call that takes what fits.
    """
    arrays, scalars = describe(like)
    saved, wanted = manifest["arrays"] | manifest["scalars"], arrays | scalars
    names = sorted(
        name for name in {**saved, **wanted} if only is None or field_of(name) in only
    )
    cast = only is not None
    bad = [k for k in names if not _fits(saved.get(k), wanted.get(k), cast=cast)]
    if not bad:
        _check_settings(manifest, like, only, where)
        return
    raise ValueError(
        f"the checkpoint at `{where}` is of another model, memory or optimizer; "
        f"{len(bad)} of {len(names)} leaves differ:\n"
        + _listed(bad, saved, wanted)
        + "\nBuild `like` with the same constructor arguments as the saved run's"
        + _what_fits(saved, wanted, names)
    )


def _check_settings(
    manifest: Manifest, like: TrainState, only: Collection[str] | None, where: str
) -> None:
    """Raise `ValueError` for static numbers and strings that are not the saved ones.

    Names that one of the two lacks may be of another version of a module.
    """
    saved, wanted = manifest.get("settings", {}), settings_of(like, "")
    names = [k for k in saved if k in wanted and (only is None or field_of(k) in only)]
    if bad := [k for k in names if saved[k] != wanted[k]]:
        raise ValueError(
            f"the checkpoint at `{where}` is of another model: {len(bad)} of "
            f"{len(names)} settings differ:\n"
            + _listed(bad, saved, wanted)
            + "\nBuild `like` with the same constructor arguments as the saved run's, "
            "and change settings afterwards, as by `dataclasses.replace`."
        )


def _listed(names: list[str], saved: Manifest, wanted: Manifest) -> str:
    """Return a line of each name that differs, of the first twenty."""
    lines = [
        f"  state{name}: {_kind(saved.get(name))} in the checkpoint, "
        f"{_kind(wanted.get(name))} in `like`"
        for name in names[:20]
    ]
    return "\n".join([*lines, "  ..."] if len(names) > 20 else lines)


def _what_fits(saved: Manifest, wanted: Manifest, names: list[str]) -> str:
    bad = {k for k in names if not _fits(saved.get(k), wanted.get(k), cast=True)}
    fields = {field_of(name) for name in names} - {field_of(name) for name in bad}
    if not fields - {"step"}:
        return "."
    listed = ", ".join(f'"{name}"' for name in sorted(fields))
    return (
        ", or take what fits:\n  state = effgen.restore(directory, like, "
        f"only=[{listed}])"
    )


def field_of(name: str) -> str:
    """Return which field of a `TrainState` a leaf belongs to."""
    found = re.match(r"\.(\w+)", name)
    return found.group(1) if found else ""


def _fits(saved: Any, wanted: Any, *, cast: bool) -> bool:
    if not (isinstance(saved, dict) and isinstance(wanted, dict)):
        return saved == wanted  # one is absent, or a scalar's text
    if _kind(saved) == _kind(wanted):
        return True
    return cast and saved["shape"] == wanted["shape"] and _both_float(saved, wanted)


def _both_float(saved: Any, wanted: Any) -> bool:
    if "key<" in saved["dtype"] + wanted["dtype"]:
        return False
    dtypes = [jnp.dtype(entry["dtype"]) for entry in (saved, wanted)]
    return any(
        all(jnp.issubdtype(dtype, kind) for dtype in dtypes)
        for kind in (jnp.floating, jnp.complexfloating)
    )


def _kind(entry: Any) -> str:
    if entry is None:
        return "absent"
    return entry if isinstance(entry, str) else f"{entry['dtype']}{entry['shape']}"


def _text_digest(body: Any) -> str:
    text = json.dumps(body, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
