"""How near the cache comes to the exact softmax over a corpus, at equal steps.

`python -m benchmarks.ceiling [CORPUS]`: 5,000 documents of `debian` or another corpus
of `benchmarks.retrieval_arms`, a hashed bag of words, so that every document can be
embedded at every step. Held-out queries against all documents, three seeds.
"""

import sys

import jax
import optax

import effgen as eg
from benchmarks import measure
from benchmarks.retrieval import bootstrapped, evaluated
from benchmarks.retrieval_arms import CORPORA, TEMPERATURE, WORDS, divided
from effgen import retrieval_cache as rc


DOCUMENTS, HELD_OUT, SEEDS, STEPS = 5_000, 500, 3, 1_500
RATE, WIDTH, BATCH = 5e-3, 64, 32


def contestants():
    optim = optax.adam(optax.warmup_cosine_decay_schedule(0.0, RATE, 50, STEPS))
    cached = lambda num, estimator: rc.NegativeCacheTrainer(
        optim,
        num,
        temperature=TEMPERATURE,
        refresh=BATCH / DOCUMENTS,
        estimator=estimator,
    )
    return {
        "full softmax": rc.FullSoftmaxTrainer(optim, temperature=TEMPERATURE),
        "pseudo-logit, 32 drawn": cached(BATCH, rc.PseudoLogit()),
        "pseudo-logit, 128 drawn": cached(4 * BATCH, rc.PseudoLogit()),
        "paper's estimator, 32 drawn": cached(BATCH, rc.GumbelMax()),
        "paper's estimator, 128 drawn": cached(4 * BATCH, rc.GumbelMax()),
        "in batch of 32": rc.InBatchTrainer(optim, temperature=TEMPERATURE),
    }


def trained(trainer, given, seed):
    table = rc.HashedBag(WORDS, WIDTH, WIDTH, key=jax.random.key(seed))
    model = rc.TwoTowers.tied(table)
    cache = rc.NegativeCache.fill(model.document, given.documents)
    alone = isinstance(trainer, rc.InBatchTrainer)
    state = trainer.init(model, None if alone else cache)
    source, key = eg.Minibatches(given.pairs, BATCH), jax.random.key(seed)
    state, _ = eg.fit(trainer, state, source, key=key, num_steps=STEPS)
    return evaluated(state.model, given)


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
        for name, trainer in contestants().items():
            run = trained(trainer, given, seed)
            figures["runs"].setdefault(name, []).append(run.means())
            found.setdefault(name, []).append(run.mrr)
            print(seed, name, run.means()["mrr"], flush=True)
    mean = {name: sum(rows) / len(rows) for name, rows in found.items()}
    exact = mean.pop("full softmax")
    figures["less_full_softmax"] = {
        name: bootstrapped(rows, exact) | {"share": float(rows.mean() / exact.mean())}
        for name, rows in mean.items()
    }
    measure.write("ceiling", figures)


if __name__ == "__main__":
    main(*sys.argv[1:])
