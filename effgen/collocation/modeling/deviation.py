"""A network that is a deviation from a law: zero where its last weights are."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from effgen.core.contract.counts import check_count


class Deviation(eqx.Module):
    """A network whose last weights at zero make it zero: `law + deviation` is `law`.

        last @ tanh(first (x - center) / scale + bias)

    The weights `first`, `bias` and `last` are drawn at random and trained.

    Arguments:
        inputs: The number of inputs of the network.
        width: The number of hidden units.
        center: What is subtracted from the inputs, a number or `(inputs,)`, in their
            units; not trained.
        scale: What the inputs are divided by, a number or `(inputs,)`, in their units;
            not trained.
        key: The JAX random key of the weights.

    Raises:
        ValueError: For sizes that are no counts, or a `center` or `scale` out of range.
    """

    first: Float[Array, "width inputs"]
    bias: Float[Array, " width"]
    last: Float[Array, " width"]
    center: tuple[float, ...] = eqx.field(static=True)
    scale: tuple[float, ...] = eqx.field(static=True)

    def __init__(
        self,
        inputs: int,
        width: int = 8,
        *,
        center: Any = 0.0,
        scale: Any = 1.0,
        key: PRNGKeyArray,
    ) -> None:
        """Draw the weights."""
        check_count("inputs", inputs)
        check_count("width", width)
        keys = jax.random.split(key, 3)
        self.first = jax.random.normal(keys[0], (width, inputs)) / np.sqrt(inputs)
        self.bias = jax.random.normal(keys[1], (width,)) * 0.5
        self.last = jax.random.normal(keys[2], (width,)) * 0.3
        self.center = _full("center", center, inputs)
        self.scale = _full("scale", scale, inputs)
        if not all(s > 0 for s in self.scale):
            raise ValueError(f"`scale` is {scale}: pass positive numbers.")

    def __call__(self, x: Float[Array, " inputs"]) -> Float[Array, ""]:
        """Return the deviation at one input.

        Arguments:
            x: The input, `(inputs,)`, or a scalar for one input.

        Returns:
            A scalar, in the units of what it is added to.

        Raises:
            ValueError: For another number of inputs.
        """
        given = jnp.reshape(x, -1)
        if len(given) != len(self.center):
            raise ValueError(
                f"`x` has shape {jnp.shape(x)}: pass ({len(self.center)},), the inputs "
                "of the `Deviation`."
            )
        unit = (given - jnp.array(self.center)) / jnp.array(self.scale)
        return self.last @ jnp.tanh(self.first @ unit + self.bias)


def _full(name: str, value: Any, size: int) -> tuple[float, ...]:
    array = np.asarray(value, float)
    if array.shape not in ((), (1,), (size,)) or not np.all(np.isfinite(array)):
        raise ValueError(
            f"`{name}` is {value}: pass a finite number, or ({size},) of them."
        )
    return tuple(np.broadcast_to(array, (size,)).tolist())
