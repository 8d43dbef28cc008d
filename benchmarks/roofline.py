"""What a device can do at most, measured, and what a program asks of it."""

import statistics
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from benchmarks import measure


PRODUCTS, COPIES = 8, 8


class Demand(NamedTuple):
    """What one call of a program asks for: operations, and bytes of memory traffic."""

    flops: float
    bytes: float


def peaks(*, matrix: int, copied: int, rounds: int) -> dict[str, float]:
    """Return the most operations and bytes a second, by the best of `rounds`.

    Products of two matrices of `matrix` rows on random data, as float32 (in the
    precision that JAX takes by default) and as bfloat16; and copies of `copied` bytes,
    read and written.
    """
    flops = 2 * PRODUCTS * matrix**3
    found = {
        f"flops, {jnp.dtype(dtype).name}": flops
        / min(_times(_products, _square(matrix, dtype), rounds))
        for dtype in (jnp.float32, jnp.bfloat16)
    }
    array = jax.random.normal(jax.random.key(1), (copied // 4,))
    times = _times(_copies, array, rounds)
    return found | {"bytes": 2 * COPIES * array.nbytes / min(times)}


def demand(lowered: Any, compiled: Any) -> Demand:
    """Return what a program asks for by XLA's own count.

    Operations by the larger of the counts before and after compilation: a library's
    kernel counts as none in the latter. Bytes after it, where fusions count once.
    """
    before, after = (_analysis(x) for x in (lowered, compiled))
    flops = max(before.get("flops", 0.0), after.get("flops", 0.0))
    return Demand(flops, after.get("bytes accessed", 0.0))


def described(
    asked: Demand, most: dict[str, float], seconds: float, kind: str = "float32"
) -> dict[str, Any]:
    """Return the least time that the peaks allow, and the share of `seconds` it is."""
    least = {
        "arithmetic": asked.flops / most[f"flops, {kind}"],
        "memory": asked.bytes / most["bytes"],
    }
    bound = max(least, key=lambda name: least[name])
    return {
        "flops": asked.flops,
        "bytes": asked.bytes,
        "bound_by": bound,
        "least_milliseconds": 1e3 * least[bound],
        "share_of_roofline": least[bound] / seconds,
    }


def median(times: list[float]) -> float:
    """Return the median of repeats, in milliseconds."""
    return 1e3 * statistics.median(times)


def _square(size: int, dtype: Any) -> jax.Array:
    return (jax.random.normal(jax.random.key(0), (size, size)) / size**0.5).astype(
        dtype
    )


@jax.jit
def _products(x: jax.Array) -> jax.Array:
    return jax.lax.fori_loop(0, PRODUCTS, lambda _, y: x @ y, x)


@jax.jit
def _copies(x: jax.Array) -> jax.Array:
    # Each turn reads and writes all: a barrier keeps XLA from joining them.
    turn = lambda _, y: jax.lax.optimization_barrier(y + 1)
    return jax.lax.fori_loop(0, COPIES, turn, x)


def _times(work: Any, x: jax.Array, rounds: int) -> list[float]:
    work(x).block_until_ready()
    return [measure.seconds(lambda: work(x)) for _ in range(rounds)]


def _analysis(stage: Any) -> dict[str, float]:
    try:
        found = stage.cost_analysis()
    except Exception:  # not every backend counts
        return {}
    return (found[0] if isinstance(found, list) else found) or {}
