"""The loss of a batch: one log-sum-exp over documents of the batch and of the cache."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from .negatives import negatives_in_batch as negatives_in_batch


class BatchScores(NamedTuple):
    """Scores of a batch's queries and documents.

    Attributes:
        positives: Of each query's own document, `(batch,)`.
        others: Of all, `(batch, documents)`, `-inf` where a document is the query's own
            or no negative of it.
    """

    positives: Float[Array, " batch"]
    others: Float[Array, "batch documents"]


def batch_scores(
    queries: Float[Array, "batch size"],
    documents: Float[Array, "documents size"],
    scale: Float[Array, ""],
    negatives: Bool[Array, "batch documents"],
) -> BatchScores:
    """Return `scale <query, document>` of a batch; the first documents are its own."""
    own = documents[: queries.shape[0]]
    positives = scale * jnp.sum(queries * own, axis=1)
    others = scale * (queries @ documents.T)
    return BatchScores(positives, jnp.where(negatives, others, -jnp.inf))


def cross_entropy(
    scores: BatchScores,
    cache: Float[Array, "batch logits"],
    label_smoothing: float = 0.0,
) -> Float[Array, " batch"]:
    """Return the losses of a batch, in nats.

        loss = logsumexp([positive, others, cache])
               - (1 - label_smoothing) positive - label_smoothing mean(batch's scores)

    Smoothing spreads over the batch's documents, which are all scored; the cache's are
    not. A document that is `-inf` counts as absent.
    """
    positives, others = scores
    everything = jnp.concatenate([positives[:, None], others, cache], axis=1)
    losses = log_sum_exp(everything) - positives
    if label_smoothing:
        there = jnp.isfinite(others)
        total = positives + jnp.sum(jnp.where(there, others, 0), axis=1)
        mean = total / (1 + jnp.sum(there, axis=1))
        losses += label_smoothing * (positives - mean)
    return losses


def log_sum_exp(x: Float[Array, "batch logits"]) -> Float[Array, " batch"]:
    """Return log-sum-exps in which an entry of `-inf` has a gradient of zero."""
    there = x > -jnp.inf
    some = jnp.any(there, axis=1)
    top = jax.lax.stop_gradient(jnp.max(x, axis=1))
    top = jnp.where(some, top, 0)
    shifted = jnp.where(there, x, top[:, None]) - top[:, None]
    total = jnp.sum(jnp.where(there, jnp.exp(shifted), 0), axis=1)
    return jnp.where(some, top + jnp.log(jnp.where(some, total, 1)), -jnp.inf)
