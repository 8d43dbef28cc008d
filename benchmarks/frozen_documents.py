"""Documents that stay as MiniLM embeds them: the index's softmax against batches.

`python -m benchmarks.frozen_documents CORPUS [SECONDS [SEEDS [DOCUMENTS]]]`. A linear
adapter of MiniLM's queries learns to find documents of an index that nobody embeds
again. Contestants: batches of several sizes, whose negatives are the batch's documents,
and the softmax of the index (`FrozenDocumentsTrainer`): whole, by drawn rows, or of the
documents that some training query asks for.

Seconds are the processor's (`time.process_time`), of all threads, so that others' work
on the machine counts little. First those of a step of each contestant, in turns; then
each trains for as many steps as the budget allows, at every rate and temperature of one
grid, and is judged on queries held out of training; the best of each trains once more
for every seed, and is judged on queries that nothing was chosen by. Run again with the
same arguments, it goes on with what is missing.
"""

import hashlib
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import effgen as eg
from benchmarks import measure
from benchmarks.own_corpora import dictionary, docstrings
from benchmarks.retrieval import bootstrapped, read, spelled
from benchmarks.retrieval_arms import CORPORA
from demo import senses
from demo.senses import Adapter
from effgen import retrieval_cache as rc


HELD_OUT, ROUNDS = 1_000, 5
NUM_TIMED = 60  # with fewer, what a run costs before its first step counts
RATES, TEMPERATURES = (3e-4, 1e-3, 3e-3, 1e-2), (0.02, 0.03, 0.05, 0.08, 0.12)


SOURCES = CORPORA | {"docstrings": docstrings, "dictionary": dictionary}


class Contestant(NamedTuple):
    """Queries a step; rows of the index that it scores, none for a batch's own."""

    size: int
    rows: int | None = None


EVERY, ASKED = -1, -2
CONTESTANTS = {
    "asked documents, 256": Contestant(256, ASKED),
    "whole index, 256": Contestant(256, EVERY),
    "4,096 rows drawn, 256": Contestant(256, 4_096),
    "asked documents, 64": Contestant(64, ASKED),
    "whole index, 64": Contestant(64, EVERY),
    "in batch of 256": Contestant(256),
    "in batch of 512": Contestant(512),
    "in batch of 1,536": Contestant(1_536),
}


class Task(NamedTuple):
    """Embedded documents, pairs of embedded queries, and two parts held out.

    `whole` is the index of all documents, `asked` that of what a query asks for.
    """

    documents: np.ndarray
    pairs: rc.Pairs
    chosen: tuple[np.ndarray, rc.Relevant]
    tested: tuple[np.ndarray, rc.Relevant]
    told: dict[str, Any]
    whole: Any
    asked: Any


def minilm(texts):
    """Return MiniLM's embeddings, of length one, made once."""
    name = hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]
    path = Path(tempfile.gettempdir()) / f"effgen_minilm_{name}.npy"
    if not path.exists():
        np.save(path, senses.minilm()(texts))
    return np.load(path)


def task(kind, num_documents):
    """Return a corpus's first documents by content, and its queries in three."""
    corpus = rc.subset(SOURCES[kind](), num_documents)
    rest, test = rc.split(corpus, HELD_OUT)
    train, choose = rc.split(rest, HELD_OUT, seed=1)
    documents = minilm(corpus.documents)
    ids = np.asarray([positives[0] for positives in train.relevant], np.int32)
    pairs = rc.Pairs(minilm(train.queries), documents[ids], ids)
    asked = np.unique(ids)
    told = {"task": corpus.name, "digest": corpus.digest(), "pairs": len(ids)}
    return Task(
        documents,
        pairs,
        (minilm(choose.queries), rc.answers(choose)),
        (minilm(test.queries), rc.answers(test)),
        told | {"asked": len(asked)},
        rc.Index.from_embeddings(documents),
        rc.Index.from_embeddings(documents[asked], ids=asked),
    )


def begun(given, name, num_steps, rate, temperature, seed):
    """Return trainer, first state and data of a contestant."""
    size, rows = CONTESTANTS[name]
    optim = optax.adam(optax.cosine_decay_schedule(rate, num_steps))
    model = Adapter(jnp.eye(given.documents.shape[1]))
    source = eg.Minibatches(given.pairs, size)
    if rows is None:
        trainer = rc.InBatchTrainer(optim, temperature=temperature)
        return trainer, trainer.init(model), source
    drawn = rows if rows > 0 else None
    trainer = rc.FrozenDocumentsTrainer(optim, temperature=temperature, drawn=drawn)
    index = given.asked if rows == ASKED else given.whole
    return trainer, trainer.init(model, index), source


def trained(given, name, num_steps, rate, temperature, seed, judged):
    """Return each judged query's reciprocal rank."""
    trainer, state, source = begun(given, name, num_steps, rate, temperature, seed)
    key = jax.random.key(seed + 1)
    state, _ = eg.fit(
        trainer, state, source, key=key, num_steps=num_steps, every=num_steps
    )
    return np.asarray(rc.evaluate(state.model, *judged, given.whole).mrr)


def seconds_per_step(given, contestants):
    """Return the median of a step's processor seconds, contestants in turn."""

    def steps(name):
        trainer, state, source = begun(given, name, 100, RATES[0], TEMPERATURES[0], 0)
        key = jax.random.key(0)
        return lambda: (
            eg.fit(
                trainer, state, source, key=key, num_steps=NUM_TIMED, every=NUM_TIMED
            )[0].model
        )

    times = measure.interleaved(
        {name: steps(name) for name in contestants},
        rounds=ROUNDS,
        clock=time.process_time,
    )
    return {n: statistics.median(t) / NUM_TIMED for n, t in times.items()}


def entered(given, name, num_steps, seeds, earlier):
    """Return what a contestant reaches: over the grid, and at its best by seed."""
    chosen = dict(earlier.get("validation", {}))
    grid = [(rate, temperature) for rate in RATES for temperature in TEMPERATURES]
    for setting in grid:
        if str(setting) not in chosen:
            ranks = trained(given, name, num_steps, *setting, 0, given.chosen)
            chosen[str(setting)] = float(ranks.mean())
    best = max(grid, key=lambda setting: chosen[str(setting)])
    if best == (earlier.get("rate"), earlier.get("temperature")):
        return earlier | {"validation": chosen}
    runs = [
        trained(given, name, num_steps, *best, seed, given.tested)
        for seed in range(seeds)
    ]
    return {
        "validation": chosen,
        "rate": best[0],
        "temperature": best[1],
        "mrr": [float(mrr.mean()) for mrr in runs],
        "ranks": [spelled(mrr) for mrr in runs],
    }


def compared(arms):
    """Return the differences of ours to all others, with paired intervals."""
    mean = lambda arm: np.mean([read(ranks) for ranks in arm["ranks"]], axis=0)
    ours = [name for name in arms if CONTESTANTS[name].rows is not None]
    return {
        name: {
            other: bootstrapped(mean(arms[name]), mean(arms[other]))
            for other in arms
            if other != name
        }
        for name in ours
    }


def planned(given, asked):
    """Return the record of an earlier run of the same, or a new one with its steps."""
    path = measure.RESULTS / f"{asked['name']}.json"
    earlier = json.loads(path.read_text()) if path.exists() else {}
    same = all(earlier.get(key) == value for key, value in asked.items())
    known = earlier if same else {"seconds_per_step": {}, "steps": {}, "arms": {}}
    cost, steps = known["seconds_per_step"], known["steps"]
    if missing := [name for name in CONTESTANTS if name not in steps]:
        cost |= seconds_per_step(given, missing)
    steps |= {n: round(asked["processor_seconds"] / cost[n]) for n in missing}
    return asked | {"seconds_per_step": cost, "steps": steps, "arms": known["arms"]}


def main(kind, budget=10.0, seeds=3, num_documents=16_000):
    given = task(kind, num_documents)
    asked = {
        **given.told,
        "name": f"frozen_{kind}",
        "documents": len(given.documents),
        "processor_seconds": budget,
        "seeds": seeds,
    }
    figures = planned(given, asked)
    untrained = Adapter(jnp.eye(given.documents.shape[1]))
    measures = rc.evaluate(untrained, *given.tested, given.whole)
    figures["untrained"] = measures.means()["mrr"]
    for name in CONTESTANTS:
        earlier = figures["arms"].get(name, {})
        if len(earlier.get("validation", {})) < len(RATES) * len(TEMPERATURES):
            arm = entered(given, name, figures["steps"][name], seeds, earlier)
            figures["arms"][name] = arm
            figures["index_less_batches"] = compared(figures["arms"])
            measure.write(asked["name"], figures)
            print(name, arm["validation"], arm["mrr"], file=sys.stderr, flush=True)


if __name__ == "__main__":
    kind, *rest = sys.argv[1:]
    main(kind, *map(float, rest[:1]), *map(int, rest[1:]))
