"""What trainers refuse before any compute."""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, PyTree

from .cache import NegativeCache
from .pairs import MOST_NUMBER, Pairs, as_pairs, batch_documents, marks
from .search import Index
from .towers import LearnedTemperature, embed


_FIRST = 1 << 14


def check_temperature(temperature: Any) -> None:
    """Raise for what is no temperature."""
    if temperature is None or callable(temperature):
        return
    number = int | float | np.floating
    if isinstance(temperature, bool) or not isinstance(temperature, number):
        raise TypeError(
            f"`temperature` is a {type(temperature).__name__}: pass a number, an optax "
            "schedule, or `None` for the model's own."
        )
    if not 0 < temperature < math.inf:
        raise ValueError(f"`temperature` is {temperature}: pass a positive number.")


def check_smoothing(label_smoothing: Any) -> None:
    """Raise `ValueError` for what is no share below one."""
    if not 0 <= label_smoothing < 1:
        raise ValueError(
            f"`label_smoothing` is {label_smoothing}: pass a share below 1."
        )


def check_frequencies(frequencies: Any) -> None:
    """Raise `ValueError` for what does not say how often each document is met."""
    if frequencies is None:
        return
    if jnp.ndim(frequencies) != 1:
        raise ValueError(
            f"`frequencies` has shape {jnp.shape(frequencies)}: pass one number for "
            "each document number, such as `np.bincount(ids)`."
        )
    if eqx.is_array_like(frequencies) and not isinstance(frequencies, Tracer):
        given = np.asarray(frequencies)
        if not (np.isfinite(given) & (given >= 0)).all():
            raise ValueError(
                "`frequencies` are not all finite, or some below zero: pass how often "
                "each document is met, such as `np.bincount(ids)`."
            )


def check_met(frequencies: Any, pairs: Pairs, data: Any) -> None:
    """Raise `ValueError` for batches whose documents have no frequency."""
    if pairs.ids is None or pairs.negatives is not None:
        raise ValueError(
            "`frequencies` are of documents by number: pass batches with `ids`, and "
            "without `negatives`, which are not met by chance."
        )
    arrays = getattr(data, "arrays", None)
    if arrays is None:
        return
    given = arrays._replace(known=None) if isinstance(arrays, Pairs) else arrays
    ids, often = np.asarray(as_pairs(given).ids), np.asarray(frequencies)
    here = (ids >= 0) & (ids < len(often))
    never = ids[~here | (often[np.where(here, ids, 0)] <= 0)]
    if len(never):
        raise ValueError(
            f"`frequencies` says nothing of document {never[0]}, or that it is never "
            "met: pass how often each is, such as `np.bincount(ids)`."
        )


def check_all_met(frequencies: Any, cache: NegativeCache) -> None:
    """Raise `ValueError` where documents of a cache are past the frequencies' end."""
    if frequencies is None or not cache.ids.is_fully_addressable:
        return
    most = int(jnp.max(cache.ids))
    if most >= len(frequencies):
        raise ValueError(
            f"`frequencies` has {len(frequencies)} numbers and the cache a document "
            f"{most}: pass one for each document number, such as `np.bincount(ids, "
            "minlength=...)`."
        )


def check_chunks(chunks: int, num_queries: int, num_documents: int) -> None:
    """Raise for chunks that would not be of one size."""
    for name, num in (("queries", num_queries), ("documents", num_documents)):
        if num % chunks:
            raise ValueError(
                f"`chunks` is {chunks}, which does not divide the {num} {name} that a "
                "step embeds: pass one of their divisors."
            )


def check_model(temperature: Any, model: PyTree) -> None:
    """Raise for a model without two towers, or without a temperature to train."""
    _check_towers(model, ("query", "document"))
    _check_own_temperature(temperature, model)


def _check_own_temperature(temperature: Any, model: PyTree) -> None:
    if temperature is None and not isinstance(
        getattr(model, "temperature", None), LearnedTemperature
    ):
        raise ValueError(
            "`temperature` is `None` and the model has none of its own: pass a number, "
            "or `TwoTowers(query, document, LearnedTemperature.of(0.05))`."
        )


def _check_towers(model: PyTree, names: tuple[str, ...]) -> None:
    for name in names:
        if not callable(getattr(model, name, None)):
            raise TypeError(
                f"the model, a {type(model).__name__}, has no tower `{name}`: pass "
                "`retrieval_cache.TwoTowers(query, document)`, or "
                "`TwoTowers.tied(encoder)`."
            )


def check_cache(model: PyTree, cache: Any) -> None:
    """Raise for what is no cache, or one that the document tower does not fit."""
    if not isinstance(cache, NegativeCache):
        raise TypeError(
            f"`memory` is a {type(cache).__name__}: pass a cache, such as "
            "`NegativeCache.fill(encoder.document, corpus)`."
        )
    size = cache.rows.shape[1]
    found = _embedded_size("document", model.document, cache.items)
    if found != size:
        raise ValueError(
            f"the document tower makes embeddings of {found} and the cache has {size}: "
            "fill it anew with this model."
        )


def check_frozen(temperature: Any, model: PyTree, index: Any) -> None:
    """Raise for a model without queries' tower, or for what is no index."""
    _check_towers(model, ("query",))
    _check_own_temperature(temperature, model)
    if not isinstance(index, Index):
        raise TypeError(
            f"`memory` is a {type(index).__name__}: pass the documents, such as "
            "`Index.from_embeddings(embeddings)` or `Index.of(encode, items)`."
        )


def check_frozen_pairs(model: PyTree, index: Index, pairs: Pairs) -> None:
    """Raise for a batch that does not fit the query tower and an index."""
    rows = {x.shape[0] for x in jax.tree.leaves(pairs.queries)}
    if len(rows) != 1:
        raise ValueError(f"a batch's queries have leaves of {sorted(rows)} rows.")
    (num,) = rows
    for name, dims in (("ids", 1), ("known", 2)):
        _check_numbers(name, getattr(pairs, name), num, dims)
    found, size = (
        _embedded_size("query", model.query, pairs.queries),
        index.rows.shape[1],
    )
    if found != size:
        raise ValueError(
            f"the query tower makes embeddings of {found} and the index has {size}: "
            "make them one size."
        )


def check_pairs(model: PyTree, cache: NegativeCache | None, pairs: Pairs) -> None:
    """Raise for a batch that does not fit the towers, or the cache.

    `pairs` has shapes and dtypes only.
    """
    rows = {x.shape[0] for x in jax.tree.leaves((pairs.queries, pairs.documents))}
    if len(rows) != 1:
        raise ValueError(
            f"a batch has leaves of {sorted(rows)} rows: queries and documents need "
            "one row a pair."
        )
    (num,) = rows
    for name, dims in (("ids", 1), ("known", 2), ("negative_ids", 2)):
        _check_numbers(name, getattr(pairs, name), num, dims)
    query = _embedded_size("query", model.query, pairs.queries)
    documents = jax.eval_shape(batch_documents, pairs)
    document = _embedded_size("document", model.document, documents)
    if query != document:
        raise ValueError(
            f"the query tower makes embeddings of {query} and the document tower of "
            f"{document}: make them one size."
        )
    if cache is not None:
        _check_same_items(cache.items, pairs.documents)


def check_contents(cache: NegativeCache, data: Any) -> None:
    """Raise `ValueError` if documents are not those that the cache has by their number.

    Of data that are arrays, the first few; of all others each step tells.
    """
    arrays = getattr(data, "arrays", None)
    if arrays is None or not cache.ids.is_fully_addressable:
        return
    # Without what is known, which is not looked at and may be large.
    given = arrays._replace(known=None) if isinstance(arrays, Pairs) else arrays
    first = jax.tree.map(lambda x: jnp.asarray(x[:_FIRST]), as_pairs(given))
    if first.ids is not None:
        check_same(cache, first)


def check_same(cache: NegativeCache, pairs: Pairs) -> None:
    """Raise `ValueError` if pairs' documents are not those of their number."""
    number = int(eqx.filter_jit(_differing)(cache, pairs))
    if number >= MOST_NUMBER:
        raise ValueError("`ids` go past 2^30: number documents from 0 up to that.")
    if number >= 0:
        raise ValueError(
            f"`ids` has {number} for a document that is not the cache's document "
            f"{number}: number documents as the cache was filled, give them as they "
            "are there, or leave `ids` out: content then identifies them."
        )


def _differing(cache: NegativeCache, pairs: Pairs) -> Array:
    return cache.differing(marks(pairs))


def _check_numbers(name: str, found: Any, num: int, dims: int) -> None:
    if found is None:
        return
    if not jnp.issubdtype(found.dtype, jnp.integer):
        raise TypeError(f"a batch's `{name}` are {found.dtype}: pass integers.")
    if found.ndim != dims or found.shape[0] != num:
        raise ValueError(
            f"a batch's `{name}` have shape {found.shape}: pass {dims} axes, the first "
            f"of {num} rows."
        )


def _check_same_items(cached: PyTree, documents: PyTree) -> None:
    """Raise unless documents of a batch and of the cache can be embedded together."""
    own, other = (jax.tree.structure(x) for x in (cached, documents))
    if own != other:
        raise ValueError(
            f"a batch's documents are {other} and the cache's items {own}: give both "
            "the same structure."
        )
    for kept, new in zip(*map(jax.tree.leaves, (cached, documents)), strict=True):
        if kept.shape[1:] != new.shape[1:]:
            raise ValueError(
                f"a batch's documents have shape {new.shape[1:]} each and the cache's "
                f"{kept.shape[1:]}: pad both to one length."
            )


def _embedded_size(name: str, tower: Any, items: PyTree) -> int:
    found = eqx.filter_eval_shape(lambda tower, x: embed(tower, x), tower, items)
    rows = jax.tree.leaves(items)[0].shape[0]
    if not hasattr(found, "shape") or len(found.shape) != 2 or found.shape[0] != rows:
        shape = getattr(found, "shape", type(found).__name__)
        raise ValueError(
            f"the {name} tower returns {shape} for a batch of {rows}: return one "
            f"embedding a row, `({rows}, size)`; map a model of one with `jax.vmap`."
        )
    return found.shape[1]
