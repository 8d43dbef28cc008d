"""How often each document is in a batch, where data say so."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from .cache import NegativeCache
from .pairs import Pairs, as_pairs


_SPARSEST = 4  # numbers for each row of a cache


def met(cache: NegativeCache, data: Any) -> Float[Array, " corpus"] | None:
    """Return how often arrays of pairs have each document number.

    Nothing for other data, for documents without a number, where all of the cache are
    equally often, or where most numbers are of no document.
    """
    ids = _numbers(data)
    if ids is None or not len(ids) or ids.min() < 0:
        return None
    if not cache.ids.is_fully_addressable:
        return None
    here = np.asarray(cache.ids)[np.asarray(cache.valid)]
    most = max(int(ids.max()), int(here.max(initial=0))) + 1
    if most > _SPARSEST * cache.capacity:
        return None
    often = np.bincount(ids, minlength=most)
    if len(here) and (often[here] == often[here[0]]).all():
        return None
    return jnp.asarray(often, jnp.float32)


def _numbers(data: Any) -> Int[np.ndarray, " pairs"] | None:
    """Return the documents' numbers of data that are arrays of pairs."""
    arrays = getattr(data, "arrays", None)
    if isinstance(arrays, Pairs):
        arrays = arrays._replace(known=None)  # which may be large
    try:
        ids = as_pairs(arrays).ids
    except TypeError:
        return None  # `check` says what is wrong
    kind = getattr(ids, "dtype", None)
    if kind is None or not jnp.issubdtype(kind, jnp.integer):
        return None
    if not getattr(ids, "is_fully_addressable", True):
        return None
    return np.asarray(ids)
