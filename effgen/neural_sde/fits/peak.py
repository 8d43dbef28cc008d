"""The maximum of the posterior density of a linear model's parameters, in float64."""

import dataclasses
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, ArrayLike, Float

from effgen.core.contract.counts import check_count
from effgen.neural_sde.answering.exact import is_exact, linear_evidence, num_steps_of
from effgen.neural_sde.answering.posteriors import posterior
from effgen.neural_sde.data.clock import clock_of
from effgen.neural_sde.data.frames import as_doubles, check_aligned
from effgen.neural_sde.data.series import Series
from effgen.neural_sde.filters import cautions
from effgen.neural_sde.modeling.anchors import cast
from effgen.neural_sde.modeling.checks import check_positive
from effgen.neural_sde.modeling.model import LatentSDE
from effgen.neural_sde.observing.decoders import LinearDecoder

from .descent import minimized, sloped, units_of


class Problem(eqx.Module):
    """The negative log posterior density of what a model trains, as one array.

    Attributes:
        first: The model at the start values.
        series: The record, as a batch.
        start: What the model trains, at the start values.
        is_log: One where a parameter is kept by its logarithm, zero elsewhere.
        prior_scale: The prior's standard deviation of a natural logarithm. The prior of
            the others is flat.
        steps: How many steps the longest series needs.
    """

    first: LatentSDE
    series: Series
    start: Float[Array, " parameters"]
    is_log: Float[Array, " parameters"]
    prior_scale: Float[Array, ""]
    steps: int = eqx.field(static=True)

    def model(self, x: Array) -> LatentSDE:
        """Return the model at other values of its trained parameters."""
        _, unravel = ravel_pytree(self.first.trainable()[0])
        return self.first.retrained(unravel(x))

    def log_prior(self, x: Array) -> Array:
        """Return the log prior density, up to a constant, in nats."""
        away = self.is_log * (x - self.start) / self.prior_scale
        return -0.5 * jnp.sum(away**2)

    def log_evidence(self, x: Array) -> Array:
        """Return `log p(y)` of all series together, in nats."""
        return jnp.sum(linear_evidence(self.model(x), self.series, self.steps))

    def __call__(self, x: Array, args: None = None) -> Array:
        """Return the negative log posterior density, in nats."""
        return -self.log_evidence(x) - self.log_prior(x)


class Maximum(NamedTuple):
    """The maximum of the posterior density of a linear model, in float64.

    Attributes:
        model: In the working precision.
        log_evidence: As in `Fitted`.
        log_prior: As in `Fitted`.
        num_steps: As in `Fitted`.
        converged: As in `Fitted`.
        problem: What was maximized.
        x: Its maximum as one array.
    """

    model: LatentSDE
    log_evidence: float
    log_prior: float
    num_steps: int
    converged: bool
    problem: Problem
    x: Array

    def at(self, x: ArrayLike) -> LatentSDE:
        """Return the model at other values, in the working precision."""
        with jax.enable_x64(True):  # noqa: FBT003
            found = self.problem.model(jnp.asarray(x))
        return _as_given(found, self.model)


def _as_given(found: LatentSDE, given: LatentSDE) -> LatentSDE:
    """Return a fit in the working precision, with what float64 and a clock replaced."""
    narrow = cast(found, jnp.result_type(float))
    return dataclasses.replace(narrow, message_dtype=given.message_dtype, t0=given.t0)


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
    for name, given in (("ys", ys), ("errors", errors)):
        check_aligned(ts, given, name)
    with jax.enable_x64(True):  # noqa: FBT003
        wide = cast(dataclasses.replace(model, message_dtype=None), jnp.float64)
        values = as_doubles(ys)
        sizes = None if errors is None else as_doubles(errors)
        wide = dataclasses.replace(wide, dt=step_of(model, ts, unit))
        found = posterior(wide, ts, values, mask, inputs, errors=sizes, unit=unit)
        cautions.of_constants(found.series.ys, found.series.mask)
        result = _maximum(found.model, found.series, prior_scale, max_steps)
    return result._replace(model=_as_given(result.model, model))


def step_of(model: LatentSDE, ts: Any, unit: str) -> float:
    """Return the step that a linear model needs: its own, where one is not exact.

    Zero where it has none.
    """
    return longest_gap(ts, unit) if model.linear.time_invariant else model.dt


def longest_gap(ts: Any, unit: str) -> float:
    """Return a step no shorter than any gap: constant coefficients need no more."""
    clock = clock_of(ts, unit)
    numbers = np.asarray(ts) if clock is None else clock.numbers(ts)
    gaps = np.diff(np.atleast_2d(numbers), axis=1)
    most = float(np.max(gaps, initial=0))
    return 1.001 * most if most > 0 else 1.0


def _maximum(
    model: LatentSDE, series: Series, prior_scale: float, max_steps: int
) -> Maximum:
    steps = num_steps_of(model, series)
    problem, start = _problem(model, model, series, prior_scale, steps)
    if not np.isfinite(sloped(problem, np.asarray(start))[0]):
        raise ValueError(
            "the evidence is not finite at the start: check the start values of "
            "`model` and the values of `ys`."
        )
    units = units_of(problem, problem.is_log, start)
    found = minimized(problem, start, units, max_steps, 1e-6)
    prior = float(problem.log_prior(found.x))
    return Maximum(
        problem.model(found.x),
        -found.loss - prior,
        prior,
        found.num_steps,
        found.converged,
        problem,
        found.x,
    )


def _problem(
    first: LatentSDE, now: LatentSDE, series: Series, prior_scale: Any, steps: int
) -> tuple[Problem, Array]:
    """Return the problem that starts at a model, and another model as one array."""
    trained, _ = first.trainable()
    start, _ = ravel_pytree(trained)
    is_log, _ = ravel_pytree(kept_by_logarithms(trained))
    scale = jnp.asarray(prior_scale, start.dtype)
    problem = Problem(first, series, start, is_log, scale, steps)
    return problem, ravel_pytree(now.trainable()[0])[0]


def with_offset(peak: Maximum) -> Maximum:
    """Return the same maximum with the decoder's offset among the parameters.

    Its prior is flat. The decoder's noise must be independent between sensors.
    """
    with jax.enable_x64(True):  # noqa: FBT003
        old = peak.problem
        first, now = (_opened(old.model(x)) for x in (old.start, peak.x))
        problem, x = _problem(first, now, old.series, old.prior_scale, old.steps)
    return peak._replace(model=_opened(peak.model), problem=problem, x=x)


def _opened(model: LatentSDE) -> LatentSDE:
    old = model.decoder
    assert isinstance(old, LinearDecoder)
    assert old.lower is None
    learned = tuple(sorted({*old.learned, "offset"}))
    decoder = LinearDecoder(old.matrix, old.scale, offset=old.offset, learned=learned)
    return dataclasses.replace(model, decoder=decoder)


def kept_by_logarithms(trained: LatentSDE) -> LatentSDE:
    """Return ones for parameters that are kept by logarithms, zeros for the rest."""

    def mark(path: Any, leaf: Array) -> Array:
        return jnp.full_like(
            leaf, str(getattr(path[-1], "name", "")).startswith("log_")
        )

    return jax.tree_util.tree_map_with_path(mark, trained)
