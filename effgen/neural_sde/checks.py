"""What a latent SDE and its series must be, checked before any compute."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .model import LatentSDE
from .series import check_shapes, check_times, check_values


_NUM_POINTS = 16


def check_batch(model: LatentSDE, batch: Any) -> None:
    """Raise `TypeError` or `ValueError` for arrays that are no series of this model."""
    if not isinstance(batch, tuple | list) or not 2 <= len(batch) <= 4:
        raise TypeError(
            "series must be `(ts, ys)`, `(ts, ys, mask)` or `(ts, ys, mask, inputs)`; "
            f"got a {type(batch).__name__}."
        )
    ts, ys, *rest = batch
    mask, inputs = (*rest, None, None)[:2]
    check_shapes(ts, ys, mask, inputs)
    shape = ys.shape[len(ts.shape) :] or (1,)
    model.decoder.check_shape(tuple(shape), model.num_states)
    matrix = model.linear.input_matrix
    if inputs is None and matrix is not None:
        raise ValueError(
            "the linear SDE has an `input_matrix` and the series no inputs: pass "
            "`(ts, ys, mask, inputs)`."
        )
    if inputs is not None:
        size = inputs.shape[-1]
        if matrix is not None and matrix.shape[1] != size:
            raise ValueError(
                f"series have {size} inputs and `input_matrix` has "
                f"{matrix.shape[1]} columns."
            )


def check_series(model: LatentSDE, batch: Any) -> None:
    """Raise `ValueError` for times or values that cannot be used, naming where."""
    ts, ys, mask, _ = (*batch, None, None)[:4]
    check_times(np.asarray(ts), model.t0)
    ys = np.asarray(ys)
    if mask is None:
        mask = np.ones(ys.shape, bool)
    mask = np.asarray(mask, bool)
    check_values(ys, mask.reshape(mask.shape + (1,) * (ys.ndim - mask.ndim)))


def check_model(model: LatentSDE) -> None:
    """Raise `TypeError` or `ValueError` for a drift that cannot be one."""
    if model.drift is None:
        return
    x = model.linear.initial.sample(_NUM_POINTS, key=jax.random.key(0))
    t = jnp.asarray(0.0 if model.t0 is None else model.t0, x.dtype)
    matrix = model.linear.input_matrix
    u = None if matrix is None else jnp.zeros(matrix.shape[1], x.dtype)
    try:
        drift = eqx.filter_vmap(lambda x: model.beside(t, x, u))(x)
    except TypeError as error:
        raise TypeError(
            f"`drift` could not be called as `drift(t, x{', u' * (u is not None)})`: "
            f"{error}"
        ) from error
    if drift.shape != x.shape:
        raise ValueError(
            f"`drift` returns shape {drift.shape[1:]}: pass a function to "
            f"{x.shape[1:]}."
        )
    if not bool(jnp.all(jnp.isfinite(drift))):
        raise ValueError(
            "`drift` is not finite near the initial mean: check its scale."
        )
