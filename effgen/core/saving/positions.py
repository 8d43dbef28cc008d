"""Where a source of batches stands, as JSON."""

import base64
from typing import Any

import numpy as np


def encoded(position: Any) -> Any:
    """Return a data source's state as JSON that `decoded` turns back.

    Raises:
        TypeError: For what is neither JSON's, bytes, a tuple nor an array.
    """
    if position is None or isinstance(position, bool | int | float | str):
        return position
    if isinstance(position, list):
        return [encoded(item) for item in position]
    if isinstance(position, tuple):
        return {"tuple": [encoded(item) for item in position]}
    if isinstance(position, dict):
        pairs = [[encoded(key), encoded(value)] for key, value in position.items()]
        return {"dict": pairs}
    return _encoded_bytes(position)


def _encoded_bytes(position: Any) -> Any:
    if type(position).__module__ == "torch":  # a tensor, such as a generator's state
        return {"tensor": encoded(position.numpy())}
    if isinstance(position, bytes):
        return {"base64": base64.b64encode(position).decode()}
    if isinstance(position, np.ndarray | np.generic) and position.dtype != object:
        shape, content = list(np.shape(position)), encoded(position.tobytes())
        return {"array": [position.dtype.str, shape, content]}
    raise TypeError(
        f"the data's state holds a {type(position).__name__}, which a checkpoint "
        "can't keep: let `get_state` return numbers, text, bytes, arrays, and lists, "
        "tuples or dicts of them."
    )


def decoded(position: Any) -> Any:
    """Return the inverse of `encoded`."""
    if isinstance(position, list):
        return [decoded(item) for item in position]
    if not isinstance(position, dict):
        return position
    if len(position) != 1 or not set(position) <= set(_DECODERS):
        return position  # as the first format kept it
    ((kind, content),) = position.items()
    return _DECODERS[kind](content)


def _array(content: Any) -> np.ndarray:
    dtype, shape, text = content
    return np.frombuffer(decoded(text), np.dtype(dtype)).reshape(shape).copy()


def _tensor(content: Any) -> Any:
    import torch  # pyright: ignore[reportMissingImports]

    return torch.from_numpy(decoded(content))


_DECODERS = {
    "base64": base64.b64decode,
    "tuple": lambda items: tuple(decoded(item) for item in items),
    "dict": lambda pairs: {decoded(key): decoded(value) for key, value in pairs},
    "array": _array,
    "tensor": _tensor,
}
