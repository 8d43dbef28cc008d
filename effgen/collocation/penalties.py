"""Penalties on networks, for `Problem(penalty=...)`."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def smoothness(
    function: Callable[[Float[Array, " inputs"]], Array],
    points: Float[Array, "points inputs"],
) -> Float[Array, ""]:
    """Return the mean of `|second derivatives of function|^2` over points.

    The curvature of a learned law where it is to be smooth, such as on a grid over its
    range: `penalty=lambda p, nets: 1e-4 * smoothness(nets, grid)`. Zero for what is
    linear, which physics often is nearly. Networks have to be smooth themselves.

    **Raises:** `ValueError` unless `points` is a matrix.

    **Source:** Wahba (1990), of splines; Bishop (1993), of networks.
    """
    if jnp.ndim(points) != 2:
        raise ValueError(
            f"`points` has shape {jnp.shape(points)}: pass (points, inputs)."
        )
    second = jax.vmap(jax.hessian(function))(jnp.asarray(points))
    return jnp.sum(second**2) / len(points)
