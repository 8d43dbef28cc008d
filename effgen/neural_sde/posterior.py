"""After training: paths, marginals, imputation, forecasts, and the certificate."""

import dataclasses
import warnings
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray

from effgen.core.results import RunWarning

from .checks import check_batch, check_series
from .draws import (
    Draws,
    Marginals,
    draws_of,
    evidence_of,
    exact_laws,
    filtered,
    linear_evidence,
    moments,
    num_steps_of,
    observations_of,
    with_rows,
)
from .evidence import Evidence, Filtered
from .model import LatentSDE
from .series import Series, as_series


_DEFAULT_STEPS = 200


class Bands(NamedTuple):
    """Quantiles of what is observed.

    **Attributes:** `ts`; `mean`; `quantiles`, one row for each of `levels`; `samples`.
    """

    ts: Float[Array, " times"]
    mean: Float[Array, "times *shape"]
    levels: tuple[float, ...]
    quantiles: Float[Array, "levels times *shape"]
    samples: Float[Array, "paths times *shape"]


class Posterior(eqx.Module):
    """The posterior of one series, or of a batch of them.

    Made by `posterior`. Times are in the units of `ts`; results of a batch have a
    leading axis of series.
    """

    model: LatentSDE
    series: Series
    single: bool = eqx.field(static=True)

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
        `times` on, where the model has inputs (by default the last known are held).

        **Raises:** `ValueError` for times that are not sorted or before the first.
        """
        series, index = self._merged(times, inputs)
        steps = self._steps(series)
        keys = jax.random.split(key, series.ts.shape[0])
        found = draws_of(self.model, series, jnp.asarray(index), steps, num, keys)
        return self._out(found)

    def marginals(
        self,
        times: ArrayLike | None = None,
        *,
        key: PRNGKeyArray | None = None,
        num_paths: int = 1_000,
    ) -> Marginals:
        """Return mean and standard deviation of the state at `times`.

        Exact for a linear model observed linearly; for others by weighted paths.
        """
        model = self.model
        if model.drift is None and model.diffusion is None and model.decoder.exact:
            series, index = self._merged(times, None)
            found = exact_laws(model, series, jnp.asarray(index), self._steps(series))
            mean, scale = self._out(found)
            return Marginals(mean, scale, jnp.full(mean.shape[:-2], jnp.inf))
        key = jax.random.key(0) if key is None else key
        draws = self.paths(num_paths, key=key, times=times)
        positions, logs = draws.positions, draws.log_weights
        if self.single:
            return moments(positions, logs)
        return jax.vmap(moments)(positions, logs)

    def observations(
        self,
        times: ArrayLike | None = None,
        *,
        key: PRNGKeyArray,
        num_paths: int = 1_000,
        levels: tuple[float, ...] = (0.05, 0.25, 0.5, 0.75, 0.95),
        inputs: ArrayLike | None = None,
    ) -> Bands:
        """Return quantiles of what would be observed at `times`, noise included.

        Paths count by their weights: they are resampled before noise is added.
        """
        keys = jax.random.split(key)
        draws = self.paths(num_paths, key=keys[0], times=times, inputs=inputs)
        draws = jax.tree.map(lambda x: x[None], draws) if self.single else draws
        noise = jax.random.split(keys[1], draws.ts.shape[0])
        samples = observations_of(self.model, draws.positions, draws.log_weights, noise)
        levels_array = jnp.asarray(levels, samples.dtype)
        quantiles = jnp.moveaxis(jnp.quantile(samples, levels_array, axis=1), 0, 1)
        ts, mean, quantiles, samples = self._out(
            (draws.ts, samples.mean(1), quantiles, samples)
        )
        return Bands(ts, mean, levels, quantiles, samples)

    def forecast(
        self,
        times: ArrayLike,
        *,
        key: PRNGKeyArray,
        num_paths: int = 1_000,
        levels: tuple[float, ...] = (0.05, 0.25, 0.5, 0.75, 0.95),
        inputs: ArrayLike | None = None,
    ) -> Bands:
        """Return quantiles of what will be observed at `times`, after the last time.

        **Raises:** `ValueError` for times that are not after the last.
        """
        times = np.asarray(times)
        last = float(np.max(np.asarray(self.series.ts)))
        if times.size and np.min(times) < last:
            raise ValueError(
                f"`times` begin at {np.min(times)}, before the last observation at "
                f"{last}: for those use `observations`."
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

        **Warns:** `RunWarning` where fewer than 10 paths count, and where the bound is
        above the evidence at half the step by more than Monte Carlo error: then `dt` is
        too long for the drift.
        """
        found = self._evidence(self.model, key, num_paths)
        assert self.model.dt is not None
        finer = dataclasses.replace(self.model, dt=self.model.dt / 2)
        fine = self._evidence(finer, jax.random.fold_in(key, 1), num_paths)
        _warn(found, fine, self.model.dt)
        return self._out(found)

    def _evidence(
        self, model: LatentSDE, key: PRNGKeyArray, num_paths: int
    ) -> Evidence:
        keys = jax.random.split(key, self.series.ts.shape[0])
        return evidence_of(
            model, self.series, num_steps_of(model, self.series), num_paths, keys
        )

    def filter(
        self, *, key: PRNGKeyArray, num_paths: int = 1_000, resample_below: float = 0.5
    ) -> Filtered:
        """Return a twisted particle filter's paths and estimate of `log p(y)`.

        Better than `evidence` where its `ess` is small. `positions` are at the grid's
        nodes.
        """
        keys = jax.random.split(key, self.series.ts.shape[0])
        steps = self._steps(None)
        found = filtered(
            self.model, self.series, steps, num_paths, resample_below, keys
        )
        return self._out(found)

    def _steps(self, series: Series | None) -> int:
        return num_steps_of(self.model, self.series if series is None else series)

    def _out(self, tree: Any) -> Any:
        return jax.tree.map(lambda x: x[0], tree) if self.single else tree

    def _merged(
        self, times: ArrayLike | None, inputs: ArrayLike | None
    ) -> tuple[Series, np.ndarray]:
        """Return the series with rows for `times`, and where these are."""
        series = self.series
        num, length = series.ts.shape
        if times is None:
            return series, np.tile(np.arange(length), (num, 1))
        rows = np.asarray(times, series.ts.dtype)
        rows = np.broadcast_to(rows, (num, rows.shape[-1]))
        first = series.ts[:, 0] if self.model.t0 is None else self.model.t0
        if np.any(np.diff(rows, axis=1) < 0) or np.any(rows[:, 0] < np.asarray(first)):
            raise ValueError(
                "`times` must be sorted and not before the first time of the series."
            )
        return with_rows(series, rows, inputs)


def _warn(found: Evidence, fine: Evidence, dt: float) -> None:
    few = int(np.sum(np.asarray(found.ess) < 10))
    if few:
        warnings.warn(
            f"fewer than 10 paths count in {few} series: the evidence is too low "
            "there. Train longer, draw more paths, or use `filter`.",
            RunWarning,
            stacklevel=3,
        )
    above = np.asarray(found.elbo.value - fine.evidence.value)
    errors = np.hypot(found.elbo.standard_error, fine.evidence.standard_error)
    faulty = above > 4 * errors + 1e-3 * np.abs(np.asarray(fine.evidence.value))
    if np.any(faulty & (np.asarray(fine.ess) >= 10)):
        i = int(np.argmax(np.where(faulty, above, -np.inf)))
        warnings.warn(
            f"in series {i} the bound is {above[i]:.3g} nats above the evidence at "
            f"half the step: steps of {dt} are too long for the drift. Lower `dt`.",
            RunWarning,
            stacklevel=3,
        )


def posterior(
    model: LatentSDE,
    ts: ArrayLike,
    ys: ArrayLike,
    mask: ArrayLike | None = None,
    inputs: ArrayLike | None = None,
    *,
    dt: float | None = None,
) -> Posterior:
    """Return the posterior of one series, `(obs,)`, or of a batch, `(series, obs)`.

    Nothing is trained: of a new series the linear control is computed at once, and the
    network, if the model has one, refines it.

    **Arguments:** as a batch of `LatentSDETrainer`; `dt`, the longest step; the model's
    own, from its trainer, by default, and a 200th of the longest series where it has
    none.

    **Raises:** `ValueError` for times that are not finite or sorted, naming the series
    and the index, or shapes that do not fit the model.
    """
    ts = jnp.asarray(ts)
    given = [None if x is None else jnp.asarray(x) for x in (ys, mask, inputs)]
    check_batch(model, (ts, *given))
    single = ts.ndim == 1
    series = as_series((ts, ys, mask, inputs))
    check_series(model, (ts, series.ys, series.mask))
    if single:
        series = jax.tree.map(lambda x: x[None], series)
    if dt is None:
        dt = model.dt
    if dt is None:
        first = series.ts[:, 0] if model.t0 is None else model.t0
        span = float(jnp.max(series.ts[:, -1] - first))
        dt = span / _DEFAULT_STEPS if span > 0 else 1.0
    return Posterior(dataclasses.replace(model, dt=dt), series, single)
