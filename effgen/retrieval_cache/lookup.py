"""Where rows are, by what marks them."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int


def rows_of(
    keys: Int[Array, " rows"], valid: Bool[Array, " rows"], wanted: Int[Array, " any"]
) -> Int[Array, " any"]:
    """Return the first valid row of each key that is wanted, `rows` where none is.

    In one pass: every row is looked up among the few keys that are wanted, in order,
    and those that are there are picked out. Where one key marks several rows, these may
    be too many to pick: then the rows are gone through once for each key. No array of
    rows by keys is made.
    """
    num, order = len(wanted), jnp.sort(wanted)
    place = jnp.searchsorted(order, keys, method="scan_unrolled")
    hit = (order[jnp.minimum(place, num - 1)] == keys) & valid

    def picked() -> Int[Array, " any"]:
        # Of floats: of integers, XLA sorts all for the sake of a few on a CPU.
        there, rows = jax.lax.top_k(hit.astype(jnp.float32), min(num, len(keys)))
        same = (keys[rows][None] == wanted[:, None]) & (there > 0)[None]
        return jnp.min(jnp.where(same, rows[None], len(keys)), axis=1)

    def gone_through() -> Int[Array, " any"]:
        rows = jnp.arange(len(keys), dtype=jnp.int32)

        def first(key: Int[Array, ""]) -> Int[Array, ""]:
            return jnp.min(jnp.where(hit & (keys == key), rows, len(keys)))

        return jax.lax.map(first, wanted)

    found = jax.lax.cond(jnp.sum(hit) <= num, picked, gone_through)
    return found.astype(jnp.int32)
