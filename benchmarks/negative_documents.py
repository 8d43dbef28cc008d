"""Which documents may be negatives: all, or those that some training query asks for.

`python -m benchmarks.negative_documents [SEEDS]`. A document that no training query
asks for is never a positive, so a model learns that it is no answer. Held-out queries
ask for such documents. Debian's packages: a bag of words with a cache of all documents,
and with one of those that are asked for. WordNet's definitions: a linear adapter of
MiniLM's queries, against MiniLM's documents, which stay; the softmax of the whole
index, that of the asked documents, and a large batch, at rates from one grid, chosen by
queries that are held out for it. As many steps each. Held-out queries are ranked
against the whole corpus.
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax

import effgen as eg
from benchmarks import frozen_documents, measure, retrieval
from benchmarks.retrieval_arms import BAG_RATE, bag, cached, task
from demo.senses import Adapter
from effgen import retrieval_cache as rc


NUM_STEPS, TEMPERATURE = 2_000, 0.05
NUM_DOCUMENTS, ADAPTER_STEPS = 16_000, 400
RATES, ADAPTER_TEMPERATURE = (3e-4, 1e-3), 0.03
ALL, ASKED, BATCH = "all documents", "asked documents", "in batch of 1,024"


def of_packages(seeds):
    """Return both caches' measures on Debian's packages, by seed."""
    given = task("debian")
    asked, rows = np.unique(given.pairs.ids), len(given.documents)
    arm = cached(rows, 96, 32, rc.PseudoLogit(), temperature=TEMPERATURE)
    arms = {ALL: {"runs": []}, ASKED: {"runs": []}}
    for seed in range(seeds):
        model, every = bag(given, seed)
        only = rc.NegativeCache.fill(
            model.document, given.documents[asked], ids=asked, batch_size=4_096
        )
        for name, cache in ((ALL, every), (ASKED, only)):
            first = (model, cache)
            run = retrieval.trained(arm, given, first, seed, NUM_STEPS, rate=BAG_RATE)
            arms[name]["runs"].append(run)
            print("debian", name, seed, run["mrr"], file=sys.stderr, flush=True)
    return told(arms, given)


def told(arms, given):
    """Return the figures of a corpus: counts, measures, and the differences."""
    for arm in arms.values():
        arm["mrr"] = measure.spread([run["mrr"] for run in arm["runs"]])
    return {
        "documents": len(given.documents),
        "asked": len(np.unique(given.pairs.ids)),
        "arms": arms,
        "asked_less_theirs": retrieval.compared(arms, ASKED),
    }


def adapted(given, index, rate, seed):
    """Return an adapter trained on what `index` has; on batches, if it is `None`."""
    optim = optax.adam(optax.cosine_decay_schedule(rate, ADAPTER_STEPS))
    model = Adapter(jnp.eye(given.documents.shape[1]))
    if index is None:
        trainer = rc.InBatchTrainer(optim, temperature=ADAPTER_TEMPERATURE)
        size = 1_024
    else:
        trainer = rc.FrozenDocumentsTrainer(optim, temperature=ADAPTER_TEMPERATURE)
        size = 256
    state = trainer.init(model, index)
    key = jax.random.key(seed)
    data = eg.Minibatches(given.pairs, size)
    return eg.fit(trainer, state, data, key=key, num_steps=ADAPTER_STEPS)[0].model


def of_definitions(seeds):
    """Return what each way of training an adapter finds, by seed."""
    given = frozen_documents.task("definitions", NUM_DOCUMENTS)
    index, some = given.whole, given.asked
    found = lambda model, part: rc.evaluate(model, *part, index)
    arms = {}
    for name, negatives in {ALL: index, ASKED: some, BATCH: None}.items():
        grid = {
            rate: found(adapted(given, negatives, rate, 0), given.chosen).means()["mrr"]
            for rate in RATES
        }
        best = max(grid, key=lambda rate: grid[rate])
        runs = []
        for seed in range(seeds):
            measures = found(adapted(given, negatives, best, seed), given.tested)
            ranks = retrieval.spelled(np.asarray(measures.mrr))
            runs.append({"seed": seed, **measures.means(), "ranks": ranks})
        arms[name] = {
            "runs": runs,
            "rate": best,
            "temperature": ADAPTER_TEMPERATURE,
            "validation": {str(k): v for k, v in grid.items()},
        }
        print(name, best, [run["mrr"] for run in runs], file=sys.stderr, flush=True)
    untrained = found(Adapter(jnp.eye(given.documents.shape[1])), given.tested)
    figures = told(arms, given)
    return {"untrained": untrained.means()["mrr"], **figures}


if __name__ == "__main__":
    num = int(sys.argv[1]) if sys.argv[1:] else 3
    measure.write(
        "negative_documents",
        {
            "steps": NUM_STEPS,
            "adapter_steps": ADAPTER_STEPS,
            "definitions": of_definitions(num),
            "debian": of_packages(num),
        },
    )
