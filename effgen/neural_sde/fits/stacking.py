"""Stacking: forecasts of several models, mixed by how well each did on the record."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray

from effgen.core.contract.counts import check_count
from effgen.core.contract.keys import check_key
from effgen.core.weights import Estimate
from effgen.neural_sde.answering.answers import Bands
from effgen.neural_sde.answering.exact import is_exact
from effgen.neural_sde.answering.held_out import evidence_until, observed_law
from effgen.neural_sde.answering.posteriors import posterior
from effgen.neural_sde.data.clock import Clock
from effgen.neural_sde.data.frames import Labels
from effgen.neural_sde.data.series import (
    check_mask,
    check_no_dates,
    check_numbers,
    check_shapes,
    check_times,
)
from effgen.neural_sde.modeling.checks import check_levels
from effgen.neural_sde.modeling.model import LatentSDE

from .dated import as_asked, dated
from .shares import (
    bootstrapped_shares,
    cell_of,
    log_density,
    mixed_log_density,
    prior_of,
    stacking_weights,
)


Members = Mapping[str, LatentSDE | Sequence[LatentSDE]]
_LOST = -1e6  # nats of an evidence that is not finite
_LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)


class Stack(eqx.Module):
    """Several models of one record, whose forecasts are mixed.

    Made by `stack` or `forecaster`.

    Attributes:
        members: By name, each one model, or several that count alike.
        weights: Of the mixture, by name. They sum to one.
        held_out: Nats that each member, fitted to the record's first part, gave to the
            rest, with their error, by name.
        ts: The record's times as numbers, shape `(obs,)`: dates in units since the
            first.
        ys: Its values, as they were given.
        mask: Where there is a value, or `None`.
        clock: How dates become numbers; `None` for times that are numbers.
        labels: The names of times and columns, given back with forecasts.
    """

    members: dict[str, tuple[LatentSDE, ...]]
    weights: dict[str, float]
    held_out: dict[str, Estimate]
    ts: np.ndarray
    ys: np.ndarray
    mask: np.ndarray | None
    clock: Clock | None = eqx.field(static=True, default=None)
    labels: Labels = Labels()

    def forecast(
        self,
        times: ArrayLike,
        *,
        key: PRNGKeyArray,
        num_paths: int = 1_000,
        levels: tuple[float, ...] = _LEVELS,
    ) -> Bands:
        """Return quantiles of what will be observed at `times`.

        Whole records are drawn from the members in proportion to their weights.

        Arguments:
            times: Sorted, at or after the last value, shape `(times,)`, dates where the
                record has dates.
            key: A random key.
            num_paths: How many whole records are drawn.
            levels: Probabilities of the quantiles, in (0, 1).

        Returns:
            Mean, quantiles and whole records.

        Raises:
            ValueError: For times before the last value, and as `Posterior.forecast`.
            TypeError: For numbers where the record has dates, or the converse.
        """
        check_key(key)
        check_count("num_paths", num_paths)
        check_levels(levels)
        keys = jax.random.split(key, len(self.members) + 1)
        rows = times if self.clock is None else self.clock.numbers(times)
        found = [
            self._of(models, rows, num_paths, levels, key)
            for models, key in zip(self.members.values(), keys, strict=False)
        ]
        shares = np.array(list(self.weights.values()))
        rng = np.random.default_rng(np.asarray(jax.random.key_data(keys[-1])))
        counts = _apportioned(shares, num_paths, rng)
        samples = jnp.concatenate(
            [_evenly(b.samples, n) for b, n in zip(found, counts, strict=True)]
        )
        quantiles = jnp.quantile(samples, jnp.asarray(levels, samples.dtype), axis=0)
        mean = sum(w * b.mean for w, b in zip(shares, found, strict=True))
        ess = 1 / sum(
            w**2 / jnp.minimum(b.ess, num_paths)
            for w, b in zip(shares, found, strict=True)
        )
        ts = as_asked(times, found[0].ts, self.clock)
        ess = jnp.asarray(ess)
        mean = jnp.asarray(mean, samples.dtype)
        return Bands(ts, mean, levels, quantiles, samples, ess, self.labels)

    def _of(
        self,
        models: Sequence[LatentSDE],
        times: ArrayLike,
        num_paths: int,
        levels: tuple[float, ...],
        key: PRNGKeyArray,
    ) -> Bands:
        """Return a member's forecast, as many records of each of its models."""
        each = -(-num_paths // len(models))
        keys = jax.random.split(key, len(models))
        found = [
            posterior(model, self.ts, self.ys, self.mask).forecast(
                times, key=key, num_paths=each, levels=levels
            )
            for model, key in zip(models, keys, strict=True)
        ]
        samples = jnp.concatenate([bands.samples for bands in found])
        ess = jnp.sum(jnp.stack([bands.ess for bands in found]), axis=0)
        mean = jnp.mean(jnp.stack([bands.mean for bands in found]), axis=0)
        return found[0]._replace(mean=mean, samples=samples, ess=ess)


def stack(
    fit: Callable[..., Members],
    ts: ArrayLike,
    ys: ArrayLike,
    mask: ArrayLike | None = None,
    *,
    horizon: int,
    key: PRNGKeyArray,
    num_origins: int = 6,
    num_paths: int = 500,
    shares: Mapping[str, float] | None = None,
    unit: str = "s",
) -> Stack:
    """Fit several models, and mix them by how well they forecast the record itself.

    All are fitted on the first part of the record, the first half or all but
    `num_origins` horizons. The rest is cut at as many origins, and each member has the
    evidence of each block, `log p_k(block_j | y before)`, with these parameters. From
    `shares`, a priori, it has

        prior_k = mean over a of shares_k exp(sum_j a_j log p_k(block_j | y before)) / Z

    of one hundredth at least. `a` are the weights of a Bayesian bootstrap of the
    blocks, and `Z` makes the sum over members one. So a member with much less evidence
    counts little, however few origins there are. All also forecast from the origins,
    and the weights maximize

        sum over origins of mean_h log sum_k w_k p_k(y_h | y until the origin)
            + 2 sum_k prior_k log w_k

    Times after one origin depend on each other and count as one observation. Where all
    values are whole numbers, `p_k(y)` is the probability of `y` plus or minus a half:
    of counts a density says nothing. The second term, a Dirichlet prior worth two
    origins, keeps every weight above zero. Then all are fitted on the whole record.

    Arguments:
        fit: From `(ts, ys, mask, key)` to models by name, fitted to a record whose last
            values may be NaN; under a name one model or several that count alike. Its
            `ts` are numbers: dates in `unit` since the first.
        ts: Times of one series in order, numbers or dates, shape `(obs,)`.
        ys: Values, shape `(obs,)` or `(obs, sensors)`, or of pandas.
        mask: Where there is a value, of the shape of `ts` or `ys`. NaN are missing too.
        horizon: How many times ahead a forecast is to reach.
        key: A random key.
        num_origins: The most times from which forecasts of the past are judged.
        num_paths: How many paths these have.
        shares: By name, the weights before any forecast is judged; `None`: equal ones.
        unit: The unit in which the models count dates, one of NumPy's.

    Returns:
        The members fitted on the whole record, with their weights.

    Raises:
        ValueError: For a record shorter than two horizons, `shares` that are not of the
            members, and a `fit` that gives other names the second time.
        TypeError: For a `fit` that is no function or gives no models, and no key.

    Source:
        Yao, Vehtari, Simpson and Gelman (2018); of the prior, their section 3.4.
    """
    if not callable(fit):
        raise TypeError(f"`fit` is a {type(fit).__name__}: pass a function to models.")
    check_key(key)
    ts, ys, clock, labels = dated(ts, ys, unit)
    mask = None if mask is None else np.asarray(mask)
    values = values_of(ts, ys, mask)
    origins = origins_of(values, horizon, num_origins)
    keys = jax.random.split(key, 4)
    first = np.where(_rows_before(origins[0], values), values, np.nan)
    earlier = _checked(fit(ts, first, None, keys[0]))
    given = prior_of(list(earlier), shares)
    densities = {
        name: _foretold(models, ts, values, origins, horizon, num_paths, keys[1])
        for name, models in earlier.items()
    }
    told = {
        name: _held_out(models, ts, values, origins, keys[2])
        for name, models in earlier.items()
    }
    members = _checked(fit(ts, values, None, keys[3]))
    if list(members) != list(earlier):
        raise ValueError(
            f"`fit` gave {list(earlier)} of a part of the record and {list(members)} "
            "of the whole: give the same names."
        )
    blocks = np.stack([nats for nats, _ in told.values()], axis=-1)
    prior = bootstrapped_shares(blocks, given)
    found = stacking_weights(np.stack(list(densities.values()), axis=-1), prior)
    weights = dict(zip(members, map(float, found), strict=True))
    held_out = {name: whole for name, (_, whole) in told.items()}
    return Stack(members, weights, held_out, ts, ys, mask, clock, labels)


def values_of(
    ts: np.ndarray, ys: np.ndarray, mask: np.ndarray | None
) -> Float[np.ndarray, "obs sensors"]:
    """Return the values of one series, NaN where they are missing.

    Raises:
        ValueError: For times that are no sorted numbers, naming where, and a `mask` of
            another shape.
    """
    check_no_dates(ts)
    if ts.ndim != 1 or ys.shape[:1] != ts.shape:
        raise ValueError(
            f"`ts` has shape {ts.shape} and `ys` {ys.shape}: pass one series, (obs,) "
            "and (obs,) or (obs, sensors)."
        )
    check_numbers("ys", ys)
    check_times(ts, None)
    values = ys.astype(np.float64).reshape(len(ts), -1)
    if mask is None:
        return values
    check_shapes(ts, ys, mask, None)
    check_mask(mask)
    return np.where(mask.astype(bool).reshape(len(ts), -1), values, np.nan)


def _rows_before(origin: int, values: np.ndarray) -> np.ndarray:
    return np.arange(len(values))[:, None] < origin


def origins_of(values: np.ndarray, horizon: int, num_origins: int) -> np.ndarray:
    """Return the first rows of the forecasts by which models are judged.

    Raises:
        ValueError: For a record shorter than two horizons.
    """
    seen = np.flatnonzero(np.isfinite(values).any(axis=1))
    last = int(seen[-1]) + 1 if len(seen) else 0
    whole = isinstance(horizon, int | np.integer) and not isinstance(horizon, bool)
    if not whole or horizon < 1 or 2 * horizon > last:
        raise ValueError(
            f"`horizon` is {horizon!r} and the record has {last} times: pass a whole "
            "number up to half of them."
        )
    if not isinstance(num_origins, int) or num_origins < 1:
        raise ValueError(f"`num_origins` is {num_origins}: pass a positive integer.")
    first = max(-(-last // 2), last - num_origins * horizon)
    at = np.linspace(first, last - horizon, num_origins)
    return np.unique(np.round(at).astype(int))


def _checked(members: Any) -> dict[str, tuple[LatentSDE, ...]]:
    """Return members by name, each as a tuple of models."""
    if not isinstance(members, Mapping) or not members:
        raise TypeError("`fit` must return models by name, a dictionary.")
    found = {}
    for name, models in members.items():
        models = (models,) if isinstance(models, LatentSDE) else tuple(models)
        if not models or not all(isinstance(m, LatentSDE) for m in models):
            raise TypeError(f"member {name!r} of `fit` is no `LatentSDE`, nor several.")
        if any(m.linear.input_matrix is not None for m in models):
            raise ValueError(f"member {name!r} has inputs: stacks take none.")
        found[str(name)] = models
    return found


def _foretold(
    models: Sequence[LatentSDE],
    ts: np.ndarray,
    values: np.ndarray,
    origins: np.ndarray,
    horizon: int,
    num_paths: int,
    key: PRNGKeyArray,
) -> Float[np.ndarray, "origins values"]:
    """Return log-densities that a member gave to what came after each origin."""
    known = np.stack(
        [np.where(_rows_before(i, values), values, np.nan) for i in origins]
    )
    times = np.broadcast_to(ts, known.shape[:2])
    rows = origins[:, None] + np.arange(horizon)
    found = [posterior(model, times, known) for model in models]
    if all(is_exact(model) for model in models):
        laws = [observed_law(p, ts[rows]) for p in found]
        means, variances = (np.stack(x).astype(np.float64) for x in zip(*laws))
        logs = mixed_log_density(means, variances, values[rows], cell_of(values))
        return logs.reshape(len(origins), -1)
    keys = jax.random.split(key, len(models))
    each = -(-num_paths // len(models))
    drawn = [
        p.observations(ts[rows], key=key, num_paths=each).samples
        for p, key in zip(found, keys, strict=True)
    ]
    mixed = np.concatenate([np.asarray(x, np.float64) for x in drawn], axis=1)
    logs = log_density(np.moveaxis(mixed, 1, 0), values[rows], cell_of(values))
    return logs.reshape(len(origins), -1)


def _held_out(
    models: Sequence[LatentSDE],
    ts: np.ndarray,
    values: np.ndarray,
    origins: np.ndarray,
    key: PRNGKeyArray,
) -> tuple[Float[np.ndarray, " origins"], Estimate]:
    """Return the evidence of each block, of models that count alike, and of all blocks.

    The evidence is of the mean density: models that forecast a block well count more
    later.
    """
    keys = jax.random.split(key, len(models))
    ends = np.append(origins, len(values))
    found = [
        evidence_until(model, ts, values, ends, key=key)
        for model, key in zip(models, keys, strict=True)
    ]
    whole = np.stack([x.value for x in found])
    errors = np.stack([np.hypot(x.standard_error[0], x.standard_error) for x in found])
    lost = np.logical_or.accumulate(~np.isfinite(whole), axis=1)
    known = np.where(lost, 0, whole)
    logs = np.where(lost, _LOST, known - known[:, :1])
    logs[:, 0] = 0
    so_far = np.logaddexp.reduce(logs, axis=0) - np.log(len(logs))
    share = np.exp(logs[:, -1] - np.logaddexp.reduce(logs[:, -1]))
    error = np.sqrt(np.sum((share * np.where(lost, 0, errors)[:, -1]) ** 2))
    return np.diff(so_far), Estimate(jnp.asarray(so_far[-1]), jnp.asarray(error))


def _evenly(samples: Array, count: int) -> Array:
    """Return some of draws that may be sorted by whom they come from."""
    rows = np.floor((np.arange(count) + 0.5) * len(samples) / max(count, 1))
    return samples[rows.astype(int)]


def _apportioned(
    shares: np.ndarray, total: int, rng: np.random.Generator
) -> np.ndarray:
    """Return how many of `total` each share gets, systematically."""
    ends = np.cumsum(shares / shares.sum())
    places = (np.arange(total) + rng.uniform()) / total
    return np.bincount(
        np.minimum(np.searchsorted(ends, places), len(shares) - 1),
        minlength=len(shares),
    )
