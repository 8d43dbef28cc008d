"""A step's time with glibc's allocator as it is, and told to keep what it has.

`python -m benchmarks.allocator`, on Linux and a CPU. XLA asks for a step's temporary
arrays anew at each; past a threshold glibc gives such back to the system, which then
has to clear their pages again. Two processes take turns, alike but for the thresholds:
65,536 documents, the transformer of the retrieval benchmarks.
"""

import os
import platform
import statistics
import subprocess
import sys
import time

import jax
import numpy as np
import optax

import effgen as eg
from benchmarks import measure
from benchmarks.cache_growth import cache_of
from benchmarks.retrieval_arms import REFRESHED, encoder
from effgen import retrieval_cache as rc


ROWS, ROUNDS = 2**16, 7
KEPT = {
    "MALLOC_MMAP_THRESHOLD_": str(2**33),
    "MALLOC_TRIM_THRESHOLD_": str(2**34),
}
WORK = {
    "in batch of 96": (rc.InBatchTrainer(optax.adam(1e-3)), 96, 12),
    "in batch of 512, in chunks": (
        rc.InBatchTrainer(optax.adam(1e-3), chunks=16),
        512,
        3,
    ),
    "pseudo-logit, 96 and 32 drawn": (
        rc.NegativeCacheTrainer(optax.adam(1e-3), 32, refresh=REFRESHED / ROWS),
        96,
        10,
    ),
}


def child():
    """Take the steps that are asked for, and say how long each took."""
    cache, model = cache_of(ROWS), encoder(0)
    pairs = rc.Pairs(np.asarray(cache.items), np.asarray(cache.items), cache.ids)
    key = jax.random.key(0)
    for name in map(str.strip, sys.stdin):
        trainer, batch_size, steps = WORK[name]
        in_batch = isinstance(trainer, rc.InBatchTrainer)
        state = trainer.init(model, None if in_batch else cache)
        source = eg.Minibatches(pairs, batch_size)
        began = time.perf_counter()
        state, _ = eg.fit(trainer, state, source, key=key, num_steps=steps)
        jax.block_until_ready(state.model)
        assert int(state.step) == steps, "the run was stopped"
        print((time.perf_counter() - began) / steps, flush=True)


def started(environment):
    return subprocess.Popen(
        [sys.executable, "-m", "benchmarks.allocator", "child"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | environment,
    )


def asked(process, name):
    process.stdin.write(name + "\n")
    process.stdin.flush()
    return float(process.stdout.readline())


def main():
    """Write the seconds of a step, and their ratios in turns."""
    contestants = {"as it is": started({}), "told to keep": started(KEPT)}
    rows = {}
    for name in WORK:
        times = {kind: [] for kind in contestants}
        for turn in range(ROUNDS + 1):
            order = list(contestants)[:: 1 if turn % 2 else -1]
            for kind in order:
                times[kind].append(asked(contestants[kind], name))
        times = {kind: found[1:] for kind, found in times.items()}  # compiled by then
        rows[name] = {
            "milliseconds": {k: 1e3 * statistics.median(t) for k, t in times.items()},
            "as_it_is_over_told": measure.paired_ratio(*times.values()),
        }
        print(name, rows[name], flush=True)
    for process in contestants.values():
        process.communicate()
    library = " ".join(platform.libc_ver())
    measure.write(
        "allocator",
        {"library": library, "rows": ROWS, "thresholds": KEPT, "steps": rows},
    )


if __name__ == "__main__":
    child() if sys.argv[1:] else main()
