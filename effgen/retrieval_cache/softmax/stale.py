"""The log-partition over rows as they are: its value, and its gradient by queries."""

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float

from .logits import valued
from .scan import Scored, softmax_pass


def stale_logit(
    scored: Scored,
    queries: Float[Array, "queries size"],
    scale: Float[Array, ""],
    block: int,
    mesh: Mesh | None = None,
) -> Float[Array, " queries"]:
    """Return `log sum_j exp(scale <query, stale_j> + offset_j)`, all of a cache.

    The gradient by queries and scale is exact; rows have none. No array of queries by
    rows is made, forward or backward.

    Arguments are as in `softmax_pass`.
    """
    fixed = jax.lax.stop_gradient
    found = softmax_pass(*fixed((scored, queries, scale)), block, mesh)
    there = jnp.isfinite(found.log_partition)
    slope = scale * jnp.sum(queries * found.mean, axis=1)
    return valued(found.log_partition, slope, there)
