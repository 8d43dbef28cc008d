"""A network that is a deviation from a law: zero where its last weights are."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from effgen.core.contract.counts import check_count

from .unit_inputs import of_each_input, positive_of_each_input, unit_inputs


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
        self.center = of_each_input("center", center, inputs)
        self.scale = positive_of_each_input("scale", scale, inputs)

    def __call__(self, x: Float[Array, " inputs"]) -> Float[Array, ""]:
        """Return the deviation at one input.

        Arguments:
            x: The input, `(inputs,)`, or a scalar for one input.

        Returns:
            A scalar, in the units of what it is added to.

        Raises:
            ValueError: For another number of inputs.
        """
        unit = unit_inputs("Deviation", x, self.center, self.scale)
        return self.last @ jnp.tanh(self.first @ unit + self.bias)
