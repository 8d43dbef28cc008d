"""A step's time as the cache grows, against the encoder's and the pass's own.

`python -m benchmarks.cache_growth`. Batches of 32, 32 draws, 32 rows embedded anew, a
transformer of two layers of 128; documents of 32 tokens drawn at random; embeddings of
128 bytes with a scale. The cost to expect is that of the smallest cache, whose pass is
all but free, and of the bare pass over the rows.
"""

import statistics
import time
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import effgen as eg
from benchmarks import measure
from benchmarks.retrieval_arms import LENGTH, REFRESHED, SIZE, WORDS, encoder
from benchmarks.stepping import begun
from effgen import retrieval_cache as rc
from effgen.retrieval_cache.cache.rows import stored
from effgen.retrieval_cache.data import content_digests
from effgen.retrieval_cache.softmax import Scored, softmax_pass
from effgen.retrieval_cache.softmax.importance import nothing_excluded


BATCH = 32
POWERS = (14, 16, 18, 20, 22)
ROUNDS, STEPS = 7, 20


def cache_of(num):
    """Return a cache of random tokens and embeddings, made without the encoder."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, WORDS, (num, LENGTH)).astype(np.uint16)
    values = jax.random.normal(jax.random.key(0), (num, SIZE))
    numbers = jnp.arange(num, dtype=jnp.int32)
    return rc.NegativeCache(
        jnp.asarray(tokens),
        stored(rc.normalized(values), jnp.int8),
        numbers,
        content_digests(tokens),
        jnp.zeros(num, jnp.int32),
        jnp.zeros(num),
    )


def work(num):
    """Return functions: steps of training, and as many bare passes."""
    cache, model = cache_of(num), encoder(0)
    trainer = rc.NegativeCacheTrainer(optax.adam(1e-3), BATCH, refresh=REFRESHED / num)
    state = begun(trainer, model, cache)
    asked = cache.items[: min(num, 2**16)]
    source = eg.Minibatches(rc.Pairs(asked, asked, cache.ids[: len(asked)]), BATCH)
    queries = rc.normalized(jax.random.normal(jax.random.key(1), (BATCH, SIZE)))
    scored = Scored.of(cache, nothing_excluded(BATCH))
    arrays, static = eqx.partition(state, eqx.is_array)

    def step(arrays, key):
        state = eqx.combine(arrays, static)
        batch = source.batch_at(state.step, key=jax.random.key(0))
        return eqx.filter(trainer.step(state, batch, key=key)[0], eqx.is_array), None

    @partial(jax.jit, donate_argnums=0)
    def steps(arrays):
        return jax.lax.scan(step, arrays, jax.random.split(jax.random.key(0), STEPS))[0]

    @jax.jit
    def bare(scored, queries):
        def one(queries, _):
            found = softmax_pass(scored, queries, jnp.asarray(20.0), cache.block)
            return queries + 1e-9 * found.mean, None

        return jax.lax.scan(one, queries, length=STEPS)[0]

    return steps, jax.tree.map(jnp.copy, arrays), lambda: bare(scored, queries)


def measured(num):
    """Return milliseconds of a step under way and of a bare pass."""
    steps, arrays, bare = work(num)
    arrays = jax.block_until_ready(steps(arrays))
    jax.block_until_ready(bare())
    step, passes = [], []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        arrays = jax.block_until_ready(steps(arrays))
        step.append((time.perf_counter() - began) / STEPS)
        passes.append(measure.seconds(bare) / STEPS)
    return {
        "rows": num,
        "step": 1e3 * statistics.median(step),
        "pass": 1e3 * statistics.median(passes),
    }


def draw(rows, path):
    """Draw the step, the pass, and what the step should be."""
    num = [row["rows"] for row in rows]
    step, bare = ([row[name] for row in rows] for name in ("step", "pass"))
    expected = [row["step"] / row["step_over_encoder_and_pass"] for row in rows]
    figure, axis = plt.subplots(figsize=(5, 3.5), layout="constrained")
    axis.loglog(num, step, "o", label="a step")
    axis.loglog(num, expected, "-", color="gray", label="its encoder and one pass")
    axis.loglog(num, bare, "--", color="gray", label="one pass")
    axis.set(xlabel="documents in the cache", ylabel="milliseconds", ylim=(1, None))
    axis.legend()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    rows = []
    for power in POWERS:
        rows.append(measured(2**power))
        encoding = rows[0]["step"] - rows[0]["pass"]
        rows[-1]["step_over_encoder_and_pass"] = rows[-1]["step"] / (
            encoding + rows[-1]["pass"]
        )
        print(rows[-1], flush=True)
    measure.write("cache_growth", {"milliseconds": rows})
    draw(rows, measure.RESULTS.parents[1] / "docs" / "images" / "cache-growth.png")
