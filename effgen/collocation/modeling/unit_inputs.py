"""Inputs of a network less their center and divided by their scale."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def unit_inputs(
    name: str,
    x: Float[Array, " inputs"],
    center: tuple[float, ...],
    scale: tuple[float, ...],
) -> Float[Array, " inputs"]:
    """Return `(x - center) / scale`, where one input may be a scalar.

    Raises:
        ValueError: For another number of inputs than the module `name` has.
    """
    given = jnp.reshape(x, -1)
    if len(given) != len(center):
        raise ValueError(
            f"`x` has shape {jnp.shape(x)}: pass ({len(center)},), the inputs "
            f"of the `{name}`."
        )
    return (given - jnp.array(center)) / jnp.array(scale)


def of_each_input(name: str, value: Any, size: int) -> tuple[float, ...]:
    """Return a number, or one of each input, as one of each.

    Raises:
        ValueError: For another shape, or numbers that are not finite.
    """
    array = np.asarray(value, float)
    if array.shape not in ((), (1,), (size,)) or not np.all(np.isfinite(array)):
        raise ValueError(
            f"`{name}` is {value}: pass a finite number, or ({size},) of them."
        )
    return tuple(np.broadcast_to(array, (size,)).tolist())


def positive_of_each_input(name: str, value: Any, size: int) -> tuple[float, ...]:
    """Return the same of positive numbers.

    Raises:
        ValueError: For another shape, or numbers that are not finite and positive.
    """
    found = of_each_input(name, value, size)
    if not all(s > 0 for s in found):
        raise ValueError(f"`{name}` is {value}: pass positive numbers.")
    return found
