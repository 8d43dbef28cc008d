"""One batch, estimated: embedded, drawn for, and scored."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from .cache import NegativeCache
from .draws import Beside, Sample, sampled
from .estimators import AbstractEstimator, Estimated
from .objective import batch_scores, negatives_in_batch
from .pairs import Marks, Pairs, batch_documents, joined, marks, num_pairs
from .towers import in_chunks


class Embedded(NamedTuple):
    """A batch's estimate, the draws, and the embeddings that were made for it.

    **Attributes:** `documents`, of the batch; `fresh`, of the draws; no gradient.
    """

    estimated: Estimated
    sample: Sample
    documents: Float[Array, "documents size"]
    fresh: Float[Array, "draws size"]


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
    chunks: int = 1,
    mesh: Mesh | None = None,
) -> Embedded:
    """Return the losses of a batch against a cache, to be differentiated by `model`.

    The batch's documents and the drawn ones go through their tower as one.
    """
    found, own = marks(pairs), num_pairs(pairs)
    num, keys = len(found.ids), jax.random.split(key, 3)
    queries = in_chunks(model.query, pairs.queries, chunks, key=keys[0])
    negatives = negatives_in_batch(pairs, found)
    # What answers a query is as good as drawn evenly; explicit negatives are not.
    slots = cache.find(Marks(found.ids[:own], found.digests[:own]))
    sample = sampled(
        cache,
        queries,
        scale,
        num_negatives,
        estimator.excluded(pairs, found, cache, slots),
        Beside(slots, negatives[:, :own]),
        key=keys[1],
        mesh=mesh,
    )
    items = joined(batch_documents(pairs), cache.documents(sample.slots))
    documents = in_chunks(model.document, items, chunks, key=keys[2])
    scores = batch_scores(queries, documents[:num], scale, negatives)
    drawn = documents[num:]
    fresh = jnp.concatenate([drawn, documents[:own]])
    estimated = estimator(queries, scores, fresh, sample, scale, label_smoothing)
    return Embedded(estimated, sample, *jax.lax.stop_gradient((documents[:num], drawn)))
