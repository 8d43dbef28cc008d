"""After training: paths, marginals, imputation, forecasts, filters, the certificate."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray

from effgen.neural_sde.data.series import Series
from effgen.neural_sde.filters import cautions
from effgen.neural_sde.filters.evidence import Evidence
from effgen.neural_sde.filters.filtering import Filtered
from effgen.neural_sde.filters.predictions import Predictions
from effgen.neural_sde.filters.twisted import Smoothed, twisted_filter, twisted_futures
from effgen.neural_sde.modeling.checks import check_levels, check_share
from effgen.neural_sde.modeling.model import LatentSDE

from .answers import Bands, Draws, Marginals
from .components import Components, readings, shares_of
from .draws import (
    draws_of,
    evidence_of,
    exact_records,
    filtered,
    holding_step,
    is_future,
    observations_of,
    predicted,
    smoothed,
    steps_of_paths,
)
from .exact import (
    errors_at,
    exact_laws,
    from_time_to_time,
    is_exact,
    linear_evidence,
    normal_quantiles,
    num_steps_of,
)
from .imputation import imputed
from .record import Record, recorded


_LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)


class Posterior(eqx.Module):
    """The posterior of one series, or of a batch of them; `posterior` makes it.

    A linear model observed linearly is answered by closed forms: `marginals`,
    `components`, `predictions`, mean and quantiles of `observations` are exact. Others
    are answered by a particle filter that uses the linear messages. Paths are drawn
    back through its particles, and after the last observation by the prior's chain. All
    answers raise and warn as `paths` does.

    Attributes:
        model: The model, with its step.
        record: The series, and how answers return to the user's times and names.
    """

    model: LatentSDE
    record: Record

    @property
    def series(self) -> Series:
        """The series, as a batch, at times that the model sees."""
        return self.record.series

    @property
    def log_evidence(self) -> Float[Array, "*series"]:
        """`log p(y)` of the anchored linear model, exact, one number a series."""
        return self.record.out(linear_evidence(self.model, self.series, self._steps()))

    def paths(
        self,
        num: int,
        *,
        key: PRNGKeyArray,
        times: ArrayLike | None = None,
        inputs: ArrayLike | None = None,
    ) -> Draws:
        """Draw paths, `(num, times, state)`, for a batch with an axis of series before.

        Arguments:
            num: How many. Those at times past the last observation are a forecast.
            key: A random key.
            times: Sorted, `(times,)` or `(series, times)`; `None`: the observations'.
            inputs: From each of `times` on, shape `(times, inputs)` or with an axis of
                series before; `None`: the last known are held.

        Raises:
            ValueError: For times that are not sorted or before the first, inputs that
                do not fit, and no paths.
            TypeError: For an invalid key, and times that are traced or of another kind.

        Warns:
            RunWarning: Where fewer than one in twenty paths are distinct, where paths
                are not finite, and where the last known inputs are held.
        """
        self.record.keys(key, num, name="num")
        found = self._draws(num, key, *self.record.merged(times, inputs, self.model.t0))
        return self.record.out(found._replace(ts=self.record.asked(times, found.ts)))

    def _draws(
        self, num: int, key: PRNGKeyArray, series: Series, at: np.ndarray
    ) -> Draws:
        keys = self.record.keys(key, num)
        run = twisted_futures if is_future(series, at) else twisted_filter
        model = from_time_to_time(self.model)
        steps = steps_of_paths(model, series, num)
        found = draws_of(model, series, at, steps, num, keys, run=run)
        if cautions.lost(found.positions):
            holding = holding_step(self.model, series, at, keys)
            cautions.of_lost(self.model.dt, holding)
        else:
            cautions.of_few(found.ess, num, self.record.times(found.ts))
        return found

    def _laws(self, series: Series, at: np.ndarray) -> tuple[Array, Array]:
        """Return means and covariances of a linear model."""
        model = from_time_to_time(self.model)
        return exact_laws(model, series, at, num_steps_of(model, series))

    def marginals(
        self,
        times: ArrayLike | None = None,
        *,
        key: PRNGKeyArray | None = None,
        num_paths: int = 1_000,
        inputs: ArrayLike | None = None,
    ) -> Marginals:
        """Return mean and standard deviation of the state, each `(times, state)`.

        Arguments:
            times: As for `paths`.
            key: A random key, by default `jax.random.key(0)`.
            num_paths: How many paths are drawn where the answer is not exact.
            inputs: As for `paths`.
        """
        if is_exact(self.model):
            series, at = self.record.merged(times, inputs, self.model.t0)
            mean, covariance = self._laws(series, at)
            variance = jnp.diagonal(covariance, axis1=-2, axis2=-1)
            scale = jnp.sqrt(jnp.maximum(variance, 0))
            exact = jnp.full(mean.shape[:2], jnp.inf)
            return self.record.out(Marginals(mean, scale, exact))
        key = jax.random.key(0) if key is None else key
        draws = self._draws(
            num_paths, key, *self.record.merged(times, inputs, self.model.t0)
        )
        x = draws.positions
        return self.record.out(Marginals(x.mean(1), x.std(1), draws.ess))

    def components(
        self,
        times: ArrayLike | None = None,
        *,
        key: PRNGKeyArray | None = None,
        num_paths: int = 1_000,
        inputs: ArrayLike | None = None,
    ) -> Components:
        """Return each part's share in the values, or in a likelihood's parameter.

        Arguments:
            times: As for `paths`.
            key: A random key, by default `jax.random.key(0)`.
            num_paths: How many paths are drawn where the answer is not exact.
            inputs: As for `paths`.

        Raises:
            ValueError: For a model whose linear part is no sum of parts.
        """
        names, rows = readings(self.model)
        series, at = self.record.merged(times, inputs, self.model.t0)
        if is_exact(self.model):
            mean, scale = shares_of(rows, *self._laws(series, at))
            ess = jnp.full(at.shape, jnp.inf)
        else:
            key = jax.random.key(0) if key is None else key
            draws = self._draws(num_paths, key, series, at)
            shares = draws.positions @ rows.T
            mean, scale, ess = shares.mean(1), shares.std(1), draws.ess
        numbers = jnp.take_along_axis(jnp.asarray(series.ts), at, axis=1)
        ts = self.record.asked(times, numbers)
        ts, mean, scale, ess = self.record.out((ts, mean, scale, ess))
        return Components(ts, names, mean, scale, ess, self.record.labels)

    def observations(
        self,
        times: ArrayLike | None = None,
        *,
        key: PRNGKeyArray,
        num_paths: int = 1_000,
        levels: tuple[float, ...] = _LEVELS,
        inputs: ArrayLike | None = None,
    ) -> Bands:
        """Return quantiles of what would be observed at `times`, noise included.

        Arguments:
            times: As for `paths`.
            key: A random key.
            num_paths: How many whole records are drawn.
            levels: Probabilities of the quantiles, in (0, 1).
            inputs: As for `paths`.

        Raises:
            ValueError: For `levels` that are no probabilities.
            TypeError: For `levels` that are no tuple.
        """
        check_levels(levels)
        self.record.keys(key, num_paths)
        keys = jax.random.split(key)
        series, at = self.record.merged(times, inputs, self.model.t0)
        noise = jax.random.split(keys[1], len(series.ts))
        if is_exact(self.model):
            each = (self.record.keys(keys[0], num_paths), noise)
            found = exact_records(self.model, series, at, num_paths, each)
            samples, mean, variance = found
            quantiles = normal_quantiles(mean, variance, jnp.asarray(levels))
            ess = jnp.full(at.shape, jnp.inf, samples.dtype)
        else:
            draws = self._draws(num_paths, keys[0], series, at)
            errors = errors_at(series, at)
            found = observations_of(self.model, draws.positions, errors, noise)
            (samples, mean), ess = found, draws.ess
            wanted = jnp.asarray(levels, samples.dtype)
            quantiles = jnp.moveaxis(jnp.quantile(samples, wanted, axis=1), 0, 1)
        numbers = jnp.take_along_axis(jnp.asarray(series.ts), at, axis=1)
        ts, mean, quantiles, samples, ess = self.record.out(
            (self.record.asked(times, numbers), mean, quantiles, samples, ess)
        )
        return Bands(
            ts, mean, tuple(levels), quantiles, samples, ess, self.record.labels
        )

    def forecast(
        self,
        times: ArrayLike,
        *,
        key: PRNGKeyArray,
        num_paths: int = 1_000,
        levels: tuple[float, ...] = _LEVELS,
        inputs: ArrayLike | None = None,
    ) -> Bands:
        """Return quantiles of what will be observed at `times`, noise included.

        Arguments:
            times: As for `paths`, at or after each series' last value.
            key: A random key.
            num_paths: How many whole records are drawn.
            levels: Probabilities of the quantiles, in (0, 1).
            inputs: As for `paths`.

        Raises:
            ValueError: For times before a series' last value, and as `observations`.
        """
        self.record.check_later(times, self.record.last_values)
        return self.observations(
            times, key=key, num_paths=num_paths, levels=levels, inputs=inputs
        )

    def impute(
        self, *, key: PRNGKeyArray, num_paths: int = 1_000
    ) -> Float[Array, "*batch_and_shape"]:
        """Return the observations with the posterior mean where they are missing.

        Arguments:
            key: A random key.
            num_paths: How many paths are drawn where the mean is not exact.
        """
        found = self.observations(key=key, num_paths=num_paths, levels=(0.5,)).mean
        seen = self.series.ys, self.series.mask, self.series.errors
        return imputed(self.model.decoder, found, self.record.out(seen))

    def evidence(self, *, key: PRNGKeyArray, num_paths: int = 1_000) -> Evidence:
        """Return the bound, `log p(y)` by importance weights, and the gap between.

        Arguments:
            key: A random key.
            num_paths: How many paths. Where the anchor is not the prior's, half of them
                are the prior anchor's; all are weighed by the mean of both densities.

        Warns:
            RunWarning: Where fewer than 10 paths count, paths are not finite, or `dt`
                is too long: the bound is above the evidence at half of it.
        """
        found = self._evidence(self.model, key, num_paths)
        if not is_exact(self.model):
            finer = dataclasses.replace(self.model, dt=self.model.dt / 2)
            later = jax.random.fold_in(key, 1)
            fine = self._evidence(finer, later, num_paths)
            cautions.of_evidence(found, fine, self.model.dt)
        return self.record.out(found)

    def _evidence(
        self, model: LatentSDE, key: PRNGKeyArray, num_paths: int
    ) -> Evidence:
        keys = self.record.keys(key, num_paths)
        steps = num_steps_of(model, self.series)
        return evidence_of(model, self.series, steps, num_paths, keys)

    def filter(
        self, *, key: PRNGKeyArray, num_paths: int = 1_000, resample_below: float = 0.5
    ) -> Filtered:
        """Return what was known at each time from what was seen until then.

        Arguments:
            key: A random key.
            num_paths: How many particles, whose positions are at the grid's nodes.
            resample_below: The share of effective particles below which it resamples.
        """
        check_share("resample_below", resample_below)
        keys = self.record.keys(key, num_paths)
        steps = steps_of_paths(self.model, self.series, num_paths)
        found = filtered(
            self.model, self.series, steps, num_paths, resample_below, keys
        )
        cautions.of_few(found.ess, num_paths, self.record.times(self.series.ts))
        return self.record.out(found)

    def smoother(
        self, *, key: PRNGKeyArray, num_paths: int = 1_000, resample_below: float = 0.5
    ) -> Smoothed:
        """Return a twisted particle filter's paths and estimate of `log p(y)`.

        Arguments:
            key: A random key.
            num_paths: How many particles, whose positions are at the grid's nodes.
            resample_below: The share of effective particles below which it resamples.
        """
        check_share("resample_below", resample_below)
        keys = self.record.keys(key, num_paths)
        steps = steps_of_paths(self.model, self.series, num_paths)
        found = smoothed(
            self.model, self.series, steps, num_paths, resample_below, keys
        )
        return self.record.out(found)

    def predictions(
        self, *, key: PRNGKeyArray | None = None, num_paths: int = 1_000
    ) -> Predictions:
        """Return what was expected of each observation from those before its time.

        Arguments:
            key: A random key, by default `jax.random.key(0)`.
            num_paths: How many particles `filter` has where the answer is not exact.
        """
        key = jax.random.key(0) if key is None else key
        keys = self.record.keys(key, num_paths)
        found = predicted(self.model, self.series, self._steps(), num_paths, keys)
        times = self.record.asked(None, found.ts)
        cautions.of_few(found.ess, num_paths, times)
        found = self.record.out(found._replace(ts=times))
        return found._replace(labels=self.record.labels)

    def _steps(self) -> int:
        return num_steps_of(self.model, self.series)


def posterior(
    model: LatentSDE,
    ts: ArrayLike,
    ys: ArrayLike,
    mask: ArrayLike | None = None,
    inputs: ArrayLike | None = None,
    *,
    errors: ArrayLike | None = None,
    dt: float | None = None,
    unit: str = "s",
) -> Posterior:
    """Return the posterior of one series, `(obs,)`, or of a batch, `(series, obs)`.

    Nothing is trained. Under `jit`, `vmap` and `grad` times must be NumPy arrays.

    Arguments:
        model: A `LatentSDE`, fitted or trained.
        ts: Times in order: numbers, or dates as `datetime64` or an index of pandas,
            which answers keep.
        ys: Values, shape `(obs,)` or `(obs, *shape)`, a batch's with an axis before.
        mask: Where there is a value, of the shape of `ts` or `ys`. NaN are missing too.
        inputs: Held from each time to the next, shape `(obs, inputs)`.
        errors: The standard error of each value, of the shape of `ys`. The `scale` of a
            `LinearDecoder` multiplies it: make it 1 for errors that are known.
        dt: The longest step; `None`: the model's, or a 200th of the longest series.
        unit: The unit in which the model counts dates, one of NumPy's.

    Raises:
        ValueError: For times that are not finite or sorted, or what does not fit.
        TypeError: For traced times, what is no model, and values that are no numbers.

    Warns:
        RunWarning: Where digits are lost, a drift sees the time from a new origin, or
            gaps of dates are 1,000 of the model's steps.
    """
    model, record = recorded(model, ts, ys, mask, inputs, errors, dt=dt, unit=unit)
    return Posterior(model, record)
