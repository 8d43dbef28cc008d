"""What the retrieval benchmarks share: corpora, one transformer, and contestants."""

import os
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import effgen as eg
from effgen import retrieval_cache as rc


def at_temperature(name, temperature):
    """Return the name of a contestant at that temperature."""
    return f"{name}, temperature {temperature}"


WORDS, LENGTH, QUERY_LENGTH = 32_768, 32, 24
WIDTH, DEPTH, SIZE, RATE = 128, 2, 128, 1e-3
TEMPERATURE, WARMER = 0.05, 0.1
WARM_UP, REFRESHED, HELD_OUT, QUEUED, ALONE = 50, 32, 2_000, 4_096, 500
OURS, PAPER = "pseudo-logit, 96 and 32 drawn", "paper's estimator, 96 and 96 drawn"
BAG_WIDTH, BAG_RATE = 64, 1e-2
PLAIN, QUEUE = "in batch of 96", "cross-batch memory, 96"
LARGE, LONG = "in batch of 288", "in batch of 288, as many steps as ours"
CHUNKS, FAST = "in batch of 512, in chunks", "in batch of 512, in chunks, rate 0.002"
HUGE = "in batch of 1,536, in chunks, rate 0.002"
HUGE_FAST = "in batch of 1,536, in chunks, rate 0.004"
BEGUN = "in batch of 512, in chunks, for half the time, then pseudo-logit"
WARM, WARM_FAST, WARM_LONG = (at_temperature(n, WARMER) for n in (OURS, FAST, LONG))
# Who costs a step what another does.
TWINS = {LONG: LARGE, FAST: CHUNKS, BEGUN: OURS, HUGE_FAST: HUGE}
TWINS |= {WARM: OURS, WARM_FAST: CHUNKS, WARM_LONG: LARGE}
# As many settings as batches had, of the paper's estimator and of the queue.
OTHERS = {
    PAPER: [(5e-4, TEMPERATURE), (2e-3, TEMPERATURE), (RATE, WARMER), (5e-4, WARMER)],
    QUEUE: [(2e-3, TEMPERATURE), (RATE, WARMER), (2e-3, WARMER)],
}


def at_setting(name, rate, temperature):
    """Return the name of a contestant at a rate and a temperature."""
    return at_temperature(f"{name}, rate {rate:g}", temperature)


TWINS |= {at_setting(n, *s): n for n, settings in OTHERS.items() for s in settings}
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
    """A contestant: its trainer by its optimizer, and its batch.

    `memory` makes the cache of its first state of a task and of all that is embedded.
    `embedded` counts texts a step: one with gradient as one, one without as a third,
    one that is computed twice as four thirds. `rate`, the highest of its optimizer.
    `begins`, who trains for the first half of the time, before the cache is filled.
    """

    trainer: Callable[[optax.GradientTransformation], Any]
    batch_size: int
    memory: Callable[[Task, rc.NegativeCache], rc.NegativeCache | None]
    embedded: float
    rate: float = RATE
    begins: "Arm | None" = None


def task(kind):
    """Return the task of a whole corpus."""
    return divided(CORPORA[kind](), HELD_OUT)


def divided(corpus, held_out):
    """Return a corpus as a task, split by what its queries say."""
    words = rc.HashedWords(WORDS, LENGTH)
    # Documents that their tokens cannot tell apart count as one.
    corpus = rc.merged(corpus, words)
    train, test = rc.split(corpus, held_out)
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
    return {
        OURS: cached(rows, 96, 32, rc.PseudoLogit()),
        PLAIN: in_batch(96),
        PAPER: cached(rows, 96, 96, rc.GumbelMax()),
        LARGE: in_batch(288),
        CHUNKS: in_batch(512, num_chunks=16),
        FAST: in_batch(512, num_chunks=16, rate=2e-3),
        LONG: in_batch(288),
        "pseudo-logit, 256 and 32 drawn, in chunks": cached(
            rows, 256, 32, rc.PseudoLogit(), num_chunks=8
        ),
        QUEUE: queued(),
        "pseudo-logit, 64 and 64 drawn": cached(rows, 64, 64, rc.PseudoLogit()),
        BEGUN: cached(rows, 96, 32, rc.PseudoLogit())._replace(
            begins=in_batch(512, num_chunks=16, rate=2e-3)
        ),
        HUGE: in_batch(1_536, num_chunks=48, rate=2e-3),
        HUGE_FAST: in_batch(1_536, num_chunks=48, rate=4e-3),
        WARM: cached(rows, 96, 32, rc.PseudoLogit(), temperature=WARMER),
        WARM_FAST: in_batch(512, num_chunks=16, rate=2e-3, temperature=WARMER),
        WARM_LONG: in_batch(288, temperature=WARMER),
        **{
            at_setting(PAPER, rate, t): cached(
                rows, 96, 96, rc.GumbelMax(), temperature=t
            )._replace(rate=rate)
            for rate, t in OTHERS[PAPER]
        },
        **{at_setting(QUEUE, rate, t): queued(rate, t) for rate, t in OTHERS[QUEUE]},
    }


def queued(rate=RATE, temperature=TEMPERATURE):
    """Return a contestant with a queue."""
    return Arm(
        lambda optim: rc.CrossBatchTrainer(
            optim, temperature=temperature, warm_up=ALONE
        ),
        96,
        lambda given, _: rc.NegativeCache.empty(given.documents[:1], SIZE, QUEUED),
        embedded=2 * 96,
        rate=rate,
    )


def in_batch(size, num_chunks=1, rate=RATE, temperature=TEMPERATURE):
    """Return a contestant without a memory."""
    return Arm(
        lambda optim: rc.InBatchTrainer(
            optim, temperature=temperature, num_chunks=num_chunks
        ),
        size,
        lambda given, cache: None,
        embedded=2 * size * again(num_chunks),
        rate=rate,
    )


def again(num_chunks):
    """Return what a text embedded counts for, by how many chunks there are."""
    return 1 if num_chunks == 1 else 4 / 3


def cached(
    rows,
    size,
    num,
    estimator,
    num_chunks=1,
    temperature=TEMPERATURE,
    refreshed=REFRESHED,
):
    """Return a contestant with a cache of so many rows."""
    return Arm(
        lambda optim: rc.NegativeCacheTrainer(
            optim,
            num,
            temperature=temperature,
            refresh=refreshed / rows,
            estimator=estimator,
            num_chunks=num_chunks,
        ),
        size,
        kept,
        embedded=(2 * size + num) * again(num_chunks) + refreshed / 3,
    )


def kept(given, cache):
    """Return the memory of a contestant whose cache holds the corpus."""
    return cache


def falling(num_steps, rate):
    """Return a rate that rises, then falls to nothing over so many steps."""
    warm_up = min(WARM_UP, num_steps // 4)
    return optax.warmup_cosine_decay_schedule(0.0, rate, warm_up, num_steps)


def halved(one, two, rates):
    """Return a rate that falls by time, of which `one` and `two` steps take half each.

    Either half has its own: by `falling`, of one of the `rates`.
    """
    whole = falling(2 * one, 1.0)

    def rate(count):
        by_time = jnp.where(count < one, count, one + (count - one) * one / two)
        return jnp.where(count < one, *rates) * whole(by_time)

    return rate


def filled(task, seed):
    """Return towers and a cache of the corpus as they embed it, from nothing."""
    model = encoder(seed)
    return model, rc.NegativeCache.fill(model.document, task.documents)


def bag(given, seed):
    """Return a bag of words for both sides, and a cache of the corpus by it."""
    table = rc.HashedBag(WORDS, BAG_WIDTH, BAG_WIDTH, key=jax.random.key(seed))
    model = rc.TwoTowers.tied(table)
    return model, rc.NegativeCache.fill(model.document, given.documents)


def begun(arm, task, first, num_steps, rate=None):
    """Return trainer, first state and data; `first`, from `filled` or `bag`."""
    model, cache = first
    trainer = arm.trainer(optax.adam(falling(num_steps, rate or arm.rate)))
    state = trainer.init(model, arm.memory(task, cache))
    return trainer, state, eg.Minibatches(task.pairs, arm.batch_size)
