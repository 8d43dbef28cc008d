"""Penalties on networks, for `Problem(penalty=...)`."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def smoothness(
    function: Callable[[Float[Array, " inputs"]], Array],
    points: Float[Array, "points inputs"],
) -> Float[Array, ""]:
    """Return the mean over points of the sum of squared second derivatives.

    It is for a learned law that is to be smooth, such as on a grid over its range:
    `penalty=lambda p, nets: 1e-4 * smoothness(nets, grid)`. It is zero for a linear
    law. Networks have to be twice differentiable.

    Arguments:
        function: The law, `(inputs,)` to a number or an array.
        points: Where it is to be smooth, `(points, inputs)`.

    Returns:
        A scalar.

    Raises:
        ValueError: Unless `points` is a matrix of one row or more.

    Source:
        Wahba (1990), of splines; Bishop (1993), of networks.
    """
    if jnp.ndim(points) != 2 or len(points) == 0:
        raise ValueError(
            f"`points` has shape {jnp.shape(points)}: pass (points, inputs)."
        )
    second = jax.vmap(jax.hessian(function))(jnp.asarray(points))
    return jnp.sum(second**2) / len(points)
