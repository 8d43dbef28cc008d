"""Baselines besides the batch's softmax: a queue, and the full softmax."""

import dataclasses
from numbers import Integral
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from effgen.core.contract.state import Metrics, TrainState
from effgen.core.contract.trainer import AbstractTrainer
from effgen.core.devices.sharding import mesh_of
from effgen.retrieval_cache.cache.negative_cache import NegativeCache
from effgen.retrieval_cache.cache.refresh import StepEmbeddings
from effgen.retrieval_cache.cache.stream import PositivesIn
from effgen.retrieval_cache.data.pairs import (
    Pairs,
    as_pairs,
    batch_documents,
    marks,
    num_documents,
    num_pairs,
    weighed,
)
from effgen.retrieval_cache.encoders.towers import Temperature, embed, is_random
from effgen.retrieval_cache.softmax.negatives import excluded_by, scored_in_batch
from effgen.retrieval_cache.softmax.objective import batch_scores, cross_entropy
from effgen.retrieval_cache.softmax.scan import Scored
from effgen.retrieval_cache.softmax.stale import stale_logit

from .checks import (
    check_contents,
    check_pairs,
    check_smoothing,
    check_stamps,
    check_taken_in,
    check_temperature,
    check_weights,
)
from .gradients import full_softmax_loss
from .metrics import described
from .origins import check_origin
from .trainer import (
    first_state,
    refreshed,
    same_documents,
    scale_of,
    updated,
)


class CrossBatchTrainer(AbstractTrainer):
    """Softmax over the batch and a queue of past documents, without their gradient.

        loss = logsumexp([scores in batch, stale scores of the queue]) - positive

    Arguments:
        optim: The optax optimizer.
        temperature: A number, an optax schedule, or `None` for the model's own.
        label_smoothing: The share, below 1, spread over the batch's documents.
        warm_up: Steps with the batch alone, while the queue fills. Untrained towers
            change so fast that the queue's documents are too stale for training.
        mesh: The queue's mesh; `train` sets it.

    Raises:
        TypeError: For an invalid temperature.
        ValueError: For settings out of range.

    Source:
        Wang et al. (2020), cross-batch memory.
    """

    watched: ClassVar[tuple[str, ...]] = ("loss", "scale", "coverage")

    optim: optax.GradientTransformation
    temperature: Temperature = 0.05
    label_smoothing: float = eqx.field(default=0.0, kw_only=True)
    warm_up: int = eqx.field(default=0, kw_only=True)
    mesh: Mesh | None = eqx.field(default=None, static=True, kw_only=True)

    def __check_init__(self) -> None:
        """Raise for settings out of range."""
        check_temperature(self.temperature)
        check_smoothing(self.label_smoothing)
        if not isinstance(self.warm_up, Integral) or self.warm_up < 0:
            raise ValueError(
                f"`warm_up` is {self.warm_up}: pass a number of steps, or 0."
            )

    def init(self, model: PyTree, memory: NegativeCache | None = None) -> TrainState:
        """Return the first state.

        Arguments:
            model: The towers, such as `TwoTowers`.
            memory: The queue, a `NegativeCache`, empty or full.

        Returns:
            The state at step 0.

        Raises:
            TypeError: For a model without towers, or what is no cache.
            ValueError: For towers that do not fit the cache, or lack a temperature, or
                a queue that the query tower filled.

        Warns:
            UserWarning: If another model made the queue's newest embeddings.
        """
        state = first_state(self, model, memory)
        check_origin(state.model, state.memory)
        return state

    def step(
        self, state: TrainState, batch: PyTree, *, key: PRNGKeyArray
    ) -> tuple[TrainState, Metrics]:
        """Take one step, then queue the batch's documents.

        Arguments:
            state: The state before.
            batch: `Pairs`, or a tuple or dict of their fields.
            key: The step's key, for dropout.

        Returns:
            The next state, and the metrics `loss`, in nats, `scale`, `grad_norm`, and
                the queue's `coverage`, `age` and `oldest`, as of
                `NegativeCacheTrainer`.
        """
        pairs, cache = as_pairs(batch), state.memory
        keys, found = jax.random.split(key, 3), marks(as_pairs(batch))

        def loss(model: PyTree) -> tuple[Array, Array]:
            queries = embed(model.query, pairs.queries, key=keys[0])
            documents = embed(model.document, batch_documents(pairs), key=keys[1])
            scale = scale_of(self.temperature, state, model)
            negatives = scored_in_batch(pairs, found, cache)
            scores = batch_scores(queries, documents, scale, negatives)
            scored = Scored.of(cache, excluded_by(pairs, found, cache))
            logit = stale_logit(scored, queries, scale, cache.block, self.mesh)
            logit = jnp.where(state.step < self.warm_up, -jnp.inf, logit)
            losses = cross_entropy(scores, logit[:, None], self.label_smoothing)
            return weighed(losses, pairs), jax.lax.stop_gradient(documents)

        model, opt_state, metrics, documents = updated(self, state, loss)
        if is_random(state.model, state.model.document):
            documents = embed(state.model.document, batch_documents(pairs))
        seen = _of_batch(pairs, documents)
        given = cache, PositivesIn(), seen, model, state.step + 1
        new = refreshed(*given, key=keys[2], mesh=self.mesh)
        metrics |= described(new, state.step)
        return state.advance(model, opt_state, new), metrics

    def check(self, state: TrainState, batch: PyTree, source: Any) -> None:
        """Raise on batches that the towers or the queue cannot use.

        Arguments:
            state: The state that the run begins from.
            batch: The shapes of a batch.
            source: The data, whose weights are looked at.

        Raises:
            TypeError: For a batch that is no `Pairs`, or numbers that are no integers.
            ValueError: For shapes or types that do not fit, a queue smaller than a
                batch, or one with embeddings of a later step.
        """
        pairs = as_pairs(batch)
        check_pairs(state.model, state.memory, pairs)
        check_weights(source)
        check_taken_in(state.memory, pairs)
        check_stamps(state.memory, state.step)
        PositivesIn().check(state.memory, num_documents(pairs))

    def for_data(self, state: TrainState, data: Any) -> "CrossBatchTrainer":
        """Return the trainer with the queue's mesh.

        Arguments:
            state: The state that the run begins from.
            data: Not used.

        Returns:
            The trainer.
        """
        return dataclasses.replace(self, mesh=mesh_of(state.memory))


class FullSoftmaxTrainer(AbstractTrainer):
    """Softmax over the whole corpus, every document embedded at every step.

    It is for small corpora. It equals a cache that is never stale and from which every
    document is drawn. Its memory is the corpus, a `NegativeCache` whose embeddings are
    not used.

    Arguments:
        optim: The optax optimizer.
        temperature: A number, an optax schedule, or `None` for the model's own.
        label_smoothing: The share, below 1, spread over the batch's documents.

    Raises:
        TypeError: For an invalid temperature.
        ValueError: For settings out of range.
    """

    watched: ClassVar[tuple[str, ...]] = ("loss", "scale")

    optim: optax.GradientTransformation
    temperature: Temperature = 0.05
    label_smoothing: float = eqx.field(default=0.0, kw_only=True)

    def __check_init__(self) -> None:
        """Raise for settings out of range."""
        check_temperature(self.temperature)
        check_smoothing(self.label_smoothing)

    def init(self, model: PyTree, memory: NegativeCache | None = None) -> TrainState:
        """Return the first state.

        Arguments:
            model: The towers, such as `TwoTowers`.
            memory: A `NegativeCache` of the corpus.

        Returns:
            The state at step 0.

        Raises:
            TypeError: For a model without towers, or what is no cache.
            ValueError: For towers that do not fit the cache, or lack a temperature.
        """
        return first_state(self, model, memory)

    def step(
        self, state: TrainState, batch: PyTree, *, key: PRNGKeyArray
    ) -> tuple[TrainState, Metrics]:
        """Take one step on the whole corpus' softmax.

        Arguments:
            state: The state before.
            batch: `Pairs`, or a tuple or dict of their fields.
            key: The step's key, for dropout.

        Returns:
            The next state, and the metrics `loss`, in nats, `scale`, `grad_norm`, and
                `differing`, as in `NegativeCacheTrainer`.
        """

        def loss(model: PyTree) -> tuple[Array, None]:
            scale = scale_of(self.temperature, state, model)
            found = full_softmax_loss(
                model, batch, state.memory, scale, self.label_smoothing, key=key
            )
            return found, None

        model, opt_state, metrics, _ = updated(self, state, loss)
        metrics |= same_documents(state.memory, marks(as_pairs(batch)))
        return state.advance(model, opt_state, state.memory), metrics

    def check(self, state: TrainState, batch: PyTree, source: Any) -> None:
        """Raise on batches that the towers or the corpus cannot use.

        Arguments:
            state: The state that the run begins from.
            batch: The shapes of a batch.
            source: The data, whose first documents are compared with the corpus.

        Raises:
            TypeError: For a batch that is no `Pairs`, or numbers that are no integers.
            ValueError: For shapes that do not fit, or documents of another number.
        """
        check_pairs(state.model, state.memory, as_pairs(batch))
        check_weights(source)
        check_contents(state.memory, source)


def _of_batch(
    pairs: Pairs, documents: Float[Array, "documents size"]
) -> StepEmbeddings:
    """Return what a step without draws has embedded."""
    nothing = jnp.zeros(0, jnp.int32)
    return StepEmbeddings(
        nothing,
        documents[:0],
        batch_documents(pairs),
        marks(pairs),
        documents,
        num_pairs(pairs),
        jnp.zeros(()),
    )
