"""The softmax over a batch's own documents, corrected for popular ones."""

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from effgen.core.contract.counts import check_count
from effgen.core.contract.state import Metrics, TrainState
from effgen.core.contract.trainer import AbstractTrainer
from effgen.core.contract.update import init_opt_state
from effgen.retrieval_cache.cache.frequencies import (
    StreamedFrequencies,
    as_frequencies,
    check_frequencies,
)
from effgen.retrieval_cache.data.pairs import (
    Pairs,
    as_numbers,
    as_pairs,
    batch_documents,
    marks,
    num_documents,
    num_pairs,
    weighed,
)
from effgen.retrieval_cache.encoders.towers import Temperature, in_chunks
from effgen.retrieval_cache.softmax.negatives import scored_in_batch
from effgen.retrieval_cache.softmax.objective import (
    BatchScores,
    batch_scores,
    cross_entropy,
)

from .checks import (
    check_chunks,
    check_met,
    check_model,
    check_numbered,
    check_pairs,
    check_smoothing,
    check_temperature,
    check_weights,
)
from .trainer import scale_of, updated


class InBatchTrainer(AbstractTrainer):
    """Softmax over a batch's own documents: the usual contrastive loss.

        loss = logsumexp(scores in batch) - positive

    Popular documents are negatives too often, as in recommenders (Yi et al., 2019).
    With `frequencies`, scores are corrected for that:

        score + log(times that the batch has the document) - log(frequency)

    The batch scores each document once, and the first term counts its other places. The
    loss is then the negative log-likelihood of which of the batch's documents answers.
    Its minimum is the softmax over the corpus, for batches of any size, where pairs are
    drawn at random. The frequencies of a stream are not known, and are estimated during
    the run:

        state = trainer.init(model, StreamedFrequencies.of(num_documents))

    Scores are then lowered by the logarithm of the share of batches whose other pairs
    have the document. This is nearly the same.

    Arguments:
        optim: The optax optimizer.
        temperature: A number, an optax schedule, or `None` for the model's own.
        label_smoothing: The share, below 1, spread over the batch's documents.
        num_chunks: Into how many chunks the batch is cut for its embedding. Each is
            computed once more in the backward pass: the memory is one chunk's, for a
            third more compute. The gradient is that of the whole batch.
        frequencies: How often each document number is in pairs, `(corpus,)`, in any
            unit, such as `np.bincount(ids)`; by default no correction.

    Raises:
        TypeError: For an invalid temperature.
        ValueError: For settings out of range.

    Source:
        Henderson et al. (2017); with `num_chunks`, Gao et al. (2021).
    """

    watched: ClassVar[tuple[str, ...]] = ("loss", "scale")

    optim: optax.GradientTransformation
    temperature: Temperature = 0.05
    label_smoothing: float = eqx.field(default=0.0, kw_only=True)
    num_chunks: int = eqx.field(default=1, kw_only=True)
    frequencies: Float[Array, " corpus"] | None = eqx.field(
        default=None, kw_only=True, converter=as_frequencies
    )

    def __check_init__(self) -> None:
        """Raise for settings out of range."""
        check_frequencies(self.frequencies)
        check_temperature(self.temperature)
        check_smoothing(self.label_smoothing)
        check_count("num_chunks", self.num_chunks)

    def init(
        self, model: PyTree, memory: StreamedFrequencies | None = None
    ) -> TrainState:
        """Return the first state.

        Arguments:
            model: The towers, such as `TwoTowers`.
            memory: Frequencies that are estimated during the run; by default none.

        Returns:
            The state at step 0.

        Raises:
            TypeError: For a model without towers, or another memory.
            ValueError: For `temperature=None` and a model without one, or a memory
                beside `frequencies`.
        """
        check_model(self.temperature, model)
        if memory is not None and not isinstance(memory, StreamedFrequencies):
            raise TypeError(
                f"`memory` is a {type(memory).__name__}, and this trainer uses the "
                "batch's own negatives only: pass none, or use `NegativeCacheTrainer`."
            )
        if memory is not None and self.frequencies is not None:
            raise ValueError(
                "`frequencies` are given, and `memory` estimates them during the run: "
                "pass one of the two."
            )
        return TrainState.start(model, init_opt_state(self.optim, model), memory)

    def step(
        self, state: TrainState, batch: PyTree, *, key: PRNGKeyArray
    ) -> tuple[TrainState, Metrics]:
        """Take one step on the batch's softmax.

        Arguments:
            state: The state before.
            batch: `Pairs`, or a tuple or dict of their fields.
            key: The step's key, for dropout.

        Returns:
            The next state, and the metrics `loss`, in nats, `scale` and `grad_norm`.
        """
        pairs = as_pairs(batch)
        memory, often = self.met(state, pairs)
        loss = lambda model: (self.loss(model, state, pairs, often, key=key), None)
        model, opt_state, metrics, _ = updated(self, state, loss)
        return state.advance(model, opt_state, memory), metrics

    def loss(
        self,
        model: PyTree,
        state: TrainState,
        pairs: Pairs,
        often: Float[Array, " batch"] | None,
        *,
        key: PRNGKeyArray,
    ) -> Float[Array, ""]:
        """Return a batch's loss, in nats, to be differentiated by the model.

        Arguments:
            model: The towers.
            state: That says the step, for temperatures by a schedule.
            pairs: The batch.
            often: What the pairs' documents are divided by, if scores are corrected.
            key: The step's key, for dropout.
        """
        keys = jax.random.split(key)
        queries = in_chunks(model.query, pairs.queries, self.num_chunks, key=keys[0])
        documents = in_chunks(
            model.document, batch_documents(pairs), self.num_chunks, key=keys[1]
        )
        scale = scale_of(self.temperature, state, model)
        negatives = scored_in_batch(pairs, marks(pairs))
        scores = batch_scores(queries, documents, scale, negatives)
        if often is not None:
            scores = _corrected(scores, often)
        losses = cross_entropy(scores, _none(scores), self.label_smoothing)
        return weighed(losses, pairs)

    def met(
        self, state: TrainState, pairs: Pairs
    ) -> tuple[StreamedFrequencies | None, Float[Array, " batch"] | None]:
        """Return the memory after a batch, and what its documents are divided by.

        Arguments:
            state: The state before.
            pairs: The batch.
        """
        if state.memory is not None:
            assert pairs.ids is not None
            memory = state.memory.met(pairs.ids)
            return memory, _of_other_pairs(memory.at(pairs.ids))
        if self.frequencies is None:
            return None, None
        assert pairs.ids is not None
        known, ids = jnp.asarray(self.frequencies, float), as_numbers(pairs.ids)
        often = known.at[ids].get(
            mode="fill", fill_value=jnp.nan, wrap_negative_indices=False
        )
        return None, often / jnp.sum(ids[:, None] == ids[None], axis=1)

    def check(self, state: TrainState, batch: PyTree, source: Any) -> None:
        """Raise on batches that the towers cannot use.

        Arguments:
            state: The state that the run begins from.
            batch: The shapes of a batch.
            source: The data, whose document numbers are looked up in `frequencies`.

        Raises:
            TypeError: For a batch that is no `Pairs`, or numbers that are no integers.
            ValueError: For shapes that do not fit, chunks that do not divide the
                batch, or documents without a frequency.
        """
        pairs = as_pairs(batch)
        check_pairs(state.model, None, pairs)
        check_weights(source)
        check_chunks(self.num_chunks, num_pairs(pairs), num_documents(pairs))
        if state.memory is not None:
            check_numbered(pairs, len(state.memory.last), source)
        if self.frequencies is not None:
            check_met(self.frequencies, pairs, source)


def _of_other_pairs(often: Float[Array, " batch"]) -> Float[Array, " batch"]:
    """Return the share of batches whose pairs but one have a document.

    `1 - (1 - share)^(batch - 1)`, of a share of pairs that makes that of batches.
    """
    batch = len(often)
    return -jnp.expm1(max(batch - 1, 1) / batch * jnp.log1p(-often))


def _corrected(scores: BatchScores, often: Float[Array, " batch"]) -> BatchScores:
    """Return scores less the logarithm of what their documents are divided by.

    The score is NaN for a document that is never met, or has no number. The step is
    then refused.
    """
    log_often = jnp.log(jnp.where(often > 0, often, jnp.nan))
    log_often = log_often.astype(scores.positives.dtype)
    others = jnp.where(
        jnp.isfinite(scores.others), scores.others - log_often[None], -jnp.inf
    )
    return BatchScores(scores.positives - log_often, others)


def _none(scores: Any) -> Float[Array, "batch 0"]:
    return jnp.zeros((scores.positives.shape[0], 0), scores.positives.dtype)
