"""Hierarchies: parameters that differ between series, with a shared normal law."""

import dataclasses
import itertools
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

from effgen.core.contract.counts import check_count
from effgen.core.outcome.results import RunWarning
from effgen.neural_sde.answering.exact import is_exact, linear_evidence, num_steps_of
from effgen.neural_sde.answering.posteriors import posterior
from effgen.neural_sde.data.clock import as_times
from effgen.neural_sde.data.frames import as_doubles
from effgen.neural_sde.data.series import Series, check_times
from effgen.neural_sde.filters import cautions
from effgen.neural_sde.modeling.anchors import cast
from effgen.neural_sde.modeling.checks import check_positive
from effgen.neural_sde.modeling.frozen import part_of
from effgen.neural_sde.modeling.model import LatentSDE

from .peak import step_of
from .shared_laws import own_deviations


_SMALL = 0.5  # of the deviations of series, where rounds move little


class Hierarchy(NamedTuple):
    """Linear models of many series that differ in some parameters.

    Positive parameters are given by their logarithms, as they are kept; the period of a
    `periodic` part by half turns at the end of the first series' span.

    Attributes:
        model: The model at the mean of the shared law.
        names: The name of each number that varies.
        mean: The mean of the shared law, shape `(parameters,)`.
        scale: Its standard deviation, shape `(parameters,)`.
        each: The mean of each series' own given its data, shape `(series, parameters)`.
        each_scale: The standard deviation of each, of the same shape. The mean and the
            scale of the shared law are uncertain, and this counts.
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
    scale: float | None = None,
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
        scale: Where the shared standard deviation starts, one number for all; `None`:
            one half for a logarithm, and ten standard errors of one series for what
            else varies, in its own units.
        max_rounds: The most rounds of the algorithm.
        unit: The unit in which the model counts dates, one of NumPy's.

    Returns:
        The shared law, and each series' own parameters.

    Raises:
        ValueError: For a model that is not linear, fewer than two series, names of
            nothing, and a `scale` or `max_rounds` that is not positive.

    Warns:
        RunWarning: Where the rounds end before they converge, and of series whose own
            likelihood is not normal in a parameter.

    Source:
        Dempster, Laird and Rubin (1977); Laird and Ware (1982).
    """
    if not isinstance(model, LatentSDE) or not is_exact(model):
        raise ValueError("`model` must be linear and observed linearly.")
    if isinstance(varies, str) or not varies:
        raise ValueError(f'`varies` is {varies!r}: pass names, ["decoder.offset"].')
    if scale is not None:
        check_positive("scale", scale)
    check_count("max_rounds", max_rounds)
    varies = tuple(varies)
    _check_apart(model, varies)
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
        values = as_doubles(ys)
        wide = dataclasses.replace(wide, dt=step_of(wide, times, unit))
        found = posterior(wide, times, values, mask, inputs, unit=unit)
        cautions.of_constants(found.series.ys, found.series.mask)
        steps = num_steps_of(found.model, found.series)
        start = _values(found.model, varies)
        if scale is None:
            spread = _first_scales(found.model, varies, found.series, steps, start)
        else:
            spread = jnp.full(start.shape, scale, start.dtype)
        result = _fitted(
            found.model, varies, found.series, steps, start, spread, max_rounds
        )
        result = jax.tree.map(np.asarray, result)
    mean, spread, each, curvature, evidence, rounds, converged = result
    each_scale, telling = own_deviations(each, curvature, mean, spread)
    _warn_of_shapes(names, ~telling & _with_values(found.series))
    if not converged:
        _warn_of_rounds(names, spread, each_scale, int(rounds))
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


def _with_values(series: Series) -> np.ndarray:
    """Return which series have a value at all, `(series, 1)`."""
    seen = np.asarray(series.mask)
    return np.any(seen.reshape(len(seen), -1), axis=1, keepdims=True)


def _warn_of_shapes(names: tuple[str, ...], odd: np.ndarray) -> None:
    """Warn of series whose own likelihoods are not normal in a parameter."""
    told = ", ".join(
        f"{name} of {count}"
        for name, count in zip(names, odd.sum(axis=0), strict=True)
        if count
    )
    if told:
        text = (
            f"few values tell of {told} of {len(odd)} series, whose likelihoods are "
            "not normal there: their `each_scale` is that of the shared law."
        )
        warnings.warn(text, RunWarning, stacklevel=3)


def _warn_of_rounds(
    names: tuple[str, ...], spread: np.ndarray, own: np.ndarray, rounds: int
) -> None:
    """Warn of rounds that ended before they converged, and say why."""
    small = spread < _SMALL * np.median(own, axis=0)
    told = ", ".join(itertools.compress(names, small))
    why = (
        f"the `scale` of {told} goes to zero, and the series may be all alike there; "
        "`each_scale` counts what `scale` may be"
        if told
        else "raise `max_rounds`"
    )
    text = f"the shared law still moves after {rounds} rounds: {why}."
    warnings.warn(text, RunWarning, stacklevel=3)


def _getter(model: LatentSDE, name: str) -> Callable[[LatentSDE], Array]:
    """Return what reads a parameter from a model.

    Raises:
        ValueError: For a name of nothing, or of no array.
    """
    part = part_of(model, name)
    try:
        found = part.of(model)
    except AttributeError as error:
        raise ValueError(
            f"`varies` names {name!r}, which the model has not."
        ) from error
    if part.entries is not None or not eqx.is_inexact_array(found):
        raise ValueError(f"`varies` names {name!r}: pass the name of a whole array.")
    return part.of


def _check_apart(model: LatentSDE, varies: tuple[str, ...]) -> None:
    """Raise `ValueError` for two names of one array."""
    arrays = [_getter(model, name)(model) for name in varies]
    for i, j in itertools.combinations(range(len(varies)), 2):
        if arrays[i] is arrays[j]:
            raise ValueError(
                f"`varies` names {varies[i]!r} and {varies[j]!r}, which are the same: "
                "leave one out."
            )


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


def _first_scales(
    model: LatentSDE, varies: tuple[str, ...], series: Series, steps: int, start: Array
) -> Array:
    """Return where the shared deviations start, each in its parameter's own units.

    The EM algorithm hardly moves from a start that is too small, so the start is large.
    """
    sizes = [np.full(_getter(model, n)(model).size, _is_log(model, n)) for n in varies]
    is_log = np.concatenate(sizes)
    if np.all(is_log):
        return jnp.full(start.shape, 0.5, start.dtype)
    bends = np.abs(_curvatures(model, varies, series, steps, start)) / len(series.ts)
    held = np.isfinite(bends) & (bends > 0) & ~is_log
    found = np.where(held, 10 / np.sqrt(np.where(held, bends, 1)), 0.5)
    return jnp.asarray(found, start.dtype)


def _is_log(model: LatentSDE, name: str) -> bool:
    """Return whether a parameter that varies is stored as its logarithm."""
    return part_of(model, name).name.rpartition(".")[2].startswith("log_")


@eqx.filter_jit
def _curvatures(
    model: LatentSDE, varies: tuple[str, ...], series: Series, steps: int, start: Array
) -> Array:
    """Return the second derivatives of all series' evidence along each parameter."""
    whole = lambda x: jnp.sum(linear_evidence(_with(model, varies, x), series, steps))
    return jnp.diagonal(jax.hessian(whole)(start))


@eqx.filter_jit
def _fitted(
    model: LatentSDE,
    varies: tuple[str, ...],
    series: Series,
    steps: int,
    start: Array,
    scale: Array,
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
        # In units of the shared law, whatever those of the parameters.
        z = optimistix.minimise(
            lambda z, args: loss(mean + spread * z, args),
            solver,
            (x - mean) / spread,
            args=args,
            max_steps=100,
            throw=False,
        ).value
        x = mean + spread * z
        curvature = jax.hessian(loss)(x, args)
        value = -loss(x, args) - 0.5 * jnp.linalg.slogdet(curvature)[1]
        return x, curvature, value - jnp.sum(jnp.log(spread))

    def modes(each: Array, mean: Array, spread: Array):
        return jax.vmap(mode, (0, 0, None, None))(each, series, mean, spread)

    def round_(carry: tuple):
        each, mean, spread, _, count = carry
        each, curvature, _ = modes(each, mean, spread)
        variance = jnp.diagonal(jnp.linalg.inv(curvature), axis1=-2, axis2=-1)
        after = each.mean(0)
        wider = jnp.sqrt(jnp.mean((each - after[None]) ** 2 + variance, axis=0))
        away = jnp.max(jnp.abs(after - mean) / spread + jnp.abs(wider / spread - 1))
        return each, after, wider, away, count + 1

    begin = (
        jnp.tile(start, (num, 1)),
        start,
        scale,
        jnp.asarray(jnp.inf, start.dtype),
        jnp.zeros((), jnp.int32),
    )
    going = lambda carry: (carry[3] > 1e-5) & (carry[4] < max_rounds)
    each, mean, spread, away, count = jax.lax.while_loop(going, round_, begin)
    each, curvature, values = modes(each, mean, spread)
    return (
        mean,
        spread,
        each,
        curvature,
        jnp.sum(values),
        count,
        away <= 1e-5,
    )
