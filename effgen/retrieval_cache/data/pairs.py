"""A batch: queries, their documents, and what is known of both."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from effgen.core.data.ragged import whole

from .digests import content_digests


MOST_NUMBER = 1 << 30


class Pairs(NamedTuple):
    """Queries and a document that answers each.

    A document that a batch has more than once counts once: where queries have unequally
    many negatives, fill up with the document that answers.

    Arguments:
        queries: A pytree of arrays with the leading axis `batch`.
        documents: The same of documents.
        ids: The documents' numbers in the corpus, `(batch,)`, from 0 up to 2^30.
            Without them, or where one is below zero, documents are identified by
            their content. A document that the cache does not have is not in it (yet).
        known: Numbers of all documents that answer a query, `(batch, any)`, filled up
            with -1; they are no negatives. Of all pairs of some data,
            `effgen.core.data.ragged.Ragged` has them unfilled, as in `pairs_of`.
        negatives: Documents that do not answer, a pytree of `(batch, each, ...)`. They
            are negatives of every query.
        negative_ids: Their numbers, `(batch, each)`.
        weights: The weight of each pair, `(batch,)`, zero or more. The loss is the mean
            of `weights * losses`. By default each weight is one.
    """

    queries: PyTree
    documents: PyTree
    ids: Int[Array, " batch"] | None = None
    known: Int[Array, "batch any"] | Any = None
    negatives: PyTree = None
    negative_ids: Int[Array, "batch each"] | None = None
    weights: Float[Array, " batch"] | None = None


class Marks(NamedTuple):
    """How a document is recognized: by its number and its content.

    Attributes:
        ids: The numbers, `(documents,)`, -1 if unknown.
        digests: The digests of the content, `(documents,)`, as in `content_digests`.
    """

    ids: Int[Array, " documents"]
    digests: Int[Array, " documents"]


def as_pairs(batch: Any) -> Pairs:
    """Return a batch of `Pairs`, from a tuple in their order or a dict of their names.

    Raises:
        TypeError: For anything else.
    """
    pairs = None
    if isinstance(batch, Pairs):
        pairs = batch
    elif isinstance(batch, dict) and set(batch) <= set(Pairs._fields):
        if {"queries", "documents"} <= set(batch):
            pairs = Pairs(**batch)
    elif isinstance(batch, tuple | list) and 2 <= len(batch) <= len(Pairs._fields):
        pairs = Pairs(*batch)
    if pairs is not None:
        return pairs._replace(known=whole(pairs.known))
    raise TypeError(
        f"a batch is a {type(batch).__name__}: pass `retrieval_cache.Pairs(queries, "
        "documents, ids)`, a tuple in that order, or a dict of these names."
    )


def pairs_at_hand(data: Any) -> Pairs | None:
    """Return the pairs of data that are arrays, without `known`; else `None`.

    What is known is not looked at, and may be large.

    Raises:
        TypeError: If the arrays are not those of pairs.
    """
    arrays = getattr(data, "arrays", None)
    if arrays is None:
        return None
    return as_pairs(
        arrays._replace(known=None) if isinstance(arrays, Pairs) else arrays
    )


def num_pairs(pairs: Pairs) -> int:
    """Return how many queries there are."""
    return jax.tree.leaves(pairs.queries)[0].shape[0]


def num_documents(pairs: Pairs) -> int:
    """Return how many documents there are, of arrays or of their shapes."""
    return jax.tree.leaves(jax.eval_shape(batch_documents, pairs))[0].shape[0]


def batch_documents(pairs: Pairs) -> PyTree:
    """Return all documents of a batch: those that answer, then the negatives."""
    if pairs.negatives is None:
        return pairs.documents
    return joined(pairs.documents, jax.tree.map(_flat, pairs.negatives))


def marks(pairs: Pairs) -> Marks:
    """Return by what the documents of `batch_documents` are recognized."""
    documents = batch_documents(pairs)
    digests = content_digests(documents)
    num, rest = num_pairs(pairs), len(digests) - num_pairs(pairs)
    none = lambda rows: jnp.full(rows, -1, jnp.int32)
    ids = none(num) if pairs.ids is None else as_numbers(pairs.ids)
    if rest:
        negative = pairs.negative_ids
        more = none(rest) if negative is None else as_numbers(negative).reshape(-1)
        ids = jnp.concatenate([ids, more])
    return Marks(jnp.minimum(ids, MOST_NUMBER), digests)


def weighed(losses: Float[Array, " batch"], pairs: Pairs) -> Float[Array, ""]:
    """Return the mean of `weights * losses`; NaN if a weight is below zero."""
    if pairs.weights is None:
        return jnp.mean(losses)
    given = pairs.weights.astype(losses.dtype)
    return jnp.mean(jnp.where(given >= 0, given, jnp.nan) * losses)


def as_numbers(ids: Int[Any, "*any"]) -> Int[Array, "*any"]:
    """Return documents' numbers in 32 bits, whatever integers they are given in.

    One past 32 bits becomes the greatest, and one below zero -1: neither is to become
    another document's.
    """
    if isinstance(ids, np.ndarray):  # of 64 bits, which JAX would wrap around
        least = -1 if ids.dtype.kind == "i" else 0
        ids = np.clip(ids, least, np.iinfo(np.int32).max).astype(np.int32)
    given = jnp.asarray(ids)
    own, kept = jnp.iinfo(given.dtype), jnp.iinfo(jnp.int32)
    least, most = max(-1, int(own.min)), min(int(kept.max), int(own.max))
    bounds = (jnp.asarray(x, given.dtype) for x in (least, most))
    return jnp.clip(given, *bounds).astype(jnp.int32)


def joined(first: PyTree, second: PyTree) -> PyTree:
    """Return two pytrees of rows as one; integers in the wider of their types."""
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), first, second)


def _flat(x: Array) -> Array:
    return x.reshape(-1, *x.shape[2:])
