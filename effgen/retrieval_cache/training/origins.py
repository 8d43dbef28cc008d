"""By which model a cache's embeddings were made: the one that it trains, or another."""

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int, PyTree

from effgen.retrieval_cache.cache.negative_cache import NegativeCache
from effgen.retrieval_cache.encoders.embeddings import at_once, embedded


# Of an embedding's length. Bytes are off by a hundredth, and a step moves less.
_MOST = 0.1


def check_origin(model: PyTree, cache: NegativeCache) -> None:
    """Raise or warn if the newest embeddings are not those of the document tower.

    Some documents are embedded again, as many as `NegativeCache.fill` embeds at once,
    by the same program. Rows on devices of other processes are not looked at.

    Raises:
        ValueError: If they are the query tower's.

    Warns:
        UserWarning: If they are those of another model.
    """
    if isinstance(cache.stamps, Tracer) or not cache.stamps.is_fully_addressable:
        return
    slots = _newest(cache)
    if not len(slots):
        return
    documents, kept = cache.documents(slots), cache.rows.take(slots).embeddings()
    off = _difference(model.document, documents, kept)
    if off <= _MOST:
        return
    if _is_by(model.query, documents, kept):
        raise ValueError(
            "the cache was filled by the query tower: fill it by the document tower, "
            "`NegativeCache.fill(model.document, corpus)`."
        )
    warnings.warn(
        f"the cache's newest embeddings differ by {off:.0%} of their length from those "
        "of the model's document tower: another model made them. Embed the documents "
        "anew by `cache.rebuilt(model.document)`, or pass the model that filled it.",
        stacklevel=4,
    )


def _newest(cache: NegativeCache) -> Int[Array, " some"]:
    """Return rows of the newest step, repeated to as many as are embedded at once."""
    num = min(at_once(), int(jnp.sum(cache.valid)))
    found = np.asarray(_first_newest(cache.stamps, cache.valid, num))
    return jnp.asarray(np.resize(found[found < cache.capacity], num))


@partial(jax.jit, static_argnames="num")
def _first_newest(
    stamps: Int[Array, " rows"], valid: Bool[Array, " rows"], num: int
) -> Int[Array, " num"]:
    """Return the first rows of the newest step, and past them the number of rows."""
    own = jnp.where(valid, stamps, jnp.iinfo(stamps.dtype).min)
    newest = valid & (own == jnp.max(own))
    return jnp.nonzero(newest, size=num, fill_value=len(stamps))[0]


def _difference(
    encode: Callable[..., Any], documents: PyTree, kept: Float[Array, "documents size"]
) -> float:
    """Return the median distance to what is kept, over the length; infinite for NaN."""
    found = np.asarray(embedded(encode, documents), np.float64)
    apart = np.linalg.norm(found - np.asarray(kept, np.float64), axis=1)
    length = np.linalg.norm(found, axis=1)
    shares = apart / np.maximum(length, np.finfo(np.float64).tiny)
    return float(np.median(np.where(np.isfinite(shares), shares, np.inf)))


def _is_by(
    encode: Callable[..., Any], documents: PyTree, kept: Float[Array, "documents size"]
) -> bool:
    """Return whether a tower made what is kept."""
    try:
        shape = jax.eval_shape(encode, documents).shape
    except Exception:  # a tower of other inputs, which cannot have made it
        return False
    return shape == jnp.shape(kept) and _difference(encode, documents, kept) <= _MOST
