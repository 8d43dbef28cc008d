"""What trainers refuse before any compute."""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from effgen.retrieval_cache.cache.negative_cache import NegativeCache
from effgen.retrieval_cache.data.pairs import (
    MOST_NUMBER,
    Pairs,
    batch_documents,
    marks,
    pairs_at_hand,
)
from effgen.retrieval_cache.encoders.embeddings import check_alike, check_holds
from effgen.retrieval_cache.encoders.towers import LearnedTemperature, embed
from effgen.retrieval_cache.search.index import Index


_FIRST = 1 << 14


def check_temperature(temperature: Any) -> None:
    """Raise for an object that is no temperature."""
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
    """Raise `ValueError` for an object that is no share below one."""
    if not 0 <= label_smoothing < 1:
        raise ValueError(
            f"`label_smoothing` is {label_smoothing}: pass a share below 1."
        )


def check_met(frequencies: Any, pairs: Pairs, data: Any) -> None:
    """Raise `ValueError` for batches whose documents have no frequency."""
    _check_by_number(pairs)
    ids, often = _ids_of(data), np.asarray(frequencies)
    here = (ids >= 0) & (ids < len(often))
    never = ids[~here | (often[np.where(here, ids, 0)] <= 0)]
    if len(never):
        raise ValueError(
            f"`frequencies` says nothing of document {never[0]}, or that it is never "
            "met: pass how often each is, such as `np.bincount(ids)`."
        )


def check_numbered(pairs: Pairs, num: int, data: Any) -> None:
    """Raise `ValueError` for documents whose frequency cannot be estimated."""
    _check_by_number(pairs)
    ids = _ids_of(data)
    outside = ids[(ids < 0) | (ids >= num)]
    if len(outside):
        raise ValueError(
            f"`ids` has {outside[0]} and `StreamedFrequencies` are of {num} numbers: "
            "make them of more, or number documents from 0 on."
        )


def _check_by_number(pairs: Pairs) -> None:
    if pairs.ids is None or pairs.negatives is not None:
        raise ValueError(
            "`frequencies` are of documents by number: pass batches with `ids`, and "
            "without `negatives`, which are not met by chance."
        )


def _ids_of(data: Any) -> np.ndarray:
    """Return the documents' numbers if data are arrays, else none."""
    given = pairs_at_hand(data)
    return np.zeros(0, np.int32) if given is None else np.asarray(given.ids)


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


def check_chunks(num_chunks: int, num_queries: int, num_documents: int) -> None:
    """Raise for chunks that would not be of one size."""
    for name, num in (("queries", num_queries), ("documents", num_documents)):
        if num % num_chunks:
            raise ValueError(
                f"`num_chunks` is {num_chunks}, which does not divide the {num} {name} "
                "that a step embeds: pass one of their divisors."
            )


def check_model(temperature: Any, model: PyTree) -> None:
    """Raise for a model without two towers, or without a temperature to train."""
    _check_towers(model, ("query", "document"))
    _check_own_temperature(temperature, model)


def _check_own_temperature(temperature: Any, model: PyTree) -> None:
    has_own = isinstance(getattr(model, "temperature", None), LearnedTemperature)
    if temperature is None and not has_own:
        raise ValueError(
            "`temperature` is `None` and the model has none of its own: pass a number, "
            "or `TwoTowers(query, document, LearnedTemperature.of(0.05))`."
        )
    if temperature is not None and has_own:
        raise ValueError(
            f"`temperature` is {temperature} and the model has one of its own, which "
            "would be left as it is: pass `temperature=None`, which trains it, or a "
            "model without."
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
    """Raise for an object that is no cache, or a cache of another embedding size."""
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
    """Raise for a model without queries' tower, or for an object that is no index."""
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
    _check_weights(pairs.weights, num)
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
    _check_negatives(pairs, num)
    _check_weights(pairs.weights, num)
    if cache is None and pairs.known is not None and pairs.ids is None:
        raise ValueError(
            "a batch has `known`, numbers of documents, and no `ids` of its own "
            "documents: pass these too, or leave `known` out."
        )
    query = _embedded_size("query", model.query, pairs.queries)
    documents = jax.eval_shape(batch_documents, pairs)
    document = _embedded_size("document", model.document, documents)
    if query != document:
        raise ValueError(
            f"the query tower makes embeddings of {query} and the document tower of "
            f"{document}: make them one size."
        )
    if cache is not None:
        check_alike(cache.items, pairs.documents)


def _check_negatives(pairs: Pairs, num: int) -> None:
    """Raise `ValueError` for negatives whose rows are not those of the pairs."""
    if pairs.negatives is None:
        if pairs.negative_ids is not None:
            raise ValueError(
                "a batch has `negative_ids` and no `negatives`: pass the documents "
                "too, because they are not looked up by number."
            )
        return
    shapes = {tuple(x.shape[:2]) for x in jax.tree.leaves(pairs.negatives)}
    if pairs.negative_ids is not None:
        shapes.add(tuple(pairs.negative_ids.shape))
    if len(shapes) != 1 or {len(x) for x in shapes} != {2} or min(shapes)[0] != num:
        raise ValueError(
            f"a batch of {num} pairs has `negatives`, or their numbers, of shapes "
            f"{sorted(shapes)}: pass `({num}, each, ...)`, and as many numbers."
        )


def _check_weights(weights: Any, num: int) -> None:
    """Raise `ValueError` unless there is one number for each pair."""
    if weights is None:
        return
    number = jnp.issubdtype(weights.dtype, jnp.integer)
    if weights.shape != (num,) or not (
        number or jnp.issubdtype(weights.dtype, jnp.floating)
    ):
        raise ValueError(
            f"a batch's `weights` are {weights.dtype} of shape {weights.shape}: pass "
            f"a number for each of the {num} pairs."
        )


def check_weights(data: Any) -> None:
    """Raise `ValueError` for weights below zero or not finite, of data in arrays."""
    weights = getattr(pairs_at_hand(data), "weights", None)
    if weights is None or not getattr(weights, "is_fully_addressable", True):
        return
    given = np.asarray(weights)
    if not (np.isfinite(given) & (given >= 0)).all():
        raise ValueError(
            "`weights` are not all finite, or some are below zero: pass a weight of 0 "
            "or more for each pair."
        )


def check_stamps(cache: NegativeCache, step: Any) -> None:
    """Raise `ValueError` for embeddings of a later step than the run's.

    New embeddings would then count as the oldest.
    """
    if not cache.stamps.is_fully_addressable:
        return
    newest, at = int(jnp.max(cache.stamps)), int(step)
    if newest > at:
        raise ValueError(
            f"the cache has embeddings of step {newest} and the run is at step {at}: "
            "shift their steps by `cache.restamped(step)`, or continue by "
            "`effgen.continued(trainer, state, cache)`."
        )


def check_taken_in(cache: NegativeCache, pairs: Pairs) -> None:
    """Raise `ValueError` unless a cache can hold a batch's documents as they are."""
    check_holds(cache.items, jax.eval_shape(batch_documents, pairs))


def check_contents(cache: NegativeCache, data: Any) -> None:
    """Raise `ValueError` if documents differ from the cache's of the same number.

    For arrays, the first few rows are checked. For other data, each step checks.
    """
    given = pairs_at_hand(data)
    if given is None or not cache.ids.is_fully_addressable:
        return
    first = jax.tree.map(lambda x: jnp.asarray(x[:_FIRST]), given)
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
