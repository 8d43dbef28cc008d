"""One pass over a cache and a draw for each query: time and temporary memory.

`python -m benchmarks.negative_sampling`. Ours, two-level; Gumbel-max and log-sum-exp
over all scores at once, as the paper's code does it; and the bare product of queries
and rows, which nothing that scores every row can beat.
"""

import statistics
import sys

import jax
import jax.numpy as jnp

from benchmarks import measure
from effgen import retrieval_cache as rc
from effgen.retrieval_cache.cache import FloatRows, block_size
from effgen.retrieval_cache.softmax import Scored, sample_rows, softmax_pass
from effgen.retrieval_cache.softmax.importance import nothing_excluded


SIZES = (2**17, 2**20)
QUERIES, WIDTH, ROUNDS = 64, 128, 21
GROWTH = tuple(2**n for n in range(14, 23, 2))


def setting(num, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(0))
    rows = rc.normalized(jax.random.normal(keys[0], (num, WIDTH))).astype(dtype)
    queries = rc.normalized(jax.random.normal(keys[1], (QUERIES, WIDTH)))
    ids = jnp.arange(num, dtype=jnp.int32)
    nothing = jnp.zeros(num, jnp.int32)
    excluded = nothing_excluded(QUERIES)
    offsets = jnp.zeros(num)
    return Scored(FloatRows(rows), ids, nothing, offsets, excluded), queries


def two_level(scored, queries, key):
    """Return a draw a query, log-partitions, and mean rows."""
    num, scale = len(scored.ids), jnp.asarray(20.0)
    block = block_size(num)
    found = softmax_pass(scored, queries, scale, block)
    owners = jnp.arange(len(queries))
    slots = sample_rows(scored, found, queries, scale, owners, block, key=key)
    return slots, found.log_partition, found.mean


def two_level_without_mean(scored, queries, key):
    """Return the same, but for the mean: one product instead of two."""
    return two_level(scored, queries, key)[:2]


def gumbel_max(scored, queries, key):
    """Return a draw a query and log-partitions, over all scores at once."""
    scores = 20.0 * scored.rows.scores(queries)
    noise = jax.random.gumbel(key, scores.shape)
    return jnp.argmax(scores + noise, axis=1), jax.nn.logsumexp(scores, axis=1)


def bare_product(scored, queries, key):
    """Return the largest score a query: the product, hardly more."""
    return jnp.max(scored.rows.scores(queries), axis=1)


def product_alone(scored, queries, key):
    """Return all scores."""
    return scored.rows.scores(queries)


CONTESTANTS = {
    "two-level": two_level_without_mean,
    "two-level and mean": two_level,
    "Gumbel-max": gumbel_max,
    "product, its maximum": bare_product,
    "product": product_alone,
}


def compared(num):
    scored, queries = setting(num)
    key = jax.random.key(1)
    compiled = {
        name: jax.jit(work).lower(scored, queries, key).compile()
        for name, work in CONTESTANTS.items()
    }
    run = {
        name: lambda f=work: f(scored, queries, key) for name, work in compiled.items()
    }
    times = measure.interleaved(run, rounds=ROUNDS)
    memory = {
        name: work.memory_analysis().temp_size_in_bytes
        for name, work in compiled.items()
    }
    ratio = lambda a, b: measure.paired_ratio(times[a], times[b])
    return {
        "rows": num,
        "milliseconds": {n: 1e3 * statistics.median(t) for n, t in times.items()},
        "temporary_bytes": memory,
        "gumbel_max_over_ours": ratio("Gumbel-max", "two-level"),
        "gumbel_max_over_ours_and_mean": ratio("Gumbel-max", "two-level and mean"),
        "ours_over_product": ratio("two-level", "product"),
        "ours_over_product_and_maximum": ratio("two-level", "product, its maximum"),
        "memory_of_gumbel_max_over_ours": memory["Gumbel-max"] / memory["two-level"],
    }


if __name__ == "__main__":
    rows = []
    for num in SIZES if len(sys.argv) < 2 else map(int, sys.argv[1:]):
        rows.append(compared(num))
        measure.write(
            "negative_sampling",
            {"queries": QUERIES, "width": WIDTH, "passes": rows},
        )
