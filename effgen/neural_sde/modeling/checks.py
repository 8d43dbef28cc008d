"""What a latent SDE and its series must be, checked before any compute."""

import inspect
import warnings
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Float

from effgen.core.outcome.results import RunWarning
from effgen.neural_sde.data.clock import warn_of_rounded
from effgen.neural_sde.data.series import (
    check_errors,
    check_inputs,
    check_mask,
    check_numbers,
    check_shapes,
    check_times,
    check_values,
)
from effgen.neural_sde.linear_sdes.fractional import FractionalSDE
from effgen.neural_sde.observing.counts import NegativeBinomial, Poisson
from effgen.neural_sde.observing.decoders import Decoder, LinearDecoder
from effgen.neural_sde.observing.likelihoods import Bernoulli

from .model import LatentSDE


_NUM_POINTS = 16
_MOST_NATS = 0.1
_MOST_ROUNDED = 0.01  # of the range of values: the step between numbers
_LARGEST_STEP = 0.5  # between numbers, in deviations of the noise


def check_batch(model: LatentSDE, batch: Any) -> None:
    """Raise `TypeError` or `ValueError` for arrays that are no series of this model."""
    if not isinstance(batch, tuple | list) or not 2 <= len(batch) <= 5:
        raise TypeError(
            "series must be `(ts, ys, mask, inputs, errors)`, the last three optional; "
            f"got a {type(batch).__name__}."
        )
    ts, ys, *rest = batch
    for name, value in (("ts", ts), ("ys", ys)):
        check_numbers(name, value)
    mask, inputs, errors = (*rest, None, None, None)[:3]
    check_shapes(ts, ys, mask, inputs, errors)
    if errors is not None and not isinstance(model.decoder, LinearDecoder):
        raise ValueError(
            "`errors` are given, and the decoder is no `LinearDecoder`: give the noise "
            "to the likelihood."
        )
    shape = ys.shape[len(ts.shape) :] or (1,)
    model.decoder.check_shape(tuple(shape), model.num_states)
    matrix = model.linear.input_matrix
    if inputs is None and matrix is not None:
        raise ValueError(
            "the linear SDE has an `input_matrix` and the series no inputs: pass "
            "`(ts, ys, mask, inputs)`."
        )
    if inputs is not None:
        if matrix is None and not takes_inputs(model.drift):
            raise ValueError(
                "`inputs` are given, and no part of the model sees them: give the "
                "linear SDE an `input_matrix`, or a `drift` of `(t, x, u)`."
            )
        size = inputs.shape[-1]
        if matrix is not None and matrix.shape[1] != size:
            raise ValueError(
                f"series have {size} inputs and `input_matrix` has "
                f"{matrix.shape[1]} columns."
            )


def check_levels(levels: tuple[float, ...]) -> None:
    """Raise `TypeError` or `ValueError` for values that are no probabilities."""
    if not isinstance(levels, tuple | list):
        raise TypeError(f"`levels` is {levels!r}: pass a tuple, such as (0.05, 0.95).")
    if not len(levels) or not all(0 < level < 1 for level in levels):
        raise ValueError(f"`levels` are {levels}: pass probabilities in (0, 1).")


def check_positive(name: str, value: Any) -> None:
    """Raise `ValueError` for an object that is no positive finite number."""
    number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    if not (number and np.isfinite(value) and value > 0):
        raise ValueError(f"`{name}` is {value!r}: pass a positive number.")


def check_share(name: str, value: Any) -> None:
    """Raise `ValueError` for an object that is no number in [0, 1]."""
    if not (isinstance(value, int | float | np.number) and 0 <= value <= 1):
        raise ValueError(f"`{name}` is {value!r}: pass a number in [0, 1].")


def check_series(model: LatentSDE, batch: Any) -> None:
    """Raise `ValueError` for times or values that cannot be used, naming where."""
    ts, ys, mask, inputs, errors = (*batch, None, None, None)[:5]
    check_times(np.asarray(ts), model.t0)
    warn_of_rounded(ts)
    _check_horizon(model, np.asarray(ts))
    if isinstance(ys, Tracer) or isinstance(mask, Tracer):
        return
    ys = np.asarray(ys)
    if mask is None:
        mask = np.ones(ys.shape, bool)
    check_mask(np.asarray(mask))
    mask = np.asarray(mask, bool)
    there = mask.reshape(mask.shape + (1,) * (ys.ndim - mask.ndim)) & np.ones_like(
        ys, bool
    )
    check_values(ys, there)
    _check_support(model, ys, there & ~np.isnan(ys))
    _check_precision(model, ys, there & ~np.isnan(ys))
    if inputs is not None and not isinstance(inputs, Tracer):
        check_inputs(np.asarray(inputs))
    if errors is not None and not isinstance(errors, Tracer):
        check_errors(np.asarray(errors), there & ~np.isnan(ys))


def _check_horizon(model: LatentSDE, ts: np.ndarray) -> None:
    """Warn of series that are longer than the horizon of the fractional noise."""
    if not isinstance(model.linear, FractionalSDE):
        return
    ts = np.atleast_2d(ts)
    first = ts[:, 0] if model.t0 is None else model.t0
    span, horizon = float(np.max(ts[:, -1] - first)), model.linear.horizon
    if span > 1.001 * horizon:
        warnings.warn(
            f"series are {span:.3g} long and the `horizon` of `FractionalSDE` is "
            f"{horizon:.3g}: beyond it the noise is not fractional. Pass a longer one.",
            RunWarning,
            stacklevel=5,
        )


def _check_support(model: LatentSDE, ys: np.ndarray, there: np.ndarray) -> None:
    """Raise `ValueError` for values that the likelihood can't give."""
    decoder = model.decoder
    likelihood = decoder.likelihood if isinstance(decoder, Decoder) else None
    if isinstance(likelihood, Poisson | NegativeBinomial):
        wrong, what = (ys < 0) | (ys != np.floor(ys)), "counts, whole numbers from 0 on"
    elif isinstance(likelihood, Bernoulli):
        wrong, what = (ys < 0) | (ys > 1), "in [0, 1]"
    else:
        return
    bad = np.argwhere(wrong & there)
    if len(bad):
        at = tuple(bad[0].tolist())
        raise ValueError(
            f"`ys` is {ys[at]} at {at}: values of {type(likelihood).__name__} are "
            f"{what}."
        )


def _check_precision(model: LatentSDE, ys: np.ndarray, there: np.ndarray) -> None:
    """Warn of values so far from the offset that their digits are lost.

    `log p(y)` is a sum of terms as large as `((y - offset) / scale)^2 / 2`.
    """
    decoder = model.decoder
    if not isinstance(decoder, LinearDecoder) or isinstance(decoder.scale, Tracer):
        return
    offset, scale = np.asarray(decoder.offset), np.asarray(decoder.scale)
    away = (ys.reshape(-1, len(scale)) - offset) / scale
    most = np.max(np.abs(away), initial=0.0, where=there.reshape(away.shape))
    dtype = model.message_dtype or jax.dtypes.canonicalize_dtype(np.float64)
    nats = float(jnp.finfo(dtype).eps) * most**2 / 4
    largest = np.max(np.abs(ys), initial=0.0, where=there)
    step = float(np.spacing(np.asarray(largest, jnp.result_type(float))))
    if step > _LARGEST_STEP * scale.min():
        warnings.warn(
            f"values are up to {largest:.6g}, where {jnp.result_type(float)} has steps "
            f"of {step:.2g}, and the noise's `scale` is {scale.min():.2g}: values are "
            "rounded. Subtract their mean, in float64.",
            RunWarning,
            stacklevel=5,
        )
    if nats > _MOST_NATS:
        warnings.warn(
            f"values are up to {most:.3g} deviations of the noise from the decoder's "
            f"`offset`: in {jnp.dtype(dtype).name} `log p(y)` may be off by {nats:.2g} "
            "nats. Subtract their mean, or pass `message_dtype=jnp.float64` (with "
            "`jax_enable_x64`).",
            RunWarning,
            stacklevel=5,
        )


def check_rounding(
    low: Float[np.ndarray, " sensors"], high: Float[np.ndarray, " sensors"]
) -> None:
    """Raise `ValueError` for columns whose range our precision does not resolve."""
    size, spread = np.maximum(np.abs(low), np.abs(high)), high - low
    steps = np.spacing(size.astype(jnp.result_type(float)))
    for i in np.flatnonzero((steps > _MOST_ROUNDED * spread) & (spread > 0)):
        raise ValueError(
            f"`ys` is up to {size[i]:.6g} in column {i} and varies by {spread[i]:.3g}, "
            f"which {steps.dtype} rounds: subtract the mean, in float64."
        )


def check_model(model: LatentSDE, num_inputs: int | None = None) -> None:
    """Raise `TypeError` or `ValueError` for a drift that cannot be one.

    A drift that alone sees inputs is checked where their number is known.
    """
    if model.drift is None:
        return
    x = model.linear.initial.sample(_NUM_POINTS, key=jax.random.key(0))
    t = jnp.asarray(0.0 if model.t0 is None else model.t0, x.dtype)
    matrix = model.linear.input_matrix
    if num_inputs is None and matrix is not None:
        num_inputs = matrix.shape[1]
    if num_inputs is None and takes_inputs(model.drift):
        return
    u = None if num_inputs is None else jnp.zeros(num_inputs, x.dtype)
    try:
        drift = eqx.filter_vmap(lambda x: model.nonlinear_drift(t, x, u))(x)
    except TypeError as error:
        raise TypeError(
            f"`drift` could not be called as `drift(t, x{', u' * (u is not None)})`: "
            f"{error}"
        ) from error
    if not bool(jnp.all(jnp.isfinite(drift))):
        raise ValueError(
            "`drift` is not finite near the initial mean: check its scale."
        )


def takes_inputs(drift: Any) -> bool:
    """Return whether a drift can be called as `drift(t, x, u)`."""
    try:
        inspect.signature(drift).bind(0.0, 0.0, 0.0)
    except (TypeError, ValueError):
        return False
    return True
