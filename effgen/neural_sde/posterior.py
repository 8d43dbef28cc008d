"""After training: paths, marginals, imputation, forecasts, filters, the certificate."""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray

from . import cautions
from .checks import check_batch, check_series
from .clock import Clock, clock_of, warn_of_origin
from .draws import (
    Bands,
    Draws,
    Marginals,
    draws_of,
    errors_at,
    evidence_of,
    exact_laws,
    exact_observations,
    filtered,
    is_exact,
    linear_evidence,
    num_steps_of,
    observations_of,
    predicted,
    smoothed,
)
from .evidence import Evidence
from .filtering import Filtered
from .model import LatentSDE
from .predictions import Predictions
from .rows import with_rows
from .series import Series, as_series
from .twisted import Smoothed


_DEFAULT_STEPS = 200
_LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)


class Posterior(eqx.Module):
    """The posterior of one series, or of a batch of them.

    Made by `posterior`. Times are in the units of `ts`, or dates where these are;
    results of a batch have a leading axis of series, and `times` may be one list for
    all series or one for each. A single time is a list of one.

    A linear model observed linearly is answered by closed forms. Others are answered by
    a particle filter that knows the linear messages: paths are drawn back through its
    particles and count alike; after the last observation they go on by the prior's
    chain. An answer that rests on fewer than one in twenty of its paths warns.
    """

    model: LatentSDE
    series: Series
    single: bool = eqx.field(static=True)
    clock: Clock | None = eqx.field(static=True, default=None)

    @property
    def log_evidence(self) -> Float[Array, "*series"]:
        """`log p(y)` of the anchored linear model, exact."""
        return self._out(linear_evidence(self.model, self.series, self._steps(None)))

    def paths(
        self,
        num: int,
        *,
        key: PRNGKeyArray,
        times: ArrayLike | None = None,
        inputs: ArrayLike | None = None,
    ) -> Draws:
        """Draw paths, at `times` or at the observations' own.

        Times past the last observation are a forecast; `inputs` are those from each of
        `times` on, where the model has inputs.

        **Raises:** `ValueError` for times that are not sorted or before the first.

        **Warns:** `RunWarning` where fewer than one in twenty paths are distinct, where
        paths are not finite, and where the last known inputs are held.
        """
        found = self._draws(num, key, *self._merged(times, inputs))
        return self._out(found._replace(ts=self._times(found.ts)))

    def _draws(self, num: int, key: PRNGKeyArray, series: Series, at: Array) -> Draws:
        keys = jax.random.split(key, series.ts.shape[0])
        found = draws_of(self.model, series, at, self._steps(series), num, keys)
        if cautions.lost(found.positions):
            cautions.of_lost(self.model.dt, self._holding(series, at, keys))
        else:
            cautions.of_few(found.ess, num, self._times(found.ts))
        return found

    def _holding(self, series: Series, index: Array, keys: Array) -> float | None:
        """Return the first half, quarter, ... of `dt` by which paths stay finite."""
        for halvings in range(1, 7):
            finer = dataclasses.replace(self.model, dt=self.model.dt / 2**halvings)
            steps = num_steps_of(finer, series)
            found = draws_of(finer, series, index, steps, 200, keys)
            if not cautions.lost(found.positions):
                return finer.dt
        return None

    def marginals(
        self,
        times: ArrayLike | None = None,
        *,
        key: PRNGKeyArray | None = None,
        num_paths: int = 1_000,
        inputs: ArrayLike | None = None,
    ) -> Marginals:
        """Return mean and standard deviation of the state at `times`.

        Exact for a linear model observed linearly; for others by paths, as `paths`.
        """
        if is_exact(self.model):
            series, at = self._merged(times, inputs)
            mean, covariance = exact_laws(self.model, series, at, self._steps(series))
            variance = jnp.diagonal(covariance, axis1=-2, axis2=-1)
            scale = jnp.sqrt(jnp.maximum(variance, 0))
            exact = jnp.full(mean.shape[:2], jnp.inf)
            return self._out(Marginals(mean, scale, exact))
        key = jax.random.key(0) if key is None else key
        draws = self._draws(num_paths, key, *self._merged(times, inputs))
        x = draws.positions
        return self._out(Marginals(x.mean(1), x.std(1), draws.ess))

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

        Mean and quantiles are exact for a linear model observed linearly.
        """
        self._check_levels(levels)
        keys = jax.random.split(key)
        series, at = self._merged(times, inputs)
        draws = self._draws(num_paths, keys[0], series, at)
        noise = jax.random.split(keys[1], draws.ts.shape[0])
        errors = errors_at(series, at)
        samples = observations_of(self.model, draws.positions, errors, noise)
        wanted = jnp.asarray(levels, samples.dtype)
        if is_exact(self.model):
            steps = self._steps(series)
            mean, quantiles = exact_observations(self.model, series, at, steps, wanted)
            ess = jnp.full(draws.ess.shape, jnp.inf)
        else:
            mean, ess = samples.mean(1), draws.ess
            quantiles = jnp.moveaxis(jnp.quantile(samples, wanted, axis=1), 0, 1)
        ts, mean, quantiles, samples, ess = self._out(
            (self._times(draws.ts), mean, quantiles, samples, ess)
        )
        return Bands(ts, mean, levels, quantiles, samples, ess)

    def forecast(
        self,
        times: ArrayLike,
        *,
        key: PRNGKeyArray,
        num_paths: int = 1_000,
        levels: tuple[float, ...] = _LEVELS,
        inputs: ArrayLike | None = None,
    ) -> Bands:
        """Return quantiles of what will be observed at `times`, after the last time.

        **Raises:** `ValueError` for times that are not after a series' last.
        """
        rows = self._rows(times)
        last = np.asarray(self.series.ts)[:, -1]
        early = rows[:, 0] < last if rows.size else np.zeros(len(last), bool)
        if np.any(early):
            i = int(np.argmax(early))
            begin, end = self._times(rows[i, 0]), self._times(last[i])
            raise ValueError(
                f"`times` begin at {begin}, before the last observation at {end} of "
                f"series {i}: for those use `observations`."
            )
        return self.observations(
            times, key=key, num_paths=num_paths, levels=levels, inputs=inputs
        )

    def impute(
        self, *, key: PRNGKeyArray, num_paths: int = 1_000
    ) -> Float[Array, "*batch_and_shape"]:
        """Return the observations with the posterior mean where they are missing."""
        found = self.observations(key=key, num_paths=num_paths, levels=(0.5,)).mean
        ys, mask = self._out((self.series.ys, self.series.mask))
        return jnp.where(mask, ys, found)

    def evidence(self, *, key: PRNGKeyArray, num_paths: int = 1_000) -> Evidence:
        """Return the bound, `log p(y)` by importance weights, and the gap between.

        With an anchor that is not the prior's, half of the paths are the prior anchor's
        and all are weighed by the mean of both densities: what one misses, the other
        finds.

        **Warns:** `RunWarning` where fewer than 10 paths count, where paths are not
        finite, naming the step by which they are, and where the bound is above the
        evidence at half the step by more than Monte Carlo error: then `dt` is too long
        for the drift.
        """
        found = self._evidence(self.model, key, num_paths)
        if not is_exact(self.model):
            finer = dataclasses.replace(self.model, dt=self.model.dt / 2)
            later = jax.random.fold_in(key, 1)
            fine = self._evidence(finer, later, num_paths)
            cautions.of_evidence(found, fine, self.model.dt)
        return self._out(found)

    def _evidence(
        self, model: LatentSDE, key: PRNGKeyArray, num_paths: int
    ) -> Evidence:
        keys = jax.random.split(key, self.series.ts.shape[0])
        steps = num_steps_of(model, self.series)
        return evidence_of(model, self.series, steps, num_paths, keys)

    def filter(
        self, *, key: PRNGKeyArray, num_paths: int = 1_000, resample_below: float = 0.5
    ) -> Filtered:
        """Return what was known at each time from what was seen until then.

        `positions` are at the grid's nodes. Drawn from exact laws for a linear model
        observed linearly; for others by a particle filter whose particles are led to
        the next observation alone.
        """
        keys = jax.random.split(key, self.series.ts.shape[0])
        steps = self._steps(None)
        found = filtered(
            self.model, self.series, steps, num_paths, resample_below, keys
        )
        cautions.of_few(found.ess, num_paths, self._times(self.series.ts))
        return self._out(found)

    def smoother(
        self, *, key: PRNGKeyArray, num_paths: int = 1_000, resample_below: float = 0.5
    ) -> Smoothed:
        """Return a twisted particle filter's paths and estimate of `log p(y)`.

        Its particles know the future. Better than `evidence` where its `ess` is small.
        `positions` are at the grid's nodes.
        """
        keys = jax.random.split(key, self.series.ts.shape[0])
        steps = self._steps(None)
        found = smoothed(
            self.model, self.series, steps, num_paths, resample_below, keys
        )
        return self._out(found)

    def predictions(
        self, *, key: PRNGKeyArray | None = None, num_paths: int = 1_000
    ) -> Predictions:
        """Return what was expected of each observation from those before its time.

        Exact for a linear model observed linearly; for others by `filter`.
        """
        key = jax.random.key(0) if key is None else key
        keys = jax.random.split(key, self.series.ts.shape[0])
        found = predicted(self.model, self.series, self._steps(None), num_paths, keys)
        times = self._times(found.ts)
        cautions.of_few(found.ess, num_paths, times)
        return self._out(found._replace(ts=times))

    def _steps(self, series: Series | None) -> int:
        return num_steps_of(self.model, self.series if series is None else series)

    def _out(self, tree: Any) -> Any:
        return jax.tree.map(lambda x: x[0], tree) if self.single else tree

    def _times(self, numbers: Any) -> Any:
        """Return times as the user has them."""
        return numbers if self.clock is None else self.clock.times(numbers)

    def _check_levels(self, levels: tuple[float, ...]) -> None:
        if not len(levels) or not all(0 < level < 1 for level in levels):
            raise ValueError(f"`levels` are {levels}: pass probabilities in (0, 1).")

    def _rows(self, times: Any) -> np.ndarray:
        """Return times asked for as numbers, `(series, times)`."""
        if isinstance(times, Tracer):
            raise TypeError("`times` are traced: pass them as NumPy arrays.")
        rows = np.asarray(times) if self.clock is None else self.clock.numbers(times)
        if not np.issubdtype(rows.dtype, np.number) or not np.all(np.isfinite(rows)):
            raise ValueError("`times` must be finite numbers, as those of the series.")
        rows = np.atleast_1d(rows)
        num = len(self.series.ts)
        if rows.ndim > 2 or (rows.ndim == 2 and len(rows) not in (1, num)):
            raise ValueError(
                f"`times` have shape {rows.shape}: pass (times,) or ({num}, times)."
            )
        return np.broadcast_to(rows, (num, rows.shape[-1]))

    def _merged(
        self, times: ArrayLike | None, inputs: ArrayLike | None
    ) -> tuple[Series, Array]:
        """Return the series with rows for `times`, and where these are."""
        series = self.series
        num, length = series.ts.shape
        if inputs is not None and (series.inputs is None or times is None):
            lack = "the series has none" if series.inputs is None else "`times` are not"
            raise ValueError(f"`inputs` are given and {lack}.")
        if times is None:
            return series, jnp.tile(jnp.arange(length), (num, 1))
        rows, known = self._rows(times), np.asarray(series.ts)
        first = known[:, 0] if self.model.t0 is None else self.model.t0
        if np.any(np.diff(rows, axis=1) < 0) or np.any(rows[:, :1].T < first):
            raise ValueError(
                "`times` must be sorted and not before the first time of the series."
            )
        if series.inputs is not None and inputs is None:
            cautions.of_held_inputs(rows > known[:, -1:])
        merged, index = with_rows(series, rows, inputs)
        return merged, jnp.asarray(index)


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

    Nothing is trained: of a new series the linear control is computed at once, and the
    network, if the model has one, refines it. Under `jit`, `vmap` and `grad` the times
    must be known: NumPy arrays.

    **Arguments:** as a batch of `LatentSDETrainer`; `errors`, the standard error of
    each value, of `ys`'s shape, which the `scale` of a `LinearDecoder` multiplies (make
    it 1 for errors that are known); `dt`, the longest step; the model's own, from its
    trainer, by default, and a 200th of the longest series where it has none; `unit`, in
    which the model counts time where `ts` are dates (`datetime64`, or pandas' index),
    one of NumPy's.

    **Raises:** `ValueError` for times that are not finite or sorted, naming the series
    and the index, or shapes that do not fit the model. `TypeError` for traced times.
    """
    if isinstance(ts, Tracer) or isinstance(dt, Tracer):
        name = "ts" if isinstance(ts, Tracer) else "dt"
        raise TypeError(
            f"`{name}` is traced, and says how many steps there are: close over it as "
            "a NumPy array or a number; `ys`, `errors` and the model may be traced."
        )
    clock = clock_of(ts, unit)
    if clock is not None:
        ts = clock.numbers(ts)
        model = _since(model, clock)
    ts = np.asarray(ts) if not isinstance(ts, jax.Array) else ts
    given = [
        None if x is None else (x if isinstance(x, Tracer) else jnp.asarray(x))
        for x in (ys, mask, inputs, errors)
    ]
    check_batch(model, (ts, *given))
    single = ts.ndim == 1
    series = as_series((ts, *given))
    check_series(model, (ts, *given))
    if single:
        series = jax.tree.map(lambda x: x[None], series)
    dt = (model.dt or None) if dt is None else dt
    if dt is None:
        first = series.ts[:, 0] if model.t0 is None else model.t0
        span = float(np.max(np.asarray(series.ts[:, -1] - first)))
        dt = span / _DEFAULT_STEPS if span > 0 else 1.0
    if not (np.isfinite(dt) and dt > 0):
        raise ValueError(f"`dt` is {dt}: pass a positive length of time.")
    return Posterior(dataclasses.replace(model, dt=dt), series, single, clock)


def _since(model: LatentSDE, clock: Clock) -> LatentSDE:
    """Return the model with `t0` on the clock."""
    if model.drift is not None or not model.linear.time_invariant:
        warn_of_origin(clock)
    if model.t0 is None:
        return model
    if clock.unit is not None:
        raise ValueError(
            f"`t0` is {model.t0} and `ts` are dates: leave `t0` out, or pass numbers."
        )
    return dataclasses.replace(model, t0=model.t0 - clock.origin)
