"""The headlines of a negative cache: G1 and G2, a pass; G3, a training step."""

import time
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from benchmarks import measure, roofline
from benchmarks.headline_sizes import CHUNK, SEED, Pass, Sizes
from benchmarks.stepping import (
    begun,
    check_room,
    compared,
    peaks_of,
    reason,
    stepper,
)


PASSES = "two-level", "two-level and mean", "product, its maximum", "Gumbel-max"


def _rows(size: Pass) -> Any:
    """Return normalized random rows as stored, made a chunk at a time on the device."""
    from effgen import retrieval_cache as rc
    from effgen.retrieval_cache.cache.rows import stored

    def chunk(key: Any) -> Any:
        values = jax.random.normal(key, (size.chunk, size.width))
        return stored(rc.normalized(values), jnp.dtype(size.dtype))

    @jax.jit
    def made(keys: Any) -> Any:
        joined = lambda x: x.reshape(-1, *x.shape[2:])
        return jax.tree.map(joined, jax.lax.map(chunk, keys))

    return made(jax.random.split(jax.random.key(SEED), size.chunks))


def one_pass(sizes: Sizes, size: Pass) -> dict[str, Any]:
    from effgen import retrieval_cache as rc
    from effgen.retrieval_cache.softmax.importance import nothing_excluded
    from effgen.retrieval_cache.softmax.scan import Scored

    num, width = size.chunks * size.chunk, size.width
    stored = num * (width * jnp.dtype(size.dtype).itemsize + 16)
    check_room(stored)
    numbers = jnp.arange(num, dtype=jnp.int32)
    excluded = nothing_excluded(size.queries)
    scored = Scored(_rows(size), numbers, numbers, jnp.zeros(num), excluded)
    queries = jax.random.normal(jax.random.key(SEED + 1), (size.queries, width))
    given = scored, rc.normalized(queries), jax.random.key(SEED + 2)
    most, found = peaks_of(sizes), _passes(given, stored, sizes.rounds)
    # Nothing that scores every row can do with less: each read once, one product.
    kind = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    nbytes = sum(x.nbytes for x in jax.tree.leaves(scored.rows))
    asked = roofline.Demand(2.0 * num * width * size.queries, float(nbytes))
    seconds = found["milliseconds"]["two-level"] / 1e3
    found["roofline"] = roofline.described(asked, most, seconds, kind)
    return found | {
        "rows": num,
        "width": width,
        "dtype": size.dtype,
        "queries": size.queries,
        "goal": size.goal,
        "peaks": most,
    }


def _passes(given: Any, stored: int, rounds: int) -> dict[str, Any]:
    """Return times of our pass and of its peers, those that fit the memory."""
    from benchmarks.negative_sampling import CONTESTANTS

    work, temporary, compiling, left_out = {}, {}, {}, {}
    for name in PASSES:
        began = time.perf_counter()
        compiled = jax.jit(CONTESTANTS[name]).lower(*given).compile()
        compiling[name] = time.perf_counter() - began
        temporary[name] = compiled.memory_analysis().temp_size_in_bytes
        try:
            check_room(stored + temporary[name])
            jax.block_until_ready(compiled(*given))
        except Exception as error:
            left_out[name] = reason(error)
        else:
            work[name] = partial(compiled, *given)
    times = measure.interleaved(work, rounds=rounds)
    return {
        "milliseconds": {name: roofline.median(t) for name, t in times.items()},
        "peer_over_ours": {
            name: measure.paired_ratio(t, times["two-level"])
            for name, t in times.items()
            if not name.startswith("two-level")
        },
        "temporary_bytes": temporary,
        "compile_seconds": compiling,
        "left_out": left_out,
    }


def encoding(sizes: Sizes) -> dict[str, Any]:
    """Return tokens a second of a large encoder, with the cache and without."""
    import effgen as eg
    from effgen import retrieval_cache as rc

    pairs = sizes.pairs
    length, width = sizes.encoder["length"], sizes.encoder["width"]
    settings = {k: v for k, v in sizes.encoder.items() if k != "length"}
    key = jax.random.key(SEED)
    model = rc.TwoTowers.tied(
        rc.Transformer(
            2**15, length, key=key, size=width, compute=jnp.bfloat16, **settings
        )
    )
    cache = _cache(sizes, length, width)
    asked = cache.items[: 4 * pairs]
    source = eg.Minibatches(rc.Pairs(asked, asked, cache.ids[: len(asked)]), pairs)
    num_refreshed = min(32, pairs)
    optim = optax.adam(1e-5)
    trainer = rc.NegativeCacheTrainer(
        optim, sizes.negatives, refresh=num_refreshed / sizes.rows
    )
    plain = rc.InBatchTrainer(optim)
    few = sizes._replace(steps=max(1, sizes.steps // 4))
    steppers = {
        "cache": stepper(trainer, begun(trainer, model, cache), source, few.steps),
        "in batch": stepper(plain, begun(plain, model), source, few.steps),
    }
    found = compared(steppers, "cache", few)
    with_gradient = {"cache": 2 * pairs + sizes.negatives, "in batch": 2 * pairs}
    # One forward pass of three: what is embedded anew without a gradient.
    texts = with_gradient | {"cache": with_gradient["cache"] + num_refreshed / 3}
    rates = {n: 1e3 * length * texts[n] / t for n, t in found["milliseconds"].items()}
    return found | {
        "tokens_a_second": rates,
        "cache_over_in_batch": rates["cache"] / rates["in batch"],
        "goal": "0.95 or more",
        "rows": sizes.rows,
        "encoder": sizes.encoder,
    }


def _cache(sizes: Sizes, length: int, width: int) -> Any:
    from effgen import retrieval_cache as rc

    chunk = min(CHUNK, sizes.rows)
    size = Pass(sizes.rows // chunk, chunk, width, "bfloat16", 0, "")
    shape = (sizes.rows, length)
    tokens = jax.random.randint(jax.random.key(SEED), shape, 1, 2**15, jnp.uint16)
    numbers = jnp.arange(sizes.rows, dtype=jnp.int32)
    stamps, offsets = jnp.zeros(sizes.rows, jnp.int32), jnp.zeros(sizes.rows)
    return rc.NegativeCache(tokens, _rows(size), numbers, numbers, stamps, offsets)
