"""How near the cache comes to the exact softmax over a corpus, at equal steps.

`python -m benchmarks.ceiling [CORPUS]`: 5,000 documents of `debian` or another corpus
of `benchmarks.retrieval_arms`, a hashed bag of words, so that every document can be
embedded at every step. Held-out queries against all documents, three seeds.
"""

import sys

import numpy as np

from benchmarks import measure
from benchmarks.retrieval import bootstrapped, read, trained
from benchmarks.retrieval_arms import (
    CORPORA,
    TEMPERATURE,
    WARMER,
    Arm,
    at_temperature,
    bag,
    cached,
    divided,
    in_batch,
    kept,
)
from effgen import retrieval_cache as rc


DOCUMENTS, HELD_OUT, SEEDS, STEPS, BATCH = 5_000, 500, 3, 1_500, 32
# Of four rates the best for draws; the exact softmax has the same at any.
RATE, REFRESHED = 2e-2, 512


def contestants(rows):
    draws = lambda num, estimator: cached(
        rows, BATCH, num, estimator, refreshed=REFRESHED
    )
    return {
        "full softmax": Arm(
            lambda optim: rc.FullSoftmaxTrainer(optim, temperature=TEMPERATURE),
            BATCH,
            kept,
            embedded=2 * BATCH + rows,
        ),
        "pseudo-logit, 32 drawn": draws(BATCH, rc.PseudoLogit()),
        "pseudo-logit, 128 drawn": draws(4 * BATCH, rc.PseudoLogit()),
        "pseudo-logit, 2,048 drawn": draws(2_048, rc.PseudoLogit()),
        "paper's estimator, 32 drawn": draws(BATCH, rc.GumbelMax()),
        "paper's estimator, 128 drawn": draws(4 * BATCH, rc.GumbelMax()),
        "in batch of 32": in_batch(BATCH),
        at_temperature("in batch of 32", WARMER): in_batch(BATCH, temperature=WARMER),
    }


def main(kind="debian"):
    given = divided(rc.subset(CORPORA[kind](), DOCUMENTS), HELD_OUT)
    figures = {
        "task": given.name,
        "digest": given.digest,
        "documents": len(given.documents),
        "steps": STEPS,
        "bm25": given.bm25,
        "runs": {},
    }
    found = {}
    for seed in range(SEEDS):
        for name, arm in contestants(DOCUMENTS).items():
            run = trained(arm, given, bag(given, seed), seed, STEPS, RATE)
            found.setdefault(name, []).append(read(run.pop("ranks")))
            figures["runs"].setdefault(name, []).append(run)
            print(seed, name, run["mrr"], flush=True)
    mean = {name: np.mean(rows, axis=0) for name, rows in found.items()}
    exact = mean.pop("full softmax")
    figures["less_full_softmax"] = {
        name: bootstrapped(rows, exact) | {"share": float(rows.mean() / exact.mean())}
        for name, rows in mean.items()
    }
    measure.write("ceiling", figures)


if __name__ == "__main__":
    main(*sys.argv[1:])
