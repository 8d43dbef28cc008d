"""Where the curves cross with a toy tower, whose pass over the cache is most of a step.

`python -m benchmarks.crossing [CORPUS]`: a hashed bag of words on `debian` or another
corpus of `benchmarks.retrieval_arms`. A step of each contestant is timed in turns; for
each number of seconds each then trains anew for as many steps as that allows, its rate
falling to nothing; held-out queries against the whole corpus.
"""

import statistics
import sys

import jax

import effgen as eg
from benchmarks import measure
from benchmarks.equal_steps import contestants
from benchmarks.retrieval import trained
from benchmarks.retrieval_arms import (
    BAG_RATE,
    LARGE,
    OURS,
    PAPER,
    PLAIN,
    QUERY_LENGTH,
    TEMPERATURE,
    WARMER,
    at_temperature,
    bag,
    begun,
    task,
)


SECONDS, ROUNDS, STEPS = (4, 8, 16, 32, 64), 5, 30
# Each at the temperature that serves it best after equal steps, on Debian's.
BEST = (
    at_temperature(PLAIN, WARMER),
    at_temperature(LARGE, WARMER),
    at_temperature(LARGE, TEMPERATURE),  # for 288 it depends on the steps
    at_temperature(PAPER, TEMPERATURE),
    at_temperature(OURS, TEMPERATURE),
)


def timed(given, rivals):
    """Return the seconds of a step of each, in turns."""
    key, work = jax.random.key(0), {}
    for name, arm in rivals.items():
        run = begun(arm, given, bag(given, 0), 1_000, BAG_RATE)
        work[name] = lambda r=run: eg.fit(*r, key=key, num_steps=STEPS)[0].model
    times = measure.interleaved(work, rounds=ROUNDS)
    return {name: statistics.median(t) / STEPS for name, t in times.items()}


def main(kind="debian"):
    given = task(kind)
    every = contestants(len(given.documents))
    rivals = {name: every[name] for name in BEST}
    seconds = timed(given, rivals)
    print(seconds, flush=True)
    figures = {
        "task": given.name,
        "digest": given.digest,
        "query_length": QUERY_LENGTH,
        "bm25": given.bm25,
        "seconds_per_step": seconds,
        "runs": [],
    }
    for budget in SECONDS:
        for name, arm in rivals.items():
            steps = round(budget / seconds[name])
            run = trained(arm, given, bag(given, 0), 0, steps, BAG_RATE)
            row = {"seconds": budget, "contestant": name, "steps": steps}
            figures["runs"].append(row | {k: run[k] for k in ("mrr", "recall")})
            print(figures["runs"][-1], flush=True)
    measure.write("crossing", figures)


if __name__ == "__main__":
    main(*sys.argv[1:])
