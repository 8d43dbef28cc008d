"""What stands for the bytes of an array."""

import hashlib
from typing import Any

import numpy as np


def digest(array: np.ndarray) -> str:
    """Return the SHA-256 of an array's shape, dtype and bytes."""
    total = hashlib.sha256(f"{array.dtype.str}{array.shape}".encode())
    total.update(bytes_of(array))
    return total.hexdigest()


def bytes_of(array: np.ndarray) -> Any:
    """Return the memory of an array, in order; a copy only where that is scattered."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
