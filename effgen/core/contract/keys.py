"""What a random key must be."""

from typing import Any

import jax
import jax.numpy as jnp


def check_key(key: Any) -> None:
    """Raise `TypeError` for an object that is no random key, or several of them."""
    if not isinstance(key, jax.Array):
        single = False
    elif jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        single = key.ndim == 0
    else:
        single = key.dtype == jnp.uint32 and key.shape == _words()
    if not single:
        raise TypeError(
            f"`key` is {key!r}: pass one random key, such as `jax.random.key(0)`."
        )


def _words() -> tuple[int, ...]:
    """Return the shape of a key that is an array of integers, as of `PRNGKey`."""
    return jax.eval_shape(jax.random.PRNGKey, 0).shape
