"""Checkpoints of the first format: all arrays as one, in orbax's files."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from .tensors import CorruptCheckpoint, check_digest


def manifest_path(path: Path) -> Path:
    """Return where the first format kept its manifest."""
    return path / "manifest" / "metadata"


def array_reader(path: Path, manifest: dict[str, Any]) -> Callable[[str], np.ndarray]:
    """Return a function from an array's name to the array, its digest verified.

    Raises:
        ImportError: With the command to install it, without tensorstore.
    """
    content, starts = _content(path), _starts(manifest)

    def read(name: str) -> np.ndarray:
        entry = manifest["arrays"][name]
        dtype, shape = jnp.dtype(entry["stored_dtype"]), entry["stored_shape"]
        stop = starts[name] + math.prod(shape) * dtype.itemsize
        if stop > content.size:
            raise CorruptCheckpoint("its arrays are cut short")
        block = content[starts[name] : stop].view(dtype).reshape(shape)
        check_digest(name, block, entry["sha256"])
        return block

    return read


def _starts(manifest: dict[str, Any]) -> dict[str, int]:
    starts, stop = {}, 0
    for name, entry in manifest["arrays"].items():
        starts[name] = stop
        size = jnp.dtype(entry["stored_dtype"]).itemsize
        stop += math.prod(entry["stored_shape"]) * size
    return starts


def _content(path: Path) -> np.ndarray:
    try:
        import tensorstore
    except ImportError as error:
        raise ImportError(
            f"the checkpoint at `{path}` is of effgen's first format, which orbax "
            "wrote. To read it: pip install orbax-checkpoint."
        ) from error
    files = {"driver": "file", "path": f"{path}/arrays/"}
    store = {"driver": "ocdbt", "base": files, "path": "bytes/"}
    spec = {"driver": "zarr", "kvstore": store}
    try:
        return tensorstore.open(spec, open=True, read=True).result().read().result()
    except ValueError as error:
        text = " ".join(str(error).split())
        if text.startswith(("PERMISSION_DENIED", "RESOURCE_EXHAUSTED")):
            raise OSError(f"`{path}` could not be read: {text[:200]}") from error
        raise CorruptCheckpoint(f"it cannot be read ({text[:200]})") from error
