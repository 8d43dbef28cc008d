"""Queries trained against documents that stay as they are embedded."""

import dataclasses
import math
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from effgen.core.contract.counts import check_count
from effgen.core.contract.state import Metrics, TrainState
from effgen.core.contract.trainer import AbstractTrainer
from effgen.core.contract.update import init_opt_state
from effgen.core.data.shuffle import shuffled
from effgen.core.devices.sharding import mesh_of
from effgen.core.outcome.results import RESULTS
from effgen.retrieval_cache.cache.blocks import block_size
from effgen.retrieval_cache.cache.lookup import joined_rows
from effgen.retrieval_cache.data.digests import content_digests
from effgen.retrieval_cache.data.pairs import (
    Pairs,
    as_numbers,
    as_pairs,
    num_pairs,
    pairs_at_hand,
    weighed,
)
from effgen.retrieval_cache.encoders.towers import Temperature, in_chunks
from effgen.retrieval_cache.search.index import Index
from effgen.retrieval_cache.softmax.negatives import Excluded
from effgen.retrieval_cache.softmax.objective import BatchScores, cross_entropy
from effgen.retrieval_cache.softmax.scan import Scored
from effgen.retrieval_cache.softmax.stale import stale_logit

from .checks import (
    check_chunks,
    check_frozen,
    check_frozen_pairs,
    check_temperature,
    check_weights,
)
from .trainer import scale_of, updated


class FrozenDocumentsTrainer(AbstractTrainer):
    """The softmax over a whole corpus that is embedded once and stays so.

        loss = -log softmax(scale <query, every document>)[its own]

    It is for a query tower, or an adapter, when the documents cannot be embedded again.
    No document is encoded. A step costs its queries' encoder and a pass over the index.
    The softmax is that of the whole corpus, with its exact gradient. No array of
    queries by documents is made. If the pass costs more than the queries' encoder,
    `drawn` documents stand for all:

        loss = log(exp(s_own) + rows / drawn * sum_j exp(s_j)) - s_own,  j drawn evenly

    The sum is right on average. Its logarithm is too low by about half of the sum's
    relative variance.

    A batch is of `Pairs(queries, documents, ids)`, with the documents' numbers in the
    index, and what else is `known` to answer; `documents` are not looked at, and may be
    `None`. Answers are left out of the negatives by number. If several documents are
    equal, name all of them as `known`.

    Arguments:
        optim: The optax optimizer.
        temperature: A number, an optax schedule, or `None` for the model's own.
        num_chunks: Into how many chunks a step's queries are cut for their embedding.
            Each is computed once more in the backward pass.
        drawn: How many of the index's rows a step looks at, others in each, none twice;
            `None` for all.
        mesh: The index's mesh; `train` sets it.

    Raises:
        TypeError: For an invalid temperature.
        ValueError: For settings out of range.
    """

    watched: ClassVar[tuple[str, ...]] = ("loss", "positive", "scale")

    optim: optax.GradientTransformation
    temperature: Temperature = 0.05
    num_chunks: int = eqx.field(default=1, kw_only=True)
    drawn: int | None = eqx.field(default=None, kw_only=True)
    mesh: Mesh | None = eqx.field(default=None, static=True, kw_only=True)

    def __check_init__(self) -> None:
        """Raise for settings out of range."""
        check_temperature(self.temperature)
        check_count("num_chunks", self.num_chunks)
        if self.drawn is not None:
            check_count("drawn", self.drawn)

    def init(
        self, model: PyTree, memory: Index | None = None
    ) -> TrainState[PyTree, Index]:
        """Return the first state.

        Arguments:
            model: A model with a tower `query`.
            memory: The documents, such as `Index.from_embeddings(embeddings)`.

        Returns:
            The state at step 0.

        Raises:
            TypeError: For a model without `query`, or what is no `Index`.
            ValueError: For `temperature=None` and a model without one.
        """
        check_frozen(self.temperature, model, memory)
        assert isinstance(memory, Index)
        return TrainState.start(model, init_opt_state(self.optim, model), memory)

    def step(
        self, state: TrainState[PyTree, Index], batch: PyTree, *, key: PRNGKeyArray
    ) -> tuple[TrainState[PyTree, Index], Metrics]:
        """Take one step on the whole corpus' softmax.

        Arguments:
            state: The state before.
            batch: `Pairs`, or a tuple or dict of their fields, with `ids`.
            key: The step's key, for dropout and for what is drawn.

        Returns:
            The next state, and the metrics `loss`, in nats; `positive`, the mean share
                of the softmax that positives have; `scale`; `missing`, -1, or the
                number of a document that the index has not, and then the step is
                refused; `grad_norm`.
        """
        pairs, index = _checked(batch), state.memory
        own, excluded = answering(index, pairs)
        keys = jax.random.split(key)
        scored, mesh = index.scored(excluded), self.mesh
        if self.drawn is not None:
            scored, mesh = _drawn(scored, self.drawn, keys[1]), None

        def loss(model: PyTree) -> tuple[Array, Array]:
            queries = in_chunks(
                model.query, pairs.queries, self.num_chunks, key=keys[0]
            )
            scale = scale_of(self.temperature, state, model)
            losses = corpus_losses(index, queries, scale, own, scored, mesh)
            return weighed(losses, pairs), jax.lax.stop_gradient(losses)

        model, opt_state, metrics, losses = updated(self, state, loss)
        metrics["positive"] = jnp.mean(jnp.exp(-losses))
        absent = own == index.ids.shape[0]
        missing = jnp.max(jnp.where(absent, jnp.maximum(_ids(pairs), 0), -1))
        metrics |= {
            "missing": missing,
            "result": RESULTS.where(
                missing < 0, RESULTS.successful, RESULTS.document_missing
            ),
        }
        return state.advance(model, opt_state, index), metrics

    def check(self, state: TrainState, batch: PyTree, source: Any) -> None:
        """Raise on batches that the tower or the index cannot use.

        Arguments:
            state: The state that the run begins from.
            batch: The shapes of a batch.
            source: The data, whose document numbers are looked up in the index.

        Raises:
            TypeError: For a batch that is no `Pairs`, or numbers that are no integers.
            ValueError: For a batch without `ids` or with `negatives`, shapes that do
                not fit, numbers that the index has not, or more `drawn` than it has
                rows.
        """
        pairs = _checked(batch)
        check_frozen_pairs(state.model, state.memory, pairs)
        check_weights(source)
        check_chunks(self.num_chunks, num_pairs(pairs), num_pairs(pairs))
        _check_there(state.memory, source)
        rows = state.memory.ids.shape[0]
        if self.drawn is not None and self.drawn > rows:
            raise ValueError(
                f"`drawn` is {self.drawn} and the index has {rows} rows: pass at most "
                "as many, or leave it out, for all."
            )

    def for_data(self, state: TrainState, data: Any) -> "FrozenDocumentsTrainer":
        """Return the trainer with the index's mesh.

        Arguments:
            state: The state that the run begins from.
            data: Not used.

        Returns:
            The trainer.
        """
        return dataclasses.replace(self, mesh=mesh_of(state.memory))


def answering(index: Index, pairs: Pairs) -> tuple[Int[Array, " batch"], Excluded]:
    """Return the rows of queries' own documents, and what is no negative of them.

    What answers: their own, what is known to, and the own documents of equal queries.
    """
    ids = _ids(pairs)
    own = joined_rows(index.ids, ids)
    asked = content_digests(pairs.queries)
    alike = jnp.where(asked[:, None] == asked[None], own[None], index.ids.shape[0])
    rows = [alike.astype(jnp.int32)]
    if pairs.known is not None and pairs.known.shape[1]:
        known = as_numbers(pairs.known)
        rows.append(joined_rows(index.ids, known.reshape(-1)).reshape(known.shape))
    rows = jnp.sort(jnp.concatenate(rows, axis=1), axis=1)
    return own, Excluded.nothing(len(ids))._replace(rows=rows)


def corpus_losses(
    index: Index,
    queries: Float[Array, "batch size"],
    scale: Float[Array, ""],
    own: Int[Array, " batch"],
    scored: Scored,
    mesh: Mesh | None = None,
) -> Float[Array, " batch"]:
    """Return the cross-entropies over rows of an index, with their gradient by queries.

    `own` are the rows of the queries' documents in `index`, `scored` the rows that are
    negatives.
    """
    last = index.ids.shape[0] - 1
    answers = index.rows.take(jnp.minimum(own, last)).embeddings()
    positives = scale * jnp.sum(queries * answers, axis=1)
    block = block_size(scored.ids.shape[0])
    logit = stale_logit(scored, queries, scale, block, mesh)
    none = jnp.zeros((len(positives), 0), positives.dtype)
    return cross_entropy(BatchScores(positives, none), logit[:, None])


def _drawn(scored: Scored, num: int, key: PRNGKeyArray) -> Scored:
    """Return evenly drawn rows, no two alike, each for as many as it stands for."""
    rows = scored.ids.shape[0]
    slots = shuffled(jnp.arange(num), rows, jnp.zeros((), jnp.int32), key=key)
    taken = scored.take(slots)
    offsets = taken.offsets + math.log(rows / num)
    return eqx.tree_at(lambda s: s.offsets, taken, offsets)


def _checked(batch: Any) -> Pairs:
    pairs = as_pairs(batch)
    if pairs.ids is None:
        raise ValueError(
            "a batch has no `ids`: pass `Pairs(queries, None, ids)`, with the number "
            "that each query's document has in the index."
        )
    if pairs.negatives is not None:
        raise ValueError(
            "a batch has `negatives`, and every document of the index is one already: "
            "leave them out."
        )
    return pairs


def _ids(pairs: Pairs) -> Int[Array, " batch"]:
    assert pairs.ids is not None
    return as_numbers(pairs.ids)


def _check_there(index: Index, data: Any) -> None:
    """Raise `ValueError` for numbers that the index has not, of data in arrays."""
    given = pairs_at_hand(data)
    if given is None or not index.ids.is_fully_addressable:
        return
    ids = np.asarray(given.ids)
    missing = ids[~np.isin(ids, np.asarray(index.ids)) | (ids < 0)]
    if len(missing):
        raise ValueError(
            f"`ids` has {missing[0]}, and {len(missing) - 1} more, that the index has "
            "no document of: number documents as the index was made."
        )
