"""Many documents embedded, some at a time, and what embeddings have to be."""

from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from effgen.core.contract.counts import check_count


def embedded(
    encode: Callable[[PyTree], Float[Array, "batch size"]],
    items: PyTree,
    batch_size: int | None = None,
) -> Float[Array, "documents size"]:
    """Return the embeddings of many documents, some at a time, without gradients."""
    num = num_items(items)
    if batch_size is not None:
        check_count("batch_size", batch_size)
    size = min(batch_size or at_once(), num)
    check_callable(encode)
    part = lambda i: jax.tree.map(lambda x: jnp.asarray(x[i : i + size]), items)
    found = embedded_part(encode, part(0), size)
    whole = _put(jnp.zeros((num, *found.shape[1:]), found.dtype), found, 0)
    for start in range(size, num, size):
        # The last piece reaches back, so that all are of one size: one program.
        start = min(start, num - size)
        whole = _put(whole, embedded_part(encode, part(start), size), start)
    return whole


def at_once() -> int:
    """Return the default number of documents that are embedded at once."""
    return 64 if jax.default_backend() == "cpu" else 1_024


def check_callable(encode: Any) -> None:
    """Raise `TypeError` for an object that is no tower."""
    if not callable(encode):
        raise TypeError(
            f"`encode` is a {type(encode).__name__}, which cannot be called: pass a "
            "tower, such as `encoder.document`."
        )


def embedded_part(
    encode: Callable[[PyTree], Array], part: PyTree, num: int
) -> Float[Array, "documents size"]:
    """Return embeddings; an error is told what a tower is given."""
    try:
        return _compiled(encode, part)
    except Exception as error:
        error.add_note(
            f"A tower is given a batch, here of {num} rows, and returns `(batch, "
            "size)`: map one of a single row with `jax.vmap`."
        )
        raise


@eqx.filter_jit
def _compiled(encode: Callable[[PyTree], Array], part: PyTree) -> Array:
    return encode(part)


@partial(jax.jit, donate_argnums=0)
def _put(whole: Array, part: Array, start: int) -> Array:
    return jax.lax.dynamic_update_slice_in_dim(whole, part, start, 0)


def num_items(items: PyTree) -> int:
    """Return how many documents there are.

    Raises:
        TypeError: For text, or what is no numbers.
        ValueError: For none, leaves of different lengths, or integers past 32 bits.
    """
    leaves = jax.tree.leaves(items)
    kind_of = lambda x: getattr(getattr(x, "dtype", None), "kind", None)
    texts = [x for x in leaves if isinstance(x, str) or kind_of(x) in ("U", "S", "O")]
    if texts:
        raise TypeError(
            f"`items` holds text, or no numbers, such as {str(texts[0])[:40]!r}: pass "
            "what a tower reads, such as `words(texts)` with a tokenizer."
        )
    lengths = {np.shape(leaf)[0] if np.ndim(leaf) else None for leaf in leaves}
    if len(lengths) != 1 or None in lengths:
        raise ValueError(
            f"`items` has leaves of lengths {sorted(map(str, lengths))}: pass arrays "
            "that share their leading axis, one row a document."
        )
    (num,) = lengths
    if num == 0:
        raise ValueError("`items` holds no document: pass the corpus.")
    assert num is not None
    for leaf in leaves:
        _check_bits(leaf)
    return num


def _check_bits(leaf: Any) -> None:
    """Raise `ValueError` for integers that JAX would cut to 32 bits."""
    kept = getattr(jax.config, "jax_enable_x64", False)
    wide = isinstance(leaf, np.ndarray) and leaf.dtype in (np.int64, np.uint64)
    if kept or not wide or not leaf.size:
        return
    bounds = np.iinfo(np.int32 if leaf.dtype == np.int64 else np.uint32)
    for found in (int(leaf.min()), int(leaf.max())):
        if not bounds.min <= found <= bounds.max:
            raise ValueError(
                f"`items` holds {found}, which JAX would cut to 32 bits: number what "
                "it stands for on the host, such as by `np.unique(x, "
                "return_inverse=True)`, or set `jax_enable_x64`."
            )


def check_embeddings(
    found: Float[Array, "documents size"],
    at: Int[np.ndarray, " documents"] | None = None,
) -> None:
    """Raise `ValueError` for values that are no embeddings, or not finite, or all zero.

    `at` are the documents' rows, where they are not those of `found`.
    """
    check_finite(found, at)
    num, first = _all_zero(found)
    _refuse("all zero", num, first, at)


def check_finite(
    found: Float[Array, "documents size"],
    at: Int[np.ndarray, " documents"] | None = None,
) -> None:
    """Raise `ValueError` for values that are no embeddings, or not finite."""
    if found.ndim != 2:
        raise ValueError(
            f"`encode` returned shape {found.shape}: it takes a batch of documents and "
            "returns `(batch, size)`."
        )
    num, first = _not_finite(found)
    _refuse("not finite", num, first, at)


@jax.jit
def _all_zero(found: Float[Array, "documents size"]) -> tuple[Array, Array]:
    return _counted(jnp.all(found == 0, axis=1))


@jax.jit
def _not_finite(found: Float[Array, "documents size"]) -> tuple[Array, Array]:
    return _counted(~jnp.all(jnp.isfinite(found), axis=1))


def _counted(bad: Bool[Array, " documents"]) -> tuple[Array, Array]:
    return jnp.sum(bad), jnp.argmax(bad)


def _refuse(
    name: str, num: Array, first: Array, at: Int[np.ndarray, " documents"] | None
) -> None:
    if int(num):
        row = int(first) if at is None else int(at[int(first)])
        raise ValueError(
            f"the embeddings of {int(num)} documents are {name} (row {row} "
            "first), as of tokens that an encoder has no vectors of: give it those of "
            "its own tokenizer, mend it, or leave them out."
        )


def check_alike(kept: PyTree, documents: PyTree) -> None:
    """Raise `ValueError` unless documents can be embedded with those of a cache."""
    own, other = (jax.tree.structure(x) for x in (kept, documents))
    if own != other:
        raise ValueError(
            f"a batch's documents are {other} and the cache's items {own}: give both "
            "the same structure."
        )
    for old, new in zip(*map(jax.tree.leaves, (kept, documents)), strict=True):
        if old.shape[1:] != new.shape[1:]:
            raise ValueError(
                f"a batch's documents have shape {new.shape[1:]} each and the cache's "
                f"{old.shape[1:]}: pad both to one length."
            )


def check_holds(kept: PyTree, documents: PyTree) -> None:
    """Raise `ValueError` unless a cache's items can hold documents without a loss."""
    for old, new in zip(*map(jax.tree.leaves, (kept, documents)), strict=True):
        if jnp.promote_types(old.dtype, new.dtype) != old.dtype:
            raise ValueError(
                f"a batch's documents are {new.dtype} and the cache's items "
                f"{old.dtype}, which would cut them: give documents as {old.dtype}, or "
                f"make the cache of items that are {new.dtype}."
            )
