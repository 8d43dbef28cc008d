"""Retrieval's part: a dictionary in reverse, from definitions to words.

All senses of WordNet, each as its words and those of the more general sense above it:
"dentist, tooth doctor, dental practitioner (medical practitioner, medical man)". The
queries are their definitions, 2,000 of them held out; towers start at random.
"""

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import bm25s
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import PRNGKeyArray

import effgen as eg
from effgen import retrieval_cache as rc


WORDS = rc.HashedWords(num_words=65_536, length=96, grams=(3, 4))
SIZE = 64
NUM_HELD_OUT = 2_000
BATCH_SIZE = 64
NUM_STEPS = 800
NUM_LONGER = 4_000
NUM_MEASURED = 4

# Typed by a person, and in no definition of WordNet as they stand.
TYPED = (
    "a small domesticated animal that catches mice",
    "someone who keeps bees",
    "a river of ice that moves slowly",
    "an instrument that shows where north is",
    "a doctor who looks after teeth",
)
NUM_ASKED = 3


class Task(NamedTuple):
    """The corpus by queries to train and to test on, and both as tokens."""

    train: rc.Corpus
    test: rc.Corpus
    documents: np.ndarray
    pairs: rc.Pairs
    queries: np.ndarray


class Outcome(NamedTuple):
    """How well a ranking answers held-out definitions, as its training goes on.

    MRR@10 and recall@10 over the whole corpus; `seconds`, of training alone.
    """

    name: str
    model: Any
    steps: list[int]
    seconds: list[float]
    mrr: list[float]
    recall: list[float]


class Example(NamedTuple):
    """A query, the words found, best first, and the held-out answer if there is one."""

    query: str
    found: list[str]
    answer: str | None


def task() -> Task:
    """Return WordNet, as words to find by their definitions."""
    corpus = rc.merged(rc.definitions_to_lemmas(rc.wordnet()), WORDS)
    train, test = rc.split(corpus, NUM_HELD_OUT)
    pairs = rc.pairs_of(train, WORDS)
    return Task(train, test, WORDS(corpus.documents), pairs, WORDS(test.queries))


def baseline(task: Task) -> Outcome:
    """Return what BM25 finds: bm25s by its defaults, English stop words left out."""
    began = time.perf_counter()
    searcher = bm25s.BM25()
    searcher.index(_words(task.test.documents), show_progress=False)
    asked = _words(task.test.queries)
    numbers, _ = searcher.retrieve(asked, k=10, show_progress=False)
    seconds = time.perf_counter() - began
    found, relevant = jnp.asarray(numbers.astype(np.int32)), rc.answers(task.test)
    mrr = float(rc.reciprocal_rank(found, relevant).mean())
    recall = float(rc.recall(found, relevant).mean())
    return Outcome("BM25", None, [0], [seconds], [mrr], [recall])


def _words(texts: Any) -> Any:
    return bm25s.tokenize(list(texts), show_progress=False)


def model(key: PRNGKeyArray) -> rc.Tied:
    """Return one encoder for both towers: of words, and of letters three and four."""
    return rc.TwoTowers.tied(rc.HashedBag(WORDS.num_words, SIZE, SIZE, key=key))


class Arm(NamedTuple):
    """A way to train, and for how many steps."""

    trainer: rc.NegativeCacheTrainer | rc.InBatchTrainer
    num_steps: int


def arms() -> dict[str, Arm]:
    """Return the methods: negatives from the whole corpus, or from the batch.

    The batch's softmax once for as many steps and once for about as many seconds. Rate
    and temperature are the best of a few for either.
    """
    cached = rc.NegativeCacheTrainer(
        adam(1e-2, NUM_STEPS), num_negatives=256, temperature=0.1, refresh=1e-3
    )
    short = rc.InBatchTrainer(adam(1e-2, NUM_STEPS), temperature=0.1)
    longer = rc.InBatchTrainer(adam(1e-2, NUM_LONGER), temperature=0.1)
    return {
        "negative cache": Arm(cached, NUM_STEPS),
        "in-batch softmax": Arm(short, NUM_STEPS),
        "in-batch softmax, as long": Arm(longer, NUM_LONGER),
    }


def adam(learning_rate: float, num_steps: int) -> optax.GradientTransformation:
    """Return Adam with a learning rate that falls to zero as a cosine."""
    return optax.adam(optax.cosine_decay_schedule(learning_rate, num_steps))


def train(
    name: str, arm: Arm, task: Task, directory: Path, key: PRNGKeyArray
) -> Outcome:
    """Train, with a bar, a log and checkpoints; rank for the held-out definitions."""
    keys, num_steps = jax.random.split(key), arm.num_steps
    state = start(arm.trainer, model(keys[0]), task)
    data = eg.Minibatches(task.pairs, BATCH_SIZE)
    run = eg.train(
        arm.trainer,
        state,
        data,
        key=keys[1],
        num_steps=num_steps,
        every=num_steps // NUM_MEASURED,
    )
    file = name.replace(",", "").replace(" ", "-")
    run = eg.logged(eg.progress(run), directory / f"{file}.jsonl")
    run = eg.checkpointed(run, directory / f"{file}-checkpoints", every=1_000, keep=1)
    outcome, seconds = Outcome(name, state.model, [], [], [], []), 0.0
    began = time.perf_counter()
    for state, _ in run:
        seconds += time.perf_counter() - began
        found = measured(state.model, task)
        outcome.steps.append(int(state.step))
        outcome.seconds.append(seconds)
        outcome.mrr.append(found["mrr"])
        outcome.recall.append(found["recall"])
        began = time.perf_counter()
    return outcome._replace(model=state.model)


def start(trainer: Any, towers: rc.Tied, task: Task) -> eg.TrainState:
    """Return the first state, with all documents in the cache if there is one."""
    if isinstance(trainer, rc.InBatchTrainer):
        return trainer.init(towers)
    cache = rc.NegativeCache.fill(towers.document, task.documents)
    return trainer.init(towers, cache)


def index(model: Any, task: Task) -> rc.Index:
    """Return all words as the model embeds them."""
    return rc.Index.of(model.document, task.documents, batch_size=4_096)


def measured(model: Any, task: Task) -> dict[str, float]:
    """Return the measures of the held-out definitions."""
    answers = rc.answers(task.test)
    return rc.evaluate(model, task.queries, answers, index(model, task)).means()


def examples(model: Any, task: Task) -> list[Example]:
    """Return the top five for what was typed, and for the first definitions held out.

    Words of the more general senses are left out of what is shown.
    """
    held_out = list(zip(task.test.queries, task.test.relevant))[:NUM_ASKED]
    asked = [(query, None) for query in TYPED]
    asked += [(query, ", ".join(named(task, row))) for query, row in held_out]
    queries = model.query(jnp.asarray(WORDS([query for query, _ in asked])))
    found = np.asarray(index(model, task).search(queries, 5).ids).tolist()
    return [
        Example(query, named(task, row), answer)
        for (query, answer), row in zip(asked, found, strict=True)
    ]


def named(task: Task, numbers: Iterable[int]) -> list[str]:
    """Return the words of documents, without those of the more general senses."""
    return [task.test.documents[number].split(" (")[0] for number in numbers]
