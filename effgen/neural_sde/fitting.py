"""Linear models fitted by their exact evidence, with standard errors."""

import dataclasses
import warnings
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
from .clock import clock_of
from .decoders import LinearDecoder
from .draws import is_exact, linear_evidence, num_steps_of
from .model import LatentSDE
from .posteriors import posterior
from .series import Series
from .structure import Structure


class Fitted(NamedTuple):
    """A linear model at the maximum of its posterior density.

    Attributes:
        model: The fitted model, with the step that its record needs.
        log_evidence: `log p(y)` there, of all series together, in nats.
        log_prior: The log prior density there, up to a constant, in nats.
        parameters: By name, in units of time and data: those of a `Structure`, and
            "observation.scale".
        standard_errors: Of these, from the curvature; NaN where the data and the prior
            do not hold one.
        num_steps: How many steps the optimizer took.
        converged: Whether it converged.
    """

    model: LatentSDE
    log_evidence: float
    log_prior: float
    parameters: dict[str, np.ndarray]
    standard_errors: dict[str, np.ndarray]
    num_steps: int
    converged: bool


def fit_linear(
    model: LatentSDE,
    ts: ArrayLike,
    ys: ArrayLike,
    mask: ArrayLike | None = None,
    inputs: ArrayLike | None = None,
    *,
    errors: ArrayLike | None = None,
    unit: str = "s",
    prior_scale: float = 1.5,
    max_steps: int = 300,
) -> Fitted:
    """Fit a linear model by its exact evidence, in float64.

        maximize  sum log p(y) - sum (log p - log p_start)^2 / (2 prior_scale^2)

    over all that `model.trainable()` names, by BFGS. The second sum is over parameters
    that are kept by logarithms: rates and scales. It keeps damping and noise above
    zero.

    Arguments:
        model: A linear model, observed linearly, such as `structural`'s.
        ts: Times in order, shape `(obs,)` or `(series, obs)`, numbers or dates.
        ys: Values, shape `(obs,)` or `(obs, sensors)`, a batch's with an axis before.
        mask: Where there is a value, of the shape of `ts` or `ys`. NaN are missing too.
        inputs: Held from each time to the next, shape `(obs, inputs)`.
        errors: The standard error of each value, of the shape of `ys`, which the
            decoder's `scale` multiplies.
        unit: The unit in which the model counts dates, one of NumPy's.
        prior_scale: The prior's standard deviation of a natural logarithm.
        max_steps: The most steps of the optimizer.

    Returns:
        The fitted model, with parameters and their standard errors.

    Raises:
        ValueError: For a model that is not linear, a `prior_scale` that is not
            positive, or an evidence that is not finite at the start.

    Warns:
        RunWarning: Where the optimizer does not converge, and where all values of a
            sensor are the same.

    Source:
        Särkkä and Solin (2019), chapter 12; the prior, Gelman (2008).
    """
    peak = maximum(
        model,
        ts,
        ys,
        mask,
        inputs,
        errors=errors,
        unit=unit,
        prior_scale=prior_scale,
        max_steps=max_steps,
    )
    with jax.enable_x64(True):  # noqa: FBT003
        values, sizes = _errors(peak.problem, peak.x)
    if not peak.converged:
        warnings.warn(
            f"the fit has not converged in {peak.num_steps} steps: raise "
            "`max_steps`, or leave out a part that the data do not need.",
            RunWarning,
            stacklevel=2,
        )
    return Fitted(
        peak.model,
        peak.log_evidence,
        peak.log_prior,
        values,
        sizes,
        peak.num_steps,
        peak.converged,
    )


class Maximum(NamedTuple):
    """Where the posterior density of a linear model is highest, in float64.

    Attributes:
        model: In the working precision.
        log_evidence: As of `Fitted`.
        log_prior: As of `Fitted`.
        num_steps: As of `Fitted`.
        converged: As of `Fitted`.
        problem: What was maximized.
        x: Its maximum as one array.
    """

    model: LatentSDE
    log_evidence: float
    log_prior: float
    num_steps: int
    converged: bool
    problem: "_Problem"
    x: Array


def maximum(
    model: LatentSDE,
    ts: ArrayLike,
    ys: ArrayLike,
    mask: ArrayLike | None = None,
    inputs: ArrayLike | None = None,
    *,
    errors: ArrayLike | None = None,
    unit: str = "s",
    prior_scale: float = 1.5,
    max_steps: int = 300,
) -> Maximum:
    """Return the maximum that `fit_linear` finds, without standard errors."""
    if not isinstance(model, LatentSDE) or not is_exact(model):
        raise ValueError(
            "`model` must be a `LatentSDE` that is linear and observed linearly: no "
            "`drift`, no `diffusion`, a `LinearDecoder`."
        )
    check_positive("prior_scale", prior_scale)
    check_count("max_steps", max_steps)
    dtype = jnp.result_type(float)
    with jax.enable_x64(True):  # noqa: FBT003
        wide = cast(dataclasses.replace(model, message_dtype=None), jnp.float64)
        values = np.asarray(ys, np.float64)
        sizes = None if errors is None else np.asarray(errors, np.float64)
        wide = dataclasses.replace(wide, dt=longest_gap(ts, unit))
        found = posterior(wide, ts, values, mask, inputs, errors=sizes, unit=unit)
        cautions.of_constants(found.series.ys, found.series.mask)
        result = _maximum(found.model, found.series, prior_scale, max_steps)
    narrow = cast(result.model, dtype)
    narrow = dataclasses.replace(narrow, message_dtype=model.message_dtype, t0=model.t0)
    return result._replace(model=narrow)


def longest_gap(ts: Any, unit: str) -> float:
    """Return a step no shorter than any gap: linear models need no more."""
    clock = clock_of(ts, unit)
    numbers = np.asarray(ts) if clock is None else clock.numbers(ts)
    gaps = np.diff(np.atleast_2d(numbers), axis=1)
    most = float(np.max(gaps, initial=0))
    return 1.001 * most if most > 0 else 1.0


class _Problem(eqx.Module):
    """The negative log posterior density of what a model trains, as one array."""

    first: LatentSDE
    series: Series
    start: Float[Array, " parameters"]
    is_log: Float[Array, " parameters"]
    prior_scale: Float[Array, ""]
    steps: int = eqx.field(static=True)

    def model(self, x: Array) -> LatentSDE:
        _, unravel = ravel_pytree(self.first.trainable()[0])
        return self.first.retrained(unravel(x))

    def log_prior(self, x: Array) -> Array:
        away = self.is_log * (x - self.start) / self.prior_scale
        return -0.5 * jnp.sum(away**2)

    def log_evidence(self, x: Array) -> Array:
        return jnp.sum(linear_evidence(self.model(x), self.series, self.steps))

    def __call__(self, x: Array, args: None = None) -> Array:
        return -self.log_evidence(x) - self.log_prior(x)


def _maximum(
    model: LatentSDE, series: Series, prior_scale: float, max_steps: int
) -> Maximum:
    trained, _ = model.trainable()
    start, _ = ravel_pytree(trained)
    is_log, _ = ravel_pytree(kept_by_logarithms(trained))
    steps = num_steps_of(model, series)
    scale = jnp.asarray(prior_scale, start.dtype)
    problem = _Problem(model, series, start, is_log, scale, steps)
    if not np.isfinite(float(sum(_terms(problem, start)))):
        raise ValueError(
            "the evidence is not finite at the start: check the start values of "
            "`model` and the values of `ys`."
        )
    x, count, converged = _minimized(problem, start, max_steps)
    evidence, prior = _terms(problem, x)
    return Maximum(
        problem.model(x),
        float(evidence),
        float(prior),
        int(count),
        bool(converged),
        problem,
        x,
    )


_terms = eqx.filter_jit(
    lambda problem, x: (problem.log_evidence(x), problem.log_prior(x))
)


def kept_by_logarithms(trained: LatentSDE) -> LatentSDE:
    """Return ones for parameters that are kept by logarithms, zeros for the rest."""

    def mark(path: Any, leaf: Array) -> Array:
        return jnp.full_like(
            leaf, str(getattr(path[-1], "name", "")).startswith("log_")
        )

    return jax.tree_util.tree_map_with_path(mark, trained)


@eqx.filter_jit
def _minimized(problem: _Problem, start: Array, max_steps: int) -> tuple:
    solver = optimistix.BFGS(rtol=1e-8, atol=1e-8)
    found = optimistix.minimise(
        lambda x, problem: problem(x),
        solver,
        start,
        args=problem,
        max_steps=max_steps,
        throw=False,
    )
    converged = found.result == optimistix.RESULTS.successful
    return found.value, found.stats["num_steps"], converged


def named_parameters(model: LatentSDE) -> dict[str, Array]:
    """Return a linear model's parameters by name, in units of time and data."""
    found = {}
    if isinstance(model.linear, Structure):
        found |= model.linear.parameters
    if isinstance(model.decoder, LinearDecoder):
        found["observation.scale"] = model.decoder.scale
    return found


@eqx.filter_jit
def _curvature(problem: _Problem, x: Array) -> tuple[Array, Any, Any]:
    hessian = jax.hessian(problem)(x)
    named = lambda x: named_parameters(problem.model(x))
    return hessian, named(x), jax.jacfwd(named)(x)


def _errors(problem: _Problem, x: Array) -> tuple[dict, dict]:
    """Return named parameters, and their standard errors to first order."""
    hessian, values, slopes = _curvature(problem, x)
    hessian = np.asarray(hessian)
    sizes, vectors = np.linalg.eigh((hessian + hessian.T) / 2)
    held = sizes > 1e-9 * np.max(sizes, initial=0)
    inverse = np.where(held, 1 / np.where(held, sizes, 1), 0)
    errors = {}
    for name, slope in slopes.items():
        across = np.asarray(slope) @ vectors
        variance = np.sum(across**2 * inverse, axis=-1)
        open_part = np.sum(across[..., ~held] ** 2, axis=-1)
        whole = np.sum(across**2, axis=-1)
        errors[name] = np.where(open_part > 1e-12 * whole, np.nan, np.sqrt(variance))
    return {name: np.asarray(value) for name, value in values.items()}, errors
