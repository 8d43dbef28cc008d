"""Checks of data before training: of their shape, their values and their scale."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

from effgen.core.data.batches import Minibatches


# So many rows are searched for atoms; with fewer than the least, none can be told.
_MOST_ROWS, _LEAST_ROWS = 4096, 20
_ATOM = 0.25
# How far data may be from the walkers, in the walkers' spreads, and how much narrower:
# in all columns, and in one.
_FARTHEST = 30.0
_NARROWER, _NARROWEST = 30.0, 1000.0


def check_continuous_data(batch: Any, source: Any, last: int | None = None) -> None:
    """Raise on data without a density: integers, or a column that is constant.

    Arguments:
        batch: The first batch, or its shape and dtype.
        source: The data of the run.
        last: Where the columns that are looked at end, in rows that are vectors.
    """
    if not jnp.issubdtype(batch.dtype, jnp.floating):
        raise TypeError(
            f"`data` has dtype {batch.dtype}: energies need floats; convert and scale "
            "it, as in `x.astype('float32') / 255`."
        )
    if isinstance(source, Minibatches):
        check_columns("data", _columns_to(last, source.arrays))
        return
    # Of data that are read as they are needed, some: they may be larger than memory.
    rows = rows_at_hand(batch, source)
    if isinstance(rows, np.ndarray | jax.Array) and not isinstance(rows, Tracer):
        if len(rows) >= _LEAST_ROWS:
            check_columns("data", _columns_to(last, spread_rows(rows, _MOST_ROWS)))


def _columns_to(last: int | None, rows: Any) -> Any:
    return rows if last is None else rows[:, :last]


def spread_rows(rows: Any, most: int) -> Any:
    """Return some rows of an array, evenly spread, because rows may be sorted."""
    return rows[:: max(1, len(rows) // most)][:most]


def rows_at_hand(batch: Any, source: Any) -> Any:
    """Return all the data of a `source` that holds them as one array, else `batch`."""
    arrays = getattr(source, "arrays", None)
    return arrays if hasattr(arrays, "shape") else batch


def values_at_hand(batch: Any, source: Any) -> Any:
    """Return what data are at hand as numbers: all, or the first batch; else `None`.

    Of data from a function or an iterable only the shape is known before a step.
    """
    rows = rows_at_hand(batch, source)
    if isinstance(rows, jax.ShapeDtypeStruct) and isinstance(source, list | tuple):
        rows = source[0]
    known = isinstance(rows, np.ndarray | jax.Array) and not isinstance(rows, Tracer)
    return rows if known else None


def check_columns(name: str, rows: Any) -> None:
    """Raise if a column of `rows` cannot be learned from.

    A column is one entry of a row: `rows[:, j]`, or `rows[:, i, j]` for images. Refused
    are non-finite values anywhere, and, for vectors, a column that never changes (its
    density is degenerate; a constant border pixel of an image is ordinary and passes),
    or that has an atom: a value that a quarter of the rows share. Refused, too, are
    rows of which fewer than half differ.

    Arguments:
        name: How messages call the data.
        rows: Floats, shape `(rows, *shape)`.

    Raises:
        ValueError: With the columns, what is wrong and what to do.
    """
    values = jnp.asarray(rows)
    values = values[:, None] if values.ndim == 1 else values
    if len(values) < 2:
        raise ValueError(
            f"`{name}` has {len(values)} row(s): there is no density to learn of fewer "
            "than 2."
        )
    finite = np.asarray(jnp.isfinite(values).all(axis=0))
    if not finite.all():
        worst = tuple(int(i) for i in np.argwhere(~finite)[0])
        bad = np.asarray(~jnp.isfinite(values[(slice(None), *worst)]))
        raise ValueError(
            f"`{name}` has {int((~finite).sum())} column(s) with NaN or infinite "
            f"values; the first is {name}[{_column(worst)}], in {int(bad.sum())} of "
            f"{len(bad)} rows (row {int(np.argmax(bad))} first): drop or fill them."
        )
    if values.ndim == 2:
        constant = np.flatnonzero(np.asarray((values == values[:1]).all(axis=0)))
        if len(constant):
            raise ValueError(
                f"`{name}` is constant in {len(constant)} column(s): "
                f"{_listed(constant)}. Its density there is degenerate: drop the "
                "columns, or add noise to the data."
            )
    if len(values) >= _LEAST_ROWS:
        # Copies may be side by side, or come again after all the others.
        some = np.asarray(spread_rows(values, _MOST_ROWS))
        _check_copies(name, some)
        if len(values) > len(some):
            _check_copies(name, np.asarray(values[:_MOST_ROWS]))
        _check_atoms(name, some)


def _check_copies(name: str, rows: np.ndarray) -> None:
    flat = np.ascontiguousarray(rows.reshape(len(rows), -1))
    different = len(np.unique(flat.view(np.dtype((np.void, flat[0].nbytes)))))
    if different < len(rows) / 2:
        raise ValueError(
            f"`{name}` has {different} different rows in {len(rows)}: where rows are "
            "repeated there is no density. Drop the copies, or add noise to the data."
        )


def _check_atoms(name: str, rows: np.ndarray) -> None:
    if rows.ndim != 2:
        return
    common = np.array([np.unique(x, return_counts=True)[1].max() for x in rows.T])
    atoms = np.flatnonzero(common > _ATOM * len(rows))
    if len(atoms):
        raise ValueError(
            f"`{name}` has columns with atoms, {_listed(atoms)}: of column "
            f"{atoms[0]}, {common[atoms[0]]} in {len(rows)} rows share one value, "
            "where there is no density. Drop the columns, add noise to the data, or "
            "model a label by an energy for each."
        )


def _listed(columns: np.ndarray) -> str:
    shown = ", ".join(str(int(j)) for j in columns[:10])
    return shown + (" ..." if len(columns) > 10 else "")


def check_scale_of(
    batch: Float[Array, "batch *shape"], walkers: Float[Array, "walkers *shape"]
) -> None:
    """Raise `ValueError` if the data are far from the walkers, or much narrower.

    Per column, in the spreads of the walkers.
    """
    data, positions = (
        np.asarray(x, np.float64).reshape(len(x), -1) for x in (batch, walkers)
    )
    spread = np.maximum(positions.std(axis=0), 1e-30)
    reach = np.abs(data - positions.mean(axis=0)).mean(axis=0) / spread
    narrow = spread / np.maximum(data.std(axis=0), 1e-30)
    if len(data) < 2 or not data.size:
        return
    far = np.flatnonzero(reach > _FARTHEST)
    varying = data.std(axis=0) > 0
    single = batch.ndim == 2
    thin = np.flatnonzero(varying & single & (narrow > _NARROWEST))
    all_thin = varying.any() and narrow[varying].min() > _NARROWER
    if len(far) or len(thin) or all_thin:
        worst = far if len(far) else thin if len(thin) else np.flatnonzero(varying)
        j = int(worst[0])
        raise ValueError(
            f"`data` and walkers differ in scale in column(s) {_listed(worst)}: of "
            f"column {j}, the data are {data[:, j].mean():.3g} with a spread of "
            f"{data[:, j].std():.3g}, the walkers {positions[:, j].mean():.3g} with "
            f"{positions[:, j].std():.3g}. Standardize the data, as "
            "`ebm.Standardized.of(data)` does, and give it to the energy and to the "
            "walkers."
        )


def _column(index: tuple[int, ...]) -> str:
    return ", ".join([":", *map(str, index)])


def local_rows(x: Any) -> Any:
    """Return the rows of `x` that this process holds."""
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
        return x.addressable_shards[0].data
    return x


def check_batch(batch: Any, shape: tuple[int, ...]) -> None:
    """Raise on batches that are no array, or whose rows are not of `shape`."""
    if not hasattr(batch, "shape"):
        raise TypeError(
            f"`data` gives batches of type {type(batch).__name__}: this trainer takes "
            "one array, `(batch, *shape)`."
        )
    if len(batch.shape) and not batch.shape[0]:
        raise ValueError("`data` gives batches without a row: pass one or more.")
    if tuple(batch.shape[1:]) != shape or len(batch.shape) < 1:
        raise ValueError(
            f"`data` has rows of shape {tuple(batch.shape[1:])}, the walkers {shape}: "
            "give both the shape of one example."
        )


def check_bits_of(batch: Any, source: Any) -> None:
    """Raise `ValueError` unless the data, as far as they are at hand, are bits."""
    values = values_at_hand(batch, source)
    if values is not None and not bool(are_bits(values)):
        raise ValueError(
            "`data` has values that are not zeros and ones: this is a model of "
            "binary data; threshold it, as in `(x > 0.5).astype('float32')`."
        )


def are_bits(x: Any) -> Any:
    """Return whether all of `x` are zeros and ones, one bool."""
    return ((x == 0) | (x == 1)).all()
