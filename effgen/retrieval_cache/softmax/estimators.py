"""Estimators of the full softmax's gradient from a cache and a few fresh documents."""

import abc
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from effgen.retrieval_cache.cache.negative_cache import NegativeCache
from effgen.retrieval_cache.data.pairs import Marks, Pairs, num_pairs

from .importance import Anchor, Sample
from .logits import (
    Corrected,
    check_log_ratio,
    possible_bias,
    pseudo_logit,
    staleness,
)
from .negatives import Excluded, excluded_by
from .objective import BatchScores, cross_entropy, log_sum_exp


class Estimated(NamedTuple):
    """What an estimator makes of a batch.

    Attributes:
        surrogate: Its gradient is the estimate, `(batch,)`.
        losses: The estimate of the losses themselves, `(batch,)`, in nats.
        positives: Each positive's share of the softmax, `(batch,)`.
        beyond: The share of all that the batch does not score, `(batch,)`.
        corrected: How well the draws did.
    """

    surrogate: Float[Array, " batch"]
    losses: Float[Array, " batch"]
    positives: Float[Array, " batch"]
    beyond: Float[Array, " batch"]
    corrected: Corrected


class AbstractEstimator(eqx.Module):
    """From draws of the cache to losses: `PseudoLogit` or `GumbelMax`.

    A subclass has `__call__`, and may override `excluded` and `check`.
    """

    @abc.abstractmethod
    def __call__(
        self,
        queries: Float[Array, "batch size"],
        scores: BatchScores,
        fresh: Float[Array, "known size"],
        sample: Sample,
        scale: Float[Array, ""],
        label_smoothing: float = 0.0,
        anchor: Anchor | None = None,
    ) -> Estimated:
        """Return the batch's losses, to be differentiated.

        Arguments:
            queries: The queries, embedded, `(batch, size)`.
            scores: The scores of queries and documents of the batch.
            fresh: The drawn documents and those of the batch that answer, embedded now,
                `(known, size)`.
            sample: The draws.
            scale: One over the temperature.
            label_smoothing: The share that is spread over the batch's documents.
            anchor: For line searches, where draws, weights and shares were found. These
                are held, so that `surrogate` is a function of the rest.

        Returns:
            The surrogate and the losses, with shares of the softmax.
        """

    def excluded(
        self,
        pairs: Pairs,
        documents: Marks,
        cache: NegativeCache,
        slots: Int[Array, " batch"],
    ) -> Excluded:
        """Return what is not drawn: what the losses have already, and what answers.

        Arguments:
            pairs: The batch.
            documents: By what the batch's documents are recognized.
            cache: The cache that is drawn from.
            slots: Where the cache has the queries' own documents, `(batch,)`.

        Returns:
            The documents that are no negatives, of all queries and of each.
        """
        return excluded_by(pairs, documents, cache)

    def check(self, num_negatives: int, pairs: Pairs, label_smoothing: float) -> None:
        """Raise for settings that the estimator has no use for; by default none.

        Arguments:
            num_negatives: Documents drawn for the whole batch.
            pairs: The batch, or its shapes.
            label_smoothing: The share that is spread over the batch's documents.

        Raises:
            ValueError: For such settings.
        """
        return


class PseudoLogit(AbstractEstimator):
    """One logit stands for the cache beside the scores of the batch.

        loss = logsumexp([positive, others in batch, pseudo_logit]) - positive

    The draws serve all queries. Staleness is corrected by the ratios of fresh to stale
    scores, and the queries' expectation is exact over stale rows (`pseudo_logit`). The
    loss estimates the cross-entropy over the whole corpus.

    Arguments:
        max_log_ratio: At which log-ratios are cut, in nats; 0 leaves staleness
            uncorrected.

    Raises:
        ValueError: For a `max_log_ratio` below zero.
    """

    max_log_ratio: float = 5.0

    def __check_init__(self) -> None:
        """Raise `ValueError` for values that are no nats."""
        check_log_ratio(self.max_log_ratio)

    def __call__(
        self,
        queries: Float[Array, "batch size"],
        scores: BatchScores,
        fresh: Float[Array, "known size"],
        sample: Sample,
        scale: Float[Array, ""],
        label_smoothing: float = 0.0,
        anchor: Anchor | None = None,
    ) -> Estimated:
        """Return the batch's losses, to be differentiated.

        Arguments:
            queries: The queries, embedded, `(batch, size)`.
            scores: The scores of queries and documents of the batch.
            fresh: The drawn documents and those of the batch that answer, embedded now,
                `(known, size)`.
            sample: The draws.
            scale: One over the temperature.
            label_smoothing: The share that is spread over the batch's documents.
            anchor: For line searches, where draws, weights and shares were found.

        Returns:
            The surrogate, here the losses themselves, with shares of the softmax.
        """
        logit, corrected = pseudo_logit(
            queries,
            fresh,
            sample,
            scale,
            max_log_ratio=self.max_log_ratio,
            anchor=anchor,
        )
        losses = cross_entropy(scores, logit[:, None], label_smoothing)
        plain = cross_entropy(scores, logit[:, None])
        beyond = jnp.exp(logit - scores.positives - plain)
        return Estimated(losses, losses, jnp.exp(-plain), beyond, corrected)


class GumbelMax(AbstractEstimator):
    """The paper's: a query's own draws, embedded anew, without its batch's documents.

        surrogate = (1 - p) (mean(fresh scores of its draws) - positive)
        loss = -log(p),    p = softmax([positive, stale scores])[0]

    It is unbiased with a fresh cache. A draw by Gumbel-max has the softmax's law, which
    the two-level draws have too. It has no arguments.

    Source:
        Lindgren, Reddi, Guo and Kumar (2021), Algorithm 1.
    """

    def __call__(
        self,
        queries: Float[Array, "batch size"],
        scores: BatchScores,
        fresh: Float[Array, "known size"],
        sample: Sample,
        scale: Float[Array, ""],
        label_smoothing: float = 0.0,
        anchor: Anchor | None = None,
    ) -> Estimated:
        """Return the batch's losses, to be differentiated.

        Arguments:
            queries: The queries, embedded, `(batch, size)`.
            scores: The scores of queries and documents of the batch.
            fresh: The drawn documents and those of the batch that answer, embedded now,
                `(known, size)`.
            sample: The draws, as many for each query.
            scale: One over the temperature.
            label_smoothing: Not used.
            anchor: For line searches, where draws and shares were found.

        Returns:
            The surrogate and the losses, with shares of the softmax.
        """
        num, fixed = queries.shape[0], jax.lax.stop_gradient
        held = scores.positives if anchor is None else anchor.positives
        draws = len(sample.slots)
        each = fresh[:draws].reshape(num, -1, fresh.shape[1])
        offsets = sample.offsets[:draws].reshape(num, -1)
        drawn = scale * jnp.einsum("bd,bkd->bk", queries, each) + offsets
        turns = jnp.arange(draws).reshape(num, -1)
        own = jnp.take_along_axis(sample.scores, turns, axis=1)
        there = jnp.isfinite(own)
        both = jnp.stack([held, sample.log_partition], axis=1)
        losses = fixed(log_sum_exp(both) - held)
        share = jnp.exp(-losses)
        change = jnp.mean(jnp.where(there, drawn, 0), axis=1) - scores.positives
        surrogate = jnp.where(jnp.any(there, axis=1), (1 - share) * change, 0)
        drift = _drift(drawn, own, fresh, sample)
        return Estimated(surrogate, losses, share, 1 - share, drift)

    def excluded(
        self,
        pairs: Pairs,
        documents: Marks,
        cache: NegativeCache,
        slots: Int[Array, " batch"],
    ) -> Excluded:
        """Return that a query's own document is not drawn, nor what else answers.

        Others of the batch are drawn like all, for the losses do not have them.

        Arguments:
            pairs: The batch.
            documents: By what the batch's documents are recognized.
            cache: The cache that is drawn from.
            slots: Not used.

        Returns:
            The documents that are no negatives of each query.
        """
        num, none = num_pairs(pairs), jnp.zeros(0, jnp.int32)
        found = excluded_by(pairs, documents, cache)
        own = documents.ids[:num, None], documents.digests[:num, None]
        known = jnp.concatenate([own[0], found.known], axis=1)
        contents = jnp.concatenate([own[1], cache.contents(found.known)], axis=1)
        return found._replace(ids=none, digests=none, known=known, contents=contents)

    def check(self, num_negatives: int, pairs: Pairs, label_smoothing: float) -> None:
        """Raise for settings that the estimator has no use for.

        Arguments:
            num_negatives: Documents drawn for the whole batch.
            pairs: The batch, or its shapes.
            label_smoothing: The share that is spread over the batch's documents.

        Raises:
            ValueError: For draws that are no multiple of the queries, a batch with
                `negatives`, or label smoothing.
        """
        batch_size = num_pairs(pairs)
        if num_negatives % batch_size:
            raise ValueError(
                f"`num_negatives` is {num_negatives}, no multiple of the batch's "
                f"{batch_size} queries: `GumbelMax` draws equally many for each."
            )
        if pairs.negatives is not None:
            raise ValueError(
                "a batch has `negatives`, which `GumbelMax` has no use for: leave them "
                "out, or use `PseudoLogit`."
            )
        if label_smoothing:
            raise ValueError(
                "`label_smoothing` has no meaning for `GumbelMax`: use `PseudoLogit`."
            )


def _drift(
    drawn: Float[Array, "batch each"],
    own: Float[Array, "batch each"],
    fresh: Float[Array, "known size"],
    sample: Sample,
) -> Corrected:
    there = jnp.isfinite(own)
    change = jnp.where(there, drawn - jnp.where(there, own, 0), 0)
    drift = jnp.sqrt(jnp.sum(change**2) / jnp.maximum(jnp.sum(there), 1))
    # The paper's estimator corrects nothing.
    bias = possible_bias(drift, 0)
    found = Corrected(drift, jnp.ones(()), staleness(sample, fresh), bias)
    return jax.lax.stop_gradient(found)
