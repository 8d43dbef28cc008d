"""The trainer: two towers, a cache of stale negatives, and policies to refresh it."""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from effgen.core.contract.counts import check_count
from effgen.core.contract.state import Metrics, TrainState
from effgen.core.contract.trainer import AbstractTrainer
from effgen.core.contract.update import apply_gradients, init_opt_state
from effgen.core.devices.sharding import mesh_of
from effgen.core.outcome.results import RESULTS
from effgen.retrieval_cache.cache.frequencies import (
    as_frequencies,
    check_frequencies,
    met,
)
from effgen.retrieval_cache.cache.negative_cache import NegativeCache
from effgen.retrieval_cache.cache.refresh import (
    AbstractRefresh,
    Budget,
    StepEmbeddings,
    WriteBack,
    policies_of,
)
from effgen.retrieval_cache.data.pairs import (
    Marks,
    Pairs,
    as_pairs,
    batch_documents,
    joined,
    marks,
    num_documents,
    num_pairs,
    weighed,
)
from effgen.retrieval_cache.encoders.towers import Temperature, in_parts, is_random
from effgen.retrieval_cache.softmax.batch_loss import Embedded, estimate, moved_loss
from effgen.retrieval_cache.softmax.estimators import AbstractEstimator, PseudoLogit

from .checks import (
    check_all_met,
    check_cache,
    check_chunks,
    check_contents,
    check_model,
    check_pairs,
    check_smoothing,
    check_stamps,
    check_taken_in,
    check_temperature,
    check_weights,
)
from .metrics import described, drawn_metrics
from .origins import check_origin


class NegativeCacheTrainer(AbstractTrainer):
    """The softmax over a whole corpus, estimated from a batch and a cache.

        loss = -log softmax(scale <query, every document>)[its own]

    Each step embeds the batch, passes over the cache's stale embeddings, draws
    `num_negatives` of its documents by their scores, embeds these anew with gradient,
    and estimates the full softmax's gradient. What was embedded is written back, and
    the policies refresh a few rows more.

    Arguments:
        optim: Any optax transformation. A line search sees the batch's loss with the
            draws and their weights held (`moved_loss`).
        num_negatives: Documents drawn from the cache, for the whole batch.
        temperature: A number, an optax schedule, or `None` for the model's own
            `temperature`, which is then trained.
        refresh: A policy, or several; or the share of the rows embedded anew each step,
            oldest first, beside what is written back. By default what was embedded is
            written back, and a twentieth of a step's work is spent on the oldest rows,
            where scores drift.
        estimator: `PseudoLogit()`, or the paper's `GumbelMax()`.
        label_smoothing: The share, below 1, spread over the batch's documents.
        num_chunks: Into how many chunks what a step embeds is cut. Each is computed
            once more in the backward pass: the memory is one chunk's, for a third more
            compute (Gao et al., 2021). The gradient is that of the whole batch. Rows
            that are refreshed are embedded by as many at once as a chunk has.
        frequencies: How often each document number is in a batch, `(corpus,)`, in any
            unit, such as `np.bincount(ids)`. The weight of the batch's documents in a
            stale cache depends on it. `train` finds it if the data are arrays. For
            other data, without it, all documents count as equally frequent.
        mesh: The cache's mesh; `train` sets it.

    Raises:
        TypeError: For an invalid temperature, policy or estimator.
        ValueError: For settings out of range.

    Source:
        Lindgren, Reddi, Guo and Kumar (2021).
    """

    watched: ClassVar[tuple[str, ...]] = ("loss", "positive", "score_drift", "ess")

    optim: optax.GradientTransformation
    num_negatives: int = 64
    temperature: Temperature = eqx.field(default=0.05, kw_only=True)
    refresh: float | AbstractRefresh | tuple[AbstractRefresh, ...] = eqx.field(
        default=(WriteBack(), Budget()), kw_only=True
    )
    estimator: AbstractEstimator = eqx.field(default=PseudoLogit(), kw_only=True)
    label_smoothing: float = eqx.field(default=0.0, kw_only=True)
    num_chunks: int = eqx.field(default=1, kw_only=True)
    frequencies: Float[Array, " corpus"] | None = eqx.field(
        default=None, kw_only=True, converter=as_frequencies
    )
    mesh: Mesh | None = eqx.field(default=None, static=True, kw_only=True)

    def __check_init__(self) -> None:
        """Raise `TypeError` or `ValueError` for settings out of range."""
        check_count("num_negatives", self.num_negatives)
        check_count("num_chunks", self.num_chunks)
        check_temperature(self.temperature)
        policies_of(self.refresh)
        if not isinstance(self.estimator, AbstractEstimator):
            raise TypeError(
                f"`estimator` is {self.estimator!r}: pass `PseudoLogit()` or "
                "`GumbelMax()`."
            )
        check_frequencies(self.frequencies)
        check_smoothing(self.label_smoothing)

    def init(
        self, model: PyTree, memory: NegativeCache | None = None
    ) -> TrainState[PyTree, NegativeCache]:
        """Return the first state.

        Arguments:
            model: With `query` and `document`, each from a batch to embeddings, such as
                `TwoTowers`.
            memory: A `NegativeCache`.

        Returns:
            The state at step 0.

        Raises:
            TypeError: For a model without towers, or without a cache.
            ValueError: For towers that do not fit the cache, or lack a temperature, or
                a cache that the query tower filled.

        Warns:
            UserWarning: If another model made the cache's newest embeddings.
        """
        state = first_state(self, model, memory)
        check_origin(state.model, state.memory)
        return state

    def step(
        self,
        state: TrainState[PyTree, NegativeCache],
        batch: PyTree,
        *,
        key: PRNGKeyArray,
    ) -> tuple[TrainState[PyTree, NegativeCache], Metrics]:
        """Update the towers by the batch and the cache, then refresh the cache.

        Arguments:
            state: The state before.
            batch: `Pairs`, or a tuple or dict of their fields.
            key: The step's key: of the draws, of dropout and of the policies.

        Returns:
            The next state, and the metrics: `loss`, an estimate of the mean
                cross-entropy over the corpus, in nats; `positive`, the mean share of
                the softmax that positives have; `beyond_batch`, that of all documents
                outside the batch: where it is small, a batch's own negatives are
                enough (`GumbelMax`: of all but the positive); `cache_loss`, the
                mean log-partition over the cache; `scale`, one over the temperature;
                `staleness`, `score_drift` and `ess`, of the draws (`Corrected`);
                `possible_bias`, about how far the gradient's mean may be off, as a
                share of its length: above 0.2, lower the learning rate, refresh more
                rows, draw more negatives, or begin with a batch; `coverage`, the share
                of the rows that hold a document (`fill` makes a few rows more than
                documents); `age`, the mean of these in steps, and `oldest`; `refused`,
                embeddings not finite and so not written; `differing`, -1, or the number
                of a document that the cache has other content of, and then the step is
                refused (`RESULTS.documents_differ`), not with `PositivesIn`;
                `grad_norm`.
        """
        pairs, keys = as_pairs(batch), jax.random.split(key)

        def mean_surrogate(model: PyTree) -> tuple[Array, Embedded]:
            found = estimate(
                self.estimator,
                model,
                pairs,
                state.memory,
                scale_of(self.temperature, state, model),
                self.num_negatives,
                key=keys[0],
                label_smoothing=self.label_smoothing,
                num_chunks=self.num_chunks,
                frequencies=self.frequencies,
                mesh=self.mesh,
            )
            return weighed(found.estimated.surrogate, pairs), found

        def searched(found: Embedded) -> tuple[Array, Callable[[PyTree], Array]]:
            def loss(model: PyTree) -> Float[Array, ""]:
                return moved_loss(
                    self.estimator,
                    model,
                    pairs,
                    state.memory,
                    scale_of(self.temperature, state, model),
                    found,
                    key=keys[0],
                    label_smoothing=self.label_smoothing,
                    num_chunks=self.num_chunks,
                )

            return weighed(found.estimated.losses, pairs), loss

        model, opt_state, metrics, found = updated(
            self, state, mean_surrogate, searched
        )
        given = state.model, state.memory, pairs, found
        seen = _seen(*given, self.num_chunks, self.mesh)
        cache = refreshed(
            state.memory,
            self.refresh,
            seen,
            model,
            state.step + 1,
            key=keys[1],
            mesh=self.mesh,
        )
        metrics |= drawn_metrics(found, seen) | described(cache, state.step)
        if not _replaces(self.refresh):
            metrics |= same_documents(state.memory, seen.marks)
        return state.advance(model, opt_state, cache), metrics

    def check(self, state: TrainState, batch: PyTree, source: Any) -> None:
        """Raise on batches that the towers or the cache cannot use.

        Arguments:
            state: The state that the run begins from.
            batch: The shapes of a batch.
            source: The data, whose first documents are compared with the cache.

        Raises:
            TypeError: For a batch that is no `Pairs`, or numbers that are no integers.
            ValueError: For shapes, num_chunks, draws or `frequencies` that do not fit,
                documents of another number, or embeddings of a later step.
        """
        pairs = as_pairs(batch)
        check_pairs(state.model, state.memory, pairs)
        check_weights(source)
        self.estimator.check(self.num_negatives, pairs, self.label_smoothing)
        num = num_documents(pairs) + self.num_negatives
        check_chunks(self.num_chunks, num_pairs(pairs), num)
        for policy in policies_of(self.refresh):
            policy.check(state.memory, num_documents(pairs))
        check_all_met(self.frequencies, state.memory)
        check_stamps(state.memory, state.step)
        if _replaces(self.refresh):
            check_taken_in(state.memory, pairs)
        else:
            check_contents(state.memory, source)

    def for_data(self, state: TrainState, data: Any) -> "NegativeCacheTrainer":
        """Return the trainer with the cache's mesh, and how often documents are met.

        Arguments:
            state: The state that the run begins from.
            data: The data, whose document numbers are counted where they are arrays.

        Returns:
            The trainer.
        """
        often = self.frequencies
        if often is None:
            often = met(state.memory, data)
        return dataclasses.replace(self, mesh=mesh_of(state.memory), frequencies=often)


def first_state(trainer: Any, model: PyTree, memory: Any) -> TrainState:
    """Return the first state of a trainer with a cache, both checked."""
    check_model(trainer.temperature, model)
    check_cache(model, memory)
    return TrainState.start(model, init_opt_state(trainer.optim, model), memory)


def updated(
    trainer: Any,
    state: TrainState,
    loss: Callable[[PyTree], tuple[Array, Any]],
    searched: Callable[[Any], tuple[Array, Callable[[PyTree], Array]]] | None = None,
) -> tuple[PyTree, Any, Metrics, Any]:
    """Return model and optimizer one step on, with the metrics and what `loss` gave.

    Where `loss` is not what it tells, only has its gradient, `searched` makes of what
    it gave the loss itself and the function that a line search looks at.
    """
    (value, aux), gradients = eqx.filter_value_and_grad(loss, has_aux=True)(state.model)
    value_fn: Callable[[PyTree], Array] = lambda model: loss(model)[0]
    if searched is not None:
        value, value_fn = searched(aux)
    model, opt_state = apply_gradients(
        trainer.optim,
        gradients,
        state.opt_state,
        state.model,
        value=value,
        value_fn=value_fn,
    )
    scale = scale_of(trainer.temperature, state)
    metrics = {"loss": value, "scale": scale, "grad_norm": optax.tree.norm(gradients)}
    return model, opt_state, metrics, aux


def same_documents(cache: NegativeCache, marks: Marks) -> Metrics:
    """Return that a batch's documents are those of their numbers in the cache, or not.

    Else a document's embedding would be written over another's.
    """
    differing = cache.differing(marks)
    sound = differing < 0
    result = RESULTS.where(sound, RESULTS.successful, RESULTS.documents_differ)
    return {"differing": differing, "result": result}


def _replaces(refresh: Any) -> bool:
    return any(policy.replaces for policy in policies_of(refresh))


def refreshed(
    cache: NegativeCache,
    refresh: Any,
    seen: StepEmbeddings,
    model: PyTree,
    step: Int[Array, ""],
    *,
    key: PRNGKeyArray,
    mesh: Mesh | None = None,
) -> NegativeCache:
    """Return the cache after all policies, in turn; `model` embeds without a key."""

    def encode(items: PyTree) -> Float[Array, "batch size"]:
        return in_parts(model.document, items, seen.chunk, mesh)

    seen = seen._replace(mesh=mesh)
    for i, policy in enumerate(policies_of(refresh)):
        own = jax.random.fold_in(key, i)
        cache = policy(cache, seen, encode, step, key=own)
    return cache


def _seen(
    model: PyTree,
    cache: NegativeCache,
    pairs: Pairs,
    found: Embedded,
    num_chunks: int,
    mesh: Mesh | None,
) -> StepEmbeddings:
    """Return what was embedded, without dropout: once more, where there was any."""
    documents, slots = batch_documents(pairs), found.sample.slots
    embedded, fresh = found.documents, found.fresh
    chunk = max(1, (len(embedded) + len(fresh)) // num_chunks)
    if is_random(model, model.document):
        items = joined(documents, cache.documents(slots))
        both = in_parts(model.document, items, chunk, mesh)
        embedded, fresh = both[: len(embedded)], both[len(embedded) :]
    drift = found.estimated.corrected.drift
    num = num_pairs(pairs)
    return StepEmbeddings(
        slots, fresh, documents, marks(pairs), embedded, num, drift, chunk
    )


def scale_of(
    temperature: Temperature,
    state: TrainState,
    model: PyTree = None,
) -> Float[Array, ""]:
    """Return one over the temperature: fixed, scheduled, or the model's own."""
    if temperature is None:
        return (state.model if model is None else model).temperature.scale
    if callable(temperature):
        return 1 / jnp.asarray(temperature(state.step))
    return jnp.asarray(1 / temperature)
