"""Hierarchies: parameters that differ by series, and the law that they share."""

import dataclasses
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optimistix
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, ArrayLike, Float

from effgen.core.counts import check_count
from effgen.core.results import RunWarning

from . import cautions
from .anchors import cast
from .checks import check_positive
from .clock import as_times
from .decoders import LinearDecoder
from .draws import is_exact, linear_evidence, num_steps_of
from .fitting import longest_gap
from .frozen import as_part
from .model import LatentSDE
from .posteriors import posterior
from .series import Series, check_times
from .structure import Structure


class Hierarchy(NamedTuple):
    """Linear models of many series that differ in some parameters.

    Positive parameters are given by their logarithms, as they are kept.

    Attributes:
        model: The model at the mean of the shared law.
        names: The name of each number that varies.
        mean: The mean of the shared law, shape `(parameters,)`.
        scale: Its standard deviation, shape `(parameters,)`.
        each: The mean of each series' own given its data, shape `(series, parameters)`.
        each_scale: The standard deviation of each, of the same shape.
        log_evidence: `log p(y)` of all series, what varies integrated out by Laplace's
            method, in nats.
        num_rounds: How many rounds there were.
        converged: Whether the rounds converged.
    """

    model: LatentSDE
    names: tuple[str, ...]
    mean: Float[np.ndarray, " parameters"]
    scale: Float[np.ndarray, " parameters"]
    each: Float[np.ndarray, "series parameters"]
    each_scale: Float[np.ndarray, "series parameters"]
    log_evidence: float
    num_rounds: int
    converged: bool

    def of(self, i: int) -> LatentSDE:
        """Return the model of one series, for `posterior` and its forecasts.

        Arguments:
            i: The number of the series.

        Returns:
            The model at the mean of the series' own parameters.
        """
        varies = tuple(dict.fromkeys(name.split("[")[0] for name in self.names))
        return _with(self.model, varies, self.each[i])


def fit_hierarchy(
    model: LatentSDE,
    ts: ArrayLike,
    ys: ArrayLike,
    mask: ArrayLike | None = None,
    inputs: ArrayLike | None = None,
    *,
    varies: Sequence[str],
    scale: float = 0.5,
    max_rounds: int = 500,
    unit: str = "s",
) -> Hierarchy:
    """Fit the law of parameters that differ by series, in float64.

        theta_i ~ N(mean, diag(scale^2)),   y_i ~ p(y | theta_i)

    by the EM algorithm: each series' `theta_i` at its mode with the curvature there,
    then mean and spread of all. Exact where `log p(y | theta)` is quadratic, as of
    offsets. Series with few values are pulled to the mean of all. What does not vary
    stays as `model` has it: fit it before, by `fit_linear` of all series.

    Arguments:
        model: A linear model, observed linearly.
        ts: Times of several series, numbers or dates, shape `(series, obs)`.
        ys: Values, shape `(series, obs)` or `(series, obs, sensors)`.
        mask: Where there is a value, of the shape of `ts` or `ys`. NaN are missing too.
        inputs: Held from each time to the next, shape `(series, obs, inputs)`.
        varies: Names such as "decoder.offset", "linear.log_scale", or of the
            `parameters` of a `Structure`, "level.noise".
        scale: Where the shared standard deviation starts.
        max_rounds: The most rounds of the algorithm.
        unit: The unit in which the model counts dates, one of NumPy's.

    Returns:
        The shared law, and each series' own parameters.

    Raises:
        ValueError: For a model that is not linear, fewer than two series, names of
            nothing, and a `scale` or `max_rounds` that is not positive.

    Warns:
        RunWarning: Where the rounds end before they converge.

    Source:
        Dempster, Laird and Rubin (1977); Laird and Ware (1982).
    """
    if not isinstance(model, LatentSDE) or not is_exact(model):
        raise ValueError("`model` must be linear and observed linearly.")
    if isinstance(varies, str) or not varies:
        raise ValueError(f'`varies` is {varies!r}: pass names, ["decoder.offset"].')
    check_positive("scale", scale)
    check_count("max_rounds", max_rounds)
    varies = tuple(varies)
    names = _names(model, varies)
    with jax.enable_x64(True):  # noqa: FBT003
        wide = cast(dataclasses.replace(model, message_dtype=None), jnp.float64)
        times = as_times(ts)
        if times.ndim != 2 or len(times) < 2:
            raise ValueError(
                f"`ts` has shape {times.shape}: pass two or more series, (series, obs)."
            )
        if np.issubdtype(times.dtype, np.number):
            check_times(times, model.t0)
            times = times.astype(np.float64)
        values = np.asarray(ys, np.float64)
        gap = longest_gap(times, unit)
        found = posterior(wide, times, values, mask, inputs, dt=gap, unit=unit)
        cautions.of_constants(found.series.ys, found.series.mask)
        steps = num_steps_of(found.model, found.series)
        start = _values(found.model, varies)
        result = _fitted(
            found.model, varies, found.series, steps, start, scale, max_rounds
        )
        result = jax.tree.map(np.asarray, result)
    mean, spread, each, each_scale, evidence, rounds, converged = result
    if not converged:
        warnings.warn(
            f"the shared law still moves after {rounds} rounds: raise `max_rounds`.",
            RunWarning,
            stacklevel=2,
        )
    whole = dataclasses.replace(_with(model, varies, mean), dt=found.model.dt)
    return Hierarchy(
        whole,
        names,
        mean,
        spread,
        each,
        each_scale,
        float(evidence),
        int(rounds),
        bool(converged),
    )


def _getter(model: LatentSDE, name: str) -> Callable[[LatentSDE], Array]:
    """Return what reads a parameter from a model.

    Raises:
        ValueError: For a name of nothing, or of no array.
    """
    if isinstance(model.linear, Structure) and name in model.linear.parameters:
        part, _, own = name.partition(".")
        place = model.linear.names.index(part)
        if hasattr(model.linear.parts[place], f"log_{own}"):
            return lambda m: getattr(m.linear.parts[place], f"log_{own}")  # pyright: ignore
    if name == "observation.scale" and isinstance(model.decoder, LinearDecoder):
        return lambda m: m.decoder.log_scale  # pyright: ignore
    part = as_part(name)
    try:
        found = part.of(model)
    except AttributeError as error:
        raise ValueError(
            f"`varies` names {name!r}, which the model has not."
        ) from error
    if part.entries is not None or not eqx.is_inexact_array(found):
        raise ValueError(f"`varies` names {name!r}: pass the name of a whole array.")
    return part.of


def _names(model: LatentSDE, varies: tuple[str, ...]) -> tuple[str, ...]:
    found = []
    for name in varies:
        size = _getter(model, name)(model).size
        found += [name] if size == 1 else [f"{name}[{i}]" for i in range(size)]
    return tuple(found)


def _values(model: LatentSDE, varies: tuple[str, ...]) -> Array:
    return ravel_pytree([_getter(model, name)(model) for name in varies])[0]


def _with(model: LatentSDE, varies: tuple[str, ...], values: Any) -> LatentSDE:
    """Return the model with other values of what varies."""
    for name in varies:
        get = _getter(model, name)
        old = get(model)
        new = jnp.asarray(values[: old.size], old.dtype).reshape(old.shape)
        model, values = eqx.tree_at(get, model, new), values[old.size :]
    return model


@eqx.filter_jit
def _fitted(
    model: LatentSDE,
    varies: tuple[str, ...],
    series: Series,
    steps: int,
    start: Array,
    scale: float,
    max_rounds: int,
) -> tuple[Array, ...]:
    num = series.ys.shape[0]
    series = jax.tree.map(jnp.asarray, series)

    def loss(x: Array, args: tuple) -> Array:
        """Return the negative log-density of one series and of what varies in it."""
        one, mean, spread = args
        many = jax.tree.map(lambda a: a[None], one)
        known = linear_evidence(_with(model, varies, x), many, steps)[0]
        return 0.5 * jnp.sum(((x - mean) / spread) ** 2) - known

    solver = optimistix.BFGS(rtol=1e-8, atol=1e-8)

    def mode(x: Array, one: Series, mean: Array, spread: Array):
        args = (one, mean, spread)
        x = optimistix.minimise(
            loss, solver, x, args=args, max_steps=100, throw=False
        ).value
        curvature = jax.hessian(loss)(x, args)
        covariance = jnp.linalg.inv(curvature)
        value = -loss(x, args) - 0.5 * jnp.linalg.slogdet(curvature)[1]
        return x, jnp.diagonal(covariance), value - jnp.sum(jnp.log(spread))

    def modes(each: Array, mean: Array, spread: Array):
        return jax.vmap(mode, (0, 0, None, None))(each, series, mean, spread)

    def round_(carry: tuple):
        each, mean, spread, _, count = carry
        each, variance, _ = modes(each, mean, spread)
        after = each.mean(0)
        wider = jnp.sqrt(jnp.mean((each - after[None]) ** 2 + variance, axis=0))
        away = jnp.max(jnp.abs(after - mean) / spread + jnp.abs(wider / spread - 1))
        return each, after, wider, away, count + 1

    begin = (
        jnp.tile(start, (num, 1)),
        start,
        jnp.full(start.shape, scale, start.dtype),
        jnp.asarray(jnp.inf, start.dtype),
        jnp.zeros((), jnp.int32),
    )
    going = lambda carry: (carry[3] > 1e-5) & (carry[4] < max_rounds)
    each, mean, spread, away, count = jax.lax.while_loop(going, round_, begin)
    each, variance, values = modes(each, mean, spread)
    return (
        mean,
        spread,
        each,
        jnp.sqrt(variance),
        jnp.sum(values),
        count,
        away <= 1e-5,
    )
