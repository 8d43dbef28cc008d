"""Checks of arrays with a row for each example, from which batches are drawn."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from effgen.core.contract.masked import check_unmasked

from .ragged import Ragged, is_ragged


def is_array(x: Any) -> bool:
    """Return whether `x` is an array of any library, or a pandas column."""
    return hasattr(x, "shape") and hasattr(x, "dtype")


def by_position(arrays: PyTree) -> PyTree:
    """Return `arrays` with pandas columns as NumPy arrays.

    Indexing a column uses its labels, whose order may differ from that of the rows.
    """

    def plain(x: Any) -> Any:
        return x.to_numpy() if hasattr(x, "iloc") and hasattr(x, "dtype") else x

    return jax.tree.map(plain, arrays, is_leaf=is_ragged)


def num_rows(arrays: PyTree) -> int:
    """Return the length of the leading axis that the leaves of `arrays` share."""
    return jax.tree.leaves(arrays, is_leaf=is_ragged)[0].shape[0]


def named_leaves(tree: PyTree) -> list[tuple[str, Any]]:
    """Return the leaves of `tree` with their paths, rows of any length as one."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_ragged)
    return [(jax.tree_util.keystr(path), leaf) for path, leaf in leaves]


def check_rows(arrays: PyTree, batch_size: int) -> None:
    """Raise unless `arrays` can be cut into batches of `batch_size` rows."""
    named = named_leaves(arrays)
    if not named:
        raise ValueError("`arrays` holds no array: pass the data to draw batches from.")
    for name, leaf in named:
        _check_numeric(name, leaf)
    rows = {name: np.shape(leaf)[0] for name, leaf in named}
    if len(set(rows.values())) > 1:
        sizes = ", ".join(f"arrays{name}: {size}" for name, size in rows.items())
        raise ValueError(
            f"the leaves of `arrays` differ in their leading axis ({sizes}): every "
            "leaf needs one row for each example."
        )
    total = next(iter(rows.values()))
    if total == 0:
        raise ValueError("`arrays` has no rows: pass the data to draw batches from.")
    if isinstance(batch_size, bool) or not isinstance(batch_size, int | np.integer):
        raise TypeError(f"`batch_size` is {batch_size!r}: pass a positive integer.")
    if not 1 <= batch_size <= total:
        raise ValueError(
            f"`batch_size` is {batch_size} but there are {total} rows: pass a size "
            f"between 1 and {total}."
        )


def _check_numeric(name: str, leaf: Any) -> None:
    if not is_array(leaf):
        raise TypeError(
            f"`arrays{name}` is a {type(leaf).__name__}: pass numpy or JAX arrays."
        )
    check_unmasked(f"arrays{name}", leaf)
    if not _is_numeric(leaf.dtype):
        raise TypeError(
            f"`arrays{name}` has dtype {leaf.dtype}: encode it as numbers of NumPy's "
            "or JAX's first."
        )
    if len(leaf.shape) == 0:
        raise ValueError(f"`arrays{name}` is a scalar: the leading axis must be rows.")


def _is_numeric(dtype: Any) -> bool:
    try:
        dtype = np.dtype(dtype)
    except TypeError:  # another library's, or that of random keys
        return False
    # JAX knows bfloat16 and its kin, NumPy does not.
    return dtype.kind == "b" or bool(jnp.issubdtype(dtype, np.number))


def check_width(name: str, tree: PyTree) -> None:
    """Raise for integers that JAX would wrap around, as it does silently."""
    for path, leaf in named_leaves(tree):
        if isinstance(leaf, jax.Array) or not jnp.issubdtype(leaf.dtype, np.integer):
            continue  # an array of JAX's has been narrowed already, or is kept wide
        leaf = leaf.values if isinstance(leaf, Ragged) else leaf
        kept = jax.dtypes.canonicalize_dtype(leaf.dtype)
        if kept == leaf.dtype:
            continue
        low, high = leaf.min(), leaf.max()
        if low < np.iinfo(kept).min or high > np.iinfo(kept).max:
            raise ValueError(
                f"`{name}{path}` has numbers from {low} to {high}, and the device "
                f"keeps {kept}: number them from 0, or set `jax_enable_x64`."
            )
