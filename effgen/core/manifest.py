"""What a checkpoint holds: its leaves by name, each with a digest of its bytes."""

import base64
import hashlib
import json
import math
import platform
from importlib.metadata import version
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from .state import TrainState


Manifest = dict[str, Any]


class CorruptCheckpoint(RuntimeError):
    """What was read is not what was written."""


def host_leaves(tree: PyTree) -> dict[str, np.ndarray]:
    """Return a host copy of every array of `tree`, by its path.

    Random keys become their words. An array spread over several processes is gathered;
    every process must make the call.
    """
    return {name: _host(leaf) for name, leaf in named_arrays(tree).items()}


def named_arrays(tree: PyTree) -> dict[str, Any]:
    """Return the arrays of `tree` by their path, as in `.model.layers[0].weight`."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(eqx.filter(tree, eqx.is_array))
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def _host(leaf: Any) -> np.ndarray:
    if is_key(leaf):
        leaf = jax.random.key_data(leaf)
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        if not leaf.is_fully_replicated:
            from jax.experimental import multihost_utils

            return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))
        leaf = leaf.addressable_data(0)
    # A CPU's array may hand out its own memory, which the next chunk reuses: copy.
    return np.array(leaf, copy=True, order="C")


def is_key(leaf: Any) -> bool:
    """Return whether `leaf` is an array of typed random keys."""
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def describe(state: TrainState) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the shape and dtype of each array, and the value of each Python scalar."""
    arrays = {
        name: {"shape": list(leaf.shape), "dtype": str(leaf.dtype)}
        for name, leaf in named_arrays(state).items()
    }
    leaves, _ = jax.tree_util.tree_flatten_with_path(state)
    scalars = {
        jax.tree_util.keystr(path): repr(leaf)
        for path, leaf in leaves
        if isinstance(leaf, bool | int | float | complex | str)
    }
    return arrays, scalars


def outline(state: TrainState, position: Any) -> Manifest:
    """Return what is known of a checkpoint before its bytes are digested."""
    arrays, scalars = describe(state)
    return {
        "step": int(state.step),
        "arrays": arrays,
        "scalars": scalars,
        "position": encoded(position),
        "versions": {"python": platform.python_version(), "jax": version("jax")},
    }


def sealed(outline: Manifest, leaves: dict[str, np.ndarray]) -> Manifest:
    """Return the manifest: `outline` with each leaf's digest, and its own."""
    arrays = {
        name: entry | _stored(leaves[name]) for name, entry in outline["arrays"].items()
    }
    manifest = outline | {"arrays": arrays}
    return manifest | {"sha256": _text_digest(manifest)}


def _stored(leaf: np.ndarray) -> dict[str, Any]:
    # A random key is stored as its words: in another shape and dtype than its own.
    stored = {"stored_shape": list(leaf.shape), "stored_dtype": str(leaf.dtype)}
    return stored | {"sha256": digest(leaf)}


def packed(leaves: dict[str, np.ndarray]) -> np.ndarray:
    """Return the bytes of all arrays, in order, as one."""
    return np.concatenate([_bytes(leaf) for leaf in leaves.values()])


def unpacked(content: np.ndarray, manifest: Manifest) -> dict[str, np.ndarray]:
    """Return the arrays that `packed` made one, by the shapes in `manifest`."""
    leaves, start = {}, 0
    for name, entry in manifest["arrays"].items():
        dtype = jnp.dtype(entry["stored_dtype"])
        stop = start + math.prod(entry["stored_shape"]) * dtype.itemsize
        part = content[start:stop].view(dtype)
        leaves[name], start = part.reshape(entry["stored_shape"]), stop
    return leaves


def _bytes(leaf: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(leaf).reshape(-1).view(np.uint8)


def digest(array: np.ndarray) -> str:
    """Return the SHA-256 of an array's shape, dtype and bytes."""
    head = f"{array.dtype.str}{array.shape}".encode()
    return hashlib.sha256(head + _bytes(array).tobytes()).hexdigest()


def state_digest(state: PyTree) -> str:
    """Return one SHA-256 over all arrays of `state`: equal only if all bits are.

    >>> import jax.numpy as jnp
    >>> state_digest([jnp.zeros(3)]) == state_digest([jnp.zeros(3)])
    True
    >>> state_digest([jnp.zeros(3)]) == state_digest([-jnp.zeros(3)])
    False
    """
    leaves = host_leaves(state)
    return _text_digest({name: digest(leaf) for name, leaf in leaves.items()})


def verify_manifest(manifest: Any) -> None:
    """Raise `CorruptCheckpoint` unless `manifest` is as it was written."""
    body = {k: v for k, v in dict(manifest).items() if k != "sha256"}
    if manifest.get("sha256") != _text_digest(body):
        raise CorruptCheckpoint("its manifest has changed since it was written")


def verify_leaves(leaves: dict[str, np.ndarray], manifest: Manifest) -> None:
    """Raise `CorruptCheckpoint`, naming the leaf, unless all bytes are as written."""
    for name, entry in manifest["arrays"].items():
        if digest(leaves[name]) != entry["sha256"]:
            raise CorruptCheckpoint(
                f"`state{name}` has changed since it was written (its digest differs)"
            )


def check_fit(manifest: Manifest, like: TrainState, where: str) -> None:
    """Raise `ValueError`, leaf by leaf, unless the checkpoint fits `like`."""
    arrays, scalars = describe(like)
    saved = {k: _kind(v) for k, v in manifest["arrays"].items()} | manifest["scalars"]
    wanted = {k: _kind(v) for k, v in arrays.items()} | scalars
    lines = [
        f"  state{name}: {saved.get(name, 'absent')} in the checkpoint, "
        f"{wanted.get(name, 'absent')} in `like`"
        for name in sorted({**saved, **wanted})
        if saved.get(name) != wanted.get(name)
    ]
    if lines:
        raise ValueError(
            f"the checkpoint at `{where}` is of another model, memory or optimizer; "
            f"{len(lines)} of {len(wanted)} leaves differ:\n"
            + "\n".join(lines[:20])
            + ("\n  ..." if len(lines) > 20 else "")
            + "\nBuild `like` with the same constructor arguments as the saved run's."
        )


def rebuilt(leaves: dict[str, np.ndarray], like: TrainState) -> TrainState:
    """Return `like` with the arrays in `leaves`, each placed as `like`'s is."""
    arrays, rest = eqx.partition(like, eqx.is_array)
    placed = [_placed(leaves[k], leaf) for k, leaf in named_arrays(like).items()]
    return eqx.combine(jax.tree.unflatten(jax.tree.structure(arrays), placed), rest)


def _placed(value: np.ndarray, like: Any) -> Any:
    if not isinstance(like, jax.Array):
        return jnp.asarray(value)
    if is_key(like):
        return jax.random.wrap_key_data(
            jnp.asarray(value), impl=jax.random.key_impl(like)
        )
    if len(like.sharding.device_set) == 1:
        # Through a copy: a CPU array may alias `value`, and will be donated.
        return jax.device_put(jnp.array(value, copy=True), like.sharding)
    return jax.make_array_from_callback(like.shape, like.sharding, lambda i: value[i])


def encoded(position: Any) -> Any:
    """Return a data source's state as JSON; bytes are marked and written in base 64."""
    if isinstance(position, bytes):
        return {"base64": base64.b64encode(position).decode()}
    return position


def decoded(position: Any) -> Any:
    """Return the inverse of `encoded`."""
    if isinstance(position, dict) and set(position) == {"base64"}:
        return base64.b64decode(position["base64"])
    return position


def _kind(entry: dict[str, Any]) -> str:
    return f"{entry['dtype']}{entry['shape']}"


def _text_digest(body: Any) -> str:
    text = json.dumps(body, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
