"""One batch, estimated: embedded, drawn for, and scored."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from effgen.core.devices.sharding import constrain_batch
from effgen.retrieval_cache.cache.negative_cache import NegativeCache
from effgen.retrieval_cache.data.pairs import (
    Marks,
    Pairs,
    batch_documents,
    joined,
    marks,
    num_pairs,
    weighed,
)
from effgen.retrieval_cache.encoders.towers import in_chunks

from .estimators import AbstractEstimator, Estimated
from .importance import Anchor, BatchRows, Sample, sampled
from .negatives import each_once, negatives_in_batch, scored_in_batch
from .objective import batch_scores


class Embedded(NamedTuple):
    """A batch's estimate, the draws, and the embeddings that were made for it.

    Attributes:
        estimated: The losses.
        sample: The draws.
        documents: The embeddings of the batch's documents, without gradient.
        fresh: Those of the draws, without gradient.
        anchor: All that the estimate was made of.
    """

    estimated: Estimated
    sample: Sample
    documents: Float[Array, "documents size"]
    fresh: Float[Array, "draws size"]
    anchor: Anchor


def estimate(
    estimator: AbstractEstimator,
    model: PyTree,
    pairs: Pairs,
    cache: NegativeCache,
    scale: Float[Array, ""],
    num_negatives: int,
    *,
    key: PRNGKeyArray,
    label_smoothing: float = 0.0,
    num_chunks: int = 1,
    frequencies: Float[Array, " corpus"] | None = None,
    mesh: Mesh | None = None,
) -> Embedded:
    """Return the losses of a batch against a cache, to be differentiated by `model`.

    The batch's documents and the drawn ones go through their tower as one. Arguments
    are as of the trainer.
    """
    found, own = marks(pairs), num_pairs(pairs)
    keys = jax.random.split(key, 3)
    queries = in_chunks(model.query, pairs.queries, num_chunks, key=keys[0])
    negatives = negatives_in_batch(pairs, found, cache)
    # What answers a query is as good as drawn evenly; explicit negatives are not.
    slots = cache.find(Marks(found.ids[:own], found.digests[:own]))
    sample = sampled(
        cache,
        queries,
        scale,
        num_negatives,
        estimator.excluded(pairs, found, cache, slots),
        BatchRows(slots, negatives[:, :own], frequencies),
        key=keys[1],
        mesh=mesh,
    )
    given = model, pairs, cache, sample
    documents, drawn = _documents(*given, num_chunks, keys[2], mesh)
    scores = batch_scores(queries, documents, scale, each_once(negatives, found))
    fresh = jnp.concatenate([drawn, documents[:own]])
    estimated = estimator(queries, scores, fresh, sample, scale, label_smoothing)
    anchor = Anchor(queries, scores.positives, fresh, scale)
    embedded = jax.lax.stop_gradient((documents, drawn, anchor))
    return Embedded(estimated, sample, *embedded)


def moved_loss(
    estimator: AbstractEstimator,
    model: PyTree,
    pairs: Pairs,
    cache: NegativeCache,
    scale: Float[Array, ""],
    found: Embedded,
    *,
    key: PRNGKeyArray,
    label_smoothing: float = 0.0,
    num_chunks: int = 1,
) -> Float[Array, ""]:
    """Return a batch's mean loss when the model moves away from where it was `found`.

        loss = mean(weights * (losses + surrogate - surrogate as found))

    with the same draws and dropout, and the draws' weights held: a function of the
    model, whose gradient where `found` is the estimated one. For line searches.
    """
    keys, then = jax.random.split(key, 3), found.estimated
    queries = in_chunks(model.query, pairs.queries, num_chunks, key=keys[0])
    documents, drawn = _documents(
        model, pairs, cache, found.sample, num_chunks, keys[2]
    )
    negatives = scored_in_batch(pairs, marks(pairs), cache)
    scores = batch_scores(queries, documents, scale, negatives)
    fresh = jnp.concatenate([drawn, documents[: num_pairs(pairs)]])
    now = estimator(
        queries, scores, fresh, found.sample, scale, label_smoothing, found.anchor
    )
    return weighed(then.losses + now.surrogate - then.surrogate, pairs)


def _documents(
    model: PyTree,
    pairs: Pairs,
    cache: NegativeCache,
    sample: Sample,
    num_chunks: int,
    key: PRNGKeyArray,
    mesh: Mesh | None = None,
) -> tuple[Float[Array, "documents size"], Float[Array, "draws size"]]:
    """Return the embeddings of the batch's documents and of the drawn ones."""
    items = joined(batch_documents(pairs), cache.documents(sample.slots))
    # Drawn documents are looked up by all devices, and embedded by one each.
    items = constrain_batch(items, mesh)
    embedded = in_chunks(model.document, items, num_chunks, key=key)
    num = len(marks(pairs).ids)
    return embedded[:num], embedded[num:]
