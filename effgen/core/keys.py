"""What a random key must be."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def check_key(key: Any) -> None:
    """Raise `TypeError` for what is no random key, or several of them."""
    typed = isinstance(key, jax.Array) and jnp.issubdtype(
        key.dtype, jax.dtypes.prng_key
    )
    raw = isinstance(key, jax.Array) and key.dtype == np.uint32 and key.ndim == 1
    if not raw and not (typed and key.ndim == 0):
        raise TypeError(
            f"`key` is {key!r}: pass one random key, such as `jax.random.key(0)`."
        )
