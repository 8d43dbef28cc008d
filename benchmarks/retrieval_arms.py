"""What the retrieval benchmarks share: corpora, one transformer, and contestants."""

import os
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import effgen as eg
from effgen import retrieval_cache as rc


WORDS, LENGTH, QUERY_LENGTH = 32_768, 32, 24
WIDTH, DEPTH, SIZE, RATE, TEMPERATURE = 128, 2, 128, 1e-3, 0.05
BATCH, REFRESHED, HELD_OUT = 32, 32, 2_000
CORPORA = {
    "examples": lambda: rc.examples_to_synsets(rc.wordnet()),
    "definitions": lambda: rc.definitions_to_lemmas(rc.wordnet()),
    # apt's lists, with English descriptions: `descriptions` says how to have them.
    "debian": lambda: rc.descriptions(os.environ.get("LISTS", "/var/lib/apt/lists")),
}


class Task(NamedTuple):
    """A corpus as arrays."""

    name: str
    digest: str
    documents: np.ndarray
    pairs: rc.Pairs
    queries: np.ndarray
    answers: rc.Relevant
    bm25: dict[str, float]


class Arm(NamedTuple):
    """A contestant: its trainer, its batch, whether it has a cache, and its cost.

    `embedded` counts texts a step: one with gradient as one, one without as a third,
    one that is computed twice as four thirds.
    """

    trainer: Any
    batch_size: int
    cached: bool
    embedded: float


def task(kind):
    """Return the task, split by what its queries say."""
    words = rc.HashedWords(WORDS, LENGTH)
    # Documents that their tokens cannot tell apart count as one.
    corpus = rc.merged(CORPORA[kind](), words)
    train, test = rc.split(corpus, HELD_OUT)
    asked = rc.HashedWords(WORDS, QUERY_LENGTH)
    return Task(
        corpus.name,
        corpus.digest(),
        words(corpus.documents),
        rc.pairs_of(train, words, asked),
        asked(test.queries),
        rc.answers(test),
        bm25(corpus, test),
    )


def bm25(corpus, test):
    """Return the measures of BM25, of words as they are."""
    import bm25s

    index = bm25s.BM25()
    tokens = lambda texts: bm25s.tokenize(list(texts), show_progress=False)
    index.index(tokens(corpus.documents), show_progress=False)
    found, _ = index.retrieve(tokens(test.queries), k=10, show_progress=False)
    answers = rc.answers(test)
    ranked = jnp.asarray(found.astype(np.int32))
    given = rc.Relevant(jnp.asarray(answers.ids))
    return {
        "mrr": float(rc.reciprocal_rank(ranked, given).mean()),
        "recall": float(rc.recall(ranked, given).mean()),
    }


def encoder(seed):
    """Return the tower of both sides, from nothing."""
    return rc.TwoTowers.tied(
        rc.Transformer(
            WORDS,
            LENGTH,
            key=jax.random.key(seed),
            width=WIDTH,
            depth=DEPTH,
            size=SIZE,
        )
    )


def arms(rows):
    """Return the contestants for a corpus of so many documents."""
    optim = optax.adam(optax.linear_schedule(0.0, RATE, 100))
    refresh = REFRESHED / rows
    cached = lambda num, times=1, **settings: Arm(
        rc.NegativeCacheTrainer(
            optim, num, temperature=TEMPERATURE, refresh=refresh, **settings
        ),
        times * BATCH,
        cached=True,
        embedded=2 * times * BATCH + num + REFRESHED / 3,
    )
    alone = lambda times, chunks=1: Arm(
        rc.InBatchTrainer(optim, temperature=TEMPERATURE, chunks=chunks),
        times * BATCH,
        cached=False,
        embedded=2 * times * BATCH * (1 if chunks == 1 else 4 / 3),
    )
    queue = rc.CrossBatchTrainer(optim, temperature=TEMPERATURE)
    return {
        "in batch": alone(1),
        "in batch, 3 x": alone(3),
        "in batch, 16 x, in chunks": alone(16, chunks=16),
        "cross-batch memory": Arm(queue, BATCH, cached=True, embedded=2 * BATCH),
        "paper's estimator": cached(BATCH, estimator=rc.GumbelMax()),
        "paper's estimator, 4 draws": cached(4 * BATCH, estimator=rc.GumbelMax()),
        "pseudo-logit": cached(BATCH),
        "pseudo-logit, 4 draws": cached(4 * BATCH),
        "pseudo-logit, batch 3 x": cached(BATCH, 3),
    }


def filled(task, seed):
    """Return towers and a cache of the corpus as they embed it, from nothing."""
    model = encoder(seed)
    return model, rc.NegativeCache.fill(model.document, task.documents)


def begun(arm, task, first):
    """Return the first state of a run, and its data; `first`, from `filled`."""
    model, cache = first
    state = arm.trainer.init(model, cache if arm.cached else None)
    return state, eg.Minibatches(task.pairs, arm.batch_size)
