"""Regimes fitted by their evidence, in float64, from several starts."""

import warnings
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, ArrayLike, Bool, Float

from effgen.core.contract.counts import check_count
from effgen.core.outcome.results import RunWarning
from effgen.neural_sde.data.frames import as_doubles, check_aligned
from effgen.neural_sde.data.series import Series
from effgen.neural_sde.filters import cautions
from effgen.neural_sde.filters.histories import filtered
from effgen.neural_sde.modeling.anchors import cast
from effgen.neural_sde.modeling.checks import check_positive

from .descent import minimized, units_of
from .peak import kept_by_logarithms
from .regimes import Switching, check_histories, one_of, record_of


_NUM_TRIED = 32  # starts whose density is compared


class Fit(eqx.Module):
    """The negative log posterior density of what regimes train, as one array.

    Attributes:
        first: The regimes at the start values.
        series: The record.
        start: What they train, at the start values; positive `rates` by logarithms.
        by_logs: Where a parameter is positive in the model and a logarithm here.
        is_log: One for logarithms, zero for the rest, whose prior is flat.
        prior_scale: The prior's standard deviation of a natural logarithm.
        num_histories: As in `Switching.filter`.
    """

    first: Switching
    series: Series
    start: Float[Array, " parameters"]
    by_logs: Bool[Array, " parameters"]
    is_log: Float[Array, " parameters"]
    prior_scale: Float[Array, ""]
    num_histories: int = eqx.field(static=True)

    def model(self, x: Array) -> Switching:
        """Return the regimes at other values of their trained parameters."""
        _, unravel = ravel_pytree(_trained(self.first))
        safe = jnp.where(self.by_logs, x, 0)
        rates, parts = unravel(jnp.where(self.by_logs, jnp.exp(safe), x))
        models = tuple(
            m.retrained(part) for m, part in zip(self.first.models, parts, strict=True)
        )
        return eqx.tree_at(
            lambda m: (m.log_rates, m.models), self.first, (rates, models)
        )

    def log_evidence(self, x: Array) -> Array:
        """Return `log p(y)` in nats, a lower bound where histories are left out."""
        model = self.model(x)
        return filtered(model.models, model.generator, self.series, self.num_histories)[
            0
        ]

    def __call__(self, x: Array, args: None = None) -> Array:
        """Return the negative log posterior density, in nats."""
        away = self.is_log * (x - self.start) / self.prior_scale
        return 0.5 * jnp.sum(away**2) - self.log_evidence(x)


def fit_regimes(
    model: Switching,
    ts: ArrayLike,
    ys: ArrayLike,
    mask: ArrayLike | None = None,
    *,
    prior_scale: float = 1.5,
    num_histories: int = 32,
    num_starts: int = 2,
    max_steps: int = 200,
    unit: str = "s",
) -> tuple[Switching, float]:
    """Return regimes fitted by their evidence, in float64, and that evidence.

        maximize  log p(y) - sum (log p - log p_start)^2 / (2 prior_scale^2)

    over rates and what each model trains, by BFGS. The sum is over rates and scales,
    which are kept by logarithms; positive `rates` of a `DiagonalSDE` are among them.
    The first start is `model`. The others are drawn from the prior, those with the
    highest density of 32. The best end is returned. Names of regimes are
    interchangeable: their start values tell which is which.

    Arguments:
        model: The regimes at their start values.
        ts: Times of one series in order, numbers or dates, shape `(obs,)`.
        ys: Values, shape `(obs,)` or `(obs, sensors)`.
        mask: Where there is a value, of the shape of `ts` or `ys`.
        prior_scale: The prior's standard deviation of a natural logarithm.
        num_histories: The most histories, as in `Switching.filter`.
        num_starts: How many times the optimizer is started.
        max_steps: The most steps of each.
        unit: The unit in which the models count dates, one of NumPy's.

    Returns:
        The fitted regimes, and `log p(y)` in nats.

    Raises:
        ValueError: For a batch of series, an evidence that is not finite, and settings
            that are not positive.
        TypeError: For values that are no regimes.

    Warns:
        RunWarning: Where the optimizer does not converge.
    """
    if not isinstance(model, Switching):
        raise TypeError(f"`model` is a {type(model).__name__}: pass a `Switching`.")
    check_positive("prior_scale", prior_scale)
    check_count("max_steps", max_steps)
    check_count("num_starts", num_starts)
    check_histories(model, num_histories)
    check_aligned(ts, ys, "ys")
    dtype = model.log_rates.dtype
    with jax.enable_x64(True):  # noqa: FBT003
        wide = cast(model, jnp.float64)
        record = record_of(wide, ts, as_doubles(ys), mask, unit)
        series = one_of(record.series)
        cautions.of_constants(series.ys, series.mask)
        fit = fit_of(wide, series, prior_scale, num_histories)
        x, converged = _best(fit, num_starts, max_steps)
        found, value = fit.model(x), float(_evidence(fit, x))
        if not np.isfinite(value):
            raise ValueError("the evidence is not finite: check the start values.")
    if not converged:
        warnings.warn(
            f"the fit has not converged in {max_steps} steps: raise `max_steps`, or "
            "leave out a regime that the data do not need.",
            RunWarning,
            stacklevel=2,
        )
    return cast(found, dtype), value


def fit_of(
    model: Switching, series: Series, prior_scale: float, num_histories: int
) -> Fit:
    """Return the problem of a fit that starts at `model`."""
    trained = _trained(model)
    values, _ = ravel_pytree(trained)
    marks = jnp.ones_like(trained[0]), [kept_by_logarithms(m) for m in trained[1]]
    positive, _ = ravel_pytree(jax.tree_util.tree_map_with_path(_positive, trained))
    is_log = jnp.maximum(ravel_pytree(marks)[0], positive)
    by_logs = positive > 0
    start = jnp.where(by_logs, jnp.log(jnp.where(by_logs, values, 1)), values)
    scale = jnp.asarray(prior_scale, start.dtype)
    return Fit(model, series, start, by_logs, is_log, scale, num_histories)


def _trained(model: Switching) -> tuple[Array, list]:
    """Return what is trained: logarithms of the rates, and what each model trains."""
    return model.log_rates, [m.trainable()[0] for m in model.models]


def _positive(path: Any, leaf: Array) -> Array:
    """Return ones for rates that are above zero, which fits keep by logarithms."""
    named = str(getattr(path[-1], "name", "")) == "rates"
    return (leaf > 0).astype(leaf.dtype) if named else jnp.zeros_like(leaf)


def _best(fit: Fit, num_starts: int, max_steps: int) -> tuple[Array, bool]:
    """Return the end with the highest density, and whether it has converged."""
    units = _units(fit)
    ends = []
    for start in _starts(fit, num_starts):
        found = minimized(fit, start, units, max_steps, 1e-5)
        ends.append(found if np.isfinite(found.loss) else found._replace(loss=np.inf))
    best = min(ends, key=lambda end: end.loss)
    return best.x, best.converged


def _units(fit: Fit) -> Array:
    """Return the size of each parameter's first step: of logarithms at most one.

    It is that of the curvature. Steps of one from poor scales are too long by the root
    of the number of values.
    """
    units = units_of(fit, jnp.zeros_like(fit.is_log), fit.start)
    return jnp.where(fit.is_log == 1, jnp.minimum(units, 1), units)


def _starts(fit: Fit, num: int) -> list[Array]:
    """Return the start values, and the best of some that are drawn from the prior."""
    if num == 1:
        return [fit.start]
    noise = np.random.default_rng(0).normal(size=(_NUM_TRIED, fit.start.size))
    tried = fit.start[None] + fit.prior_scale * fit.is_log[None] * noise
    losses = np.asarray(_losses(fit, tried))
    order = np.argsort(np.where(np.isfinite(losses), losses, np.inf))
    return [fit.start, *(tried[i] for i in order[: num - 1])]


@eqx.filter_jit
def _losses(fit: Fit, xs: Array) -> Array:
    return jax.lax.map(lambda x: fit(x), xs)


@eqx.filter_jit
def _evidence(fit: Fit, x: Array) -> Array:
    return fit.log_evidence(x)
