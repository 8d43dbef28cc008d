"""Metrics of a step's draws, and of the cache."""

import jax.numpy as jnp
from jaxtyping import Array, Int

from effgen.core.contract.state import Metrics
from effgen.retrieval_cache.cache.negative_cache import NegativeCache
from effgen.retrieval_cache.cache.refresh import StepEmbeddings
from effgen.retrieval_cache.softmax.batch_loss import Embedded


def drawn_metrics(found: Embedded, seen: StepEmbeddings) -> Metrics:
    """Return the softmax's shares, and the quality of the draws."""
    estimated, sample = found.estimated, found.sample
    embedded = jnp.concatenate([seen.fresh, seen.embeddings])
    finite = jnp.isfinite(sample.log_partition)
    partition = jnp.where(finite, sample.log_partition, 0)
    return {
        "positive": jnp.mean(estimated.positives),
        "beyond_batch": jnp.mean(estimated.beyond),
        "cache_loss": jnp.sum(partition) / jnp.maximum(jnp.sum(finite), 1),
        "score_drift": estimated.corrected.drift,
        "ess": estimated.corrected.ess,
        "possible_bias": estimated.corrected.possible_bias,
        "staleness": estimated.corrected.staleness,
        "refused": jnp.sum(~jnp.all(jnp.isfinite(embedded), axis=1)),
    }


def described(cache: NegativeCache, step: Int[Array, ""]) -> Metrics:
    """Return the coverage and the ages of a cache."""
    valid, num = cache.valid, jnp.sum(cache.valid)
    ages = jnp.where(valid, step + 1 - cache.stamps, 0)
    return {
        "coverage": num / cache.capacity,
        "age": jnp.sum(ages, dtype=jnp.float32) / jnp.maximum(num, 1),
        "oldest": jnp.max(ages),
    }
