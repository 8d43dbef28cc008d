"""Documents that stay as MiniLM embeds them: the corpus's softmax against batches.

`python -m benchmarks.frozen_documents CORPUS SECONDS [SEEDS [DOCUMENTS [PAIRS]]]`. A
query tower, a transformer from nothing, learns to find documents of an index that
nobody embeds again. Contestants: batches of several sizes, whose negatives are the
batch's documents, and the softmax of the index, whole or by drawn rows
(`FrozenDocumentsTrainer`). With `PAIRS`, only so many are trained on: most documents
then have no query, and no batch has them as negatives.

Seconds are the processor's (`time.process_time`), of all threads, so that others' work
on the machine counts little. First those of a step of each contestant, in turns; then
each trains for as many steps as the budget allows, at every rate and temperature of one
grid, and is judged on queries held out of training; the best of each trains once more
for every seed, and is judged on queries that nothing was chosen by. With `SECONDS` 0,
each takes as many steps as `TEXTS` queries allow, without a clock: values only. Run
again with the same arguments, it goes on with what is missing.
"""

import hashlib
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

import effgen as eg
from benchmarks import measure
from benchmarks.retrieval import bootstrapped, read, spelled
from benchmarks.retrieval_arms import CORPORA, DEPTH, WIDTH, WORDS, falling
from demo import senses
from effgen import retrieval_cache as rc
from effgen.core.data.ragged import is_ragged


LENGTH, HELD_OUT, ROUNDS, TEXTS = 24, 1_000, 5, 96 * 300
RATES, TEMPERATURES = (1e-3, 3e-3), (0.03, 0.07)


class Contestant(NamedTuple):
    """Queries a step; rows of the index that it scores, none for a batch's own."""

    size: int
    rows: int | None = None


EVERY = -1
CONTESTANTS = {
    "whole index, 96": Contestant(96, EVERY),
    "whole index, 256": Contestant(256, EVERY),
    "4,096 rows drawn, 256": Contestant(256, 4_096),
    "in batch of 96": Contestant(96),
    "in batch of 512": Contestant(512),
    "in batch of 1,536": Contestant(1_536),
}


class Asking(eqx.Module):
    """A model of queries; of documents, what is looked up where they are embedded."""

    query: rc.Transformer
    rows: Any = eqx.field(static=True)

    def document(self, numbers):
        return jnp.asarray(self.rows.array)[numbers[:, 0]]


class Rows:
    """Embeddings by identity, so that they are no parameter."""

    def __init__(self, array):
        self.array = array


class Task(NamedTuple):
    """Queries' tokens to train on, to choose by and to test on, and the documents."""

    documents: rc.Index
    rows: Rows
    pairs: rc.Pairs
    chosen: tuple[np.ndarray, rc.Relevant]
    tested: tuple[np.ndarray, rc.Relevant]
    told: dict[str, Any]


def minilm(texts):
    """Return MiniLM's embeddings, of length one, made once."""
    name = hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]
    path = Path(tempfile.gettempdir()) / f"effgen_minilm_{name}.npy"
    if not path.exists():
        np.save(path, senses.minilm()(texts))
    return np.load(path)


def task(kind, num_documents, num_pairs=None):
    """Return a corpus's first documents by content, and its queries in three."""
    corpus = rc.subset(CORPORA[kind](), num_documents)
    rest, test = rc.split(corpus, HELD_OUT)
    train, choose = rc.split(rest, HELD_OUT, seed=1)
    words = rc.HashedWords(WORDS, LENGTH)
    embeddings = minilm(corpus.documents)
    pairs = rc.pairs_of(train, lambda texts: np.zeros((len(texts), 1)), words)
    if num_pairs is not None:
        some = np.random.default_rng(0).permutation(len(pairs.ids))[:num_pairs]
        pairs = jax.tree.map(lambda x: x[some], pairs, is_leaf=is_ragged)
    numbers = pairs.ids[:, None]
    return Task(
        rc.Index.from_embeddings(embeddings),
        Rows(embeddings),
        pairs._replace(documents=numbers),
        (words(choose.queries), rc.answers(choose)),
        (words(test.queries), rc.answers(test)),
        {"task": corpus.name, "digest": corpus.digest(), "pairs": len(numbers)},
    )


def begun(given, name, num_steps, rate, temperature, seed):
    """Return trainer, first state and data of a contestant."""
    size, rows = CONTESTANTS[name]
    key = jax.random.key(seed)
    tower = rc.Transformer(WORDS, LENGTH, key=key, width=WIDTH, depth=DEPTH, size=384)
    optim = optax.adam(falling(num_steps, rate))
    options = {"temperature": temperature, "num_chunks": max(1, size // 32)}
    model, source = Asking(tower, given.rows), eg.Minibatches(given.pairs, size)
    if rows is None:
        trainer = rc.InBatchTrainer(optim, **options)
        return trainer, trainer.init(model), source
    drawn = None if rows == EVERY else rows
    trainer = rc.FrozenDocumentsTrainer(optim, **options, drawn=drawn)
    return trainer, trainer.init(model, given.documents), source


def trained(given, name, num_steps, rate, temperature, seed, judged):
    """Return each judged query's reciprocal rank."""
    trainer, state, source = begun(given, name, num_steps, rate, temperature, seed)
    key = jax.random.key(seed + 1)
    state, _ = eg.fit(trainer, state, source, key=key, num_steps=num_steps)
    return np.asarray(rc.evaluate(state.model, *judged, given.documents).mrr)


def seconds_per_step(given):
    """Return the median of a step's processor seconds, contestants in turn."""

    def steps(name):
        trainer, state, source = begun(given, name, 100, RATES[0], TEMPERATURES[0], 0)
        key, num = jax.random.key(0), max(2, 1_536 // CONTESTANTS[name].size)
        take = lambda: eg.fit(trainer, state, source, key=key, num_steps=num)[0].model
        return take, num

    work = {name: steps(name) for name in CONTESTANTS}
    times = measure.interleaved(
        {n: take for n, (take, _) in work.items()},
        rounds=ROUNDS,
        clock=time.process_time,
    )
    return {n: statistics.median(t) / work[n][1] for n, t in times.items()}


def entered(given, name, num_steps, seeds):
    """Return what a contestant reaches: over the grid, and at its best by seed."""
    chosen = {
        (rate, temperature): trained(
            given, name, num_steps, rate, temperature, 0, given.chosen
        )
        for rate in RATES
        for temperature in TEMPERATURES
    }
    best = max(chosen, key=lambda setting: chosen[setting].mean())
    runs = [
        trained(given, name, num_steps, *best, seed, given.tested)
        for seed in range(seeds)
    ]
    return {
        "validation": {str(s): float(mrr.mean()) for s, mrr in chosen.items()},
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
    if all(earlier.get(key) == value for key, value in asked.items()):
        return {k: v for k, v in earlier.items() if k not in ("benchmark", "machine")}
    if not asked["processor_seconds"]:
        steps = {name: round(TEXTS / c.size) for name, c in CONTESTANTS.items()}
        return {**asked, "steps": steps, "arms": {}}
    cost = seconds_per_step(given)
    steps = {n: round(asked["processor_seconds"] / s) for n, s in cost.items()}
    return {**asked, "seconds_per_step": cost, "steps": steps, "arms": {}}


def main(kind, budget, seeds=3, num_documents=16_000, num_pairs=None):
    given = task(kind, num_documents, num_pairs)
    few = "" if num_pairs is None else f"_{num_pairs}"
    asked = {
        **given.told,
        "name": f"frozen_{kind}{few}",
        "documents": num_documents,
        "processor_seconds": budget,
        "seeds": seeds,
    }
    figures = planned(given, asked)
    for name in CONTESTANTS:
        if name not in figures["arms"]:
            arm = entered(given, name, figures["steps"][name], seeds)
            figures["arms"][name] = arm
            figures["index_less_batches"] = compared(figures["arms"])
            measure.write(asked["name"], figures)
            print(name, arm["validation"], arm["mrr"], file=sys.stderr, flush=True)


if __name__ == "__main__":
    kind, budget, *rest = sys.argv[1:]
    main(kind, float(budget), *map(int, rest))
