"""Compiled answers of posteriors: draws, exact laws, and what would be observed."""

import dataclasses
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array

from effgen.core.weights import resample
from effgen.neural_sde.bounds.objectives import anchored_on_grid, grid_of
from effgen.neural_sde.bounds.paths import simulate
from effgen.neural_sde.data.grid import Grid, steps_needed
from effgen.neural_sde.data.series import Series, last_seen
from effgen.neural_sde.filters import cautions
from effgen.neural_sde.filters.evidence import (
    Evidence,
    mixture_weights,
    weighted_evidence,
)
from effgen.neural_sde.filters.filtering import Filtered, particle_filter
from effgen.neural_sde.filters.kalman import (
    evidence_by_innovations,
    kalman_filter,
    kalman_predictions,
)
from effgen.neural_sde.filters.predictions import Predictions, predictions
from effgen.neural_sde.filters.twisted import Smoothed, twisted_filter
from effgen.neural_sde.linear_sdes.messages import marginals
from effgen.neural_sde.modeling.anchors import PriorAnchor
from effgen.neural_sde.modeling.model import LatentSDE
from effgen.neural_sde.observing.decoders import LinearDecoder

from .answers import Draws


Index = Array | np.ndarray


def is_exact(model: LatentSDE) -> bool:
    """Return whether the model is linear and observed linearly: closed forms hold."""
    return model.drift is None and model.diffusion is None and model.decoder.exact


def from_time_to_time(model: LatentSDE) -> LatentSDE:
    """Return a model without steps between times where one step is exact."""
    if is_exact(model) and model.linear.time_invariant:
        return dataclasses.replace(model, dt=np.inf)
    return model


def _linear(model: LatentSDE) -> LatentSDE:
    """Return a linear model without what guides nonlinear ones."""
    return dataclasses.replace(model, residual=None, anchor=PriorAnchor())


def _guides(model: LatentSDE) -> tuple[LatentSDE, ...]:
    """Return the model, and beside an anchor of its own the prior's.

    An anchor may miss a part of the posterior; what the two find is weighed.
    """
    if isinstance(model.anchor, PriorAnchor):
        return (model,)
    return model, _linear(model)


def num_steps_of(model: LatentSDE, series: Series) -> int:
    """Return how many steps the longest series needs."""
    return steps_needed(np.asarray(series.ts), dt=model.dt, t0=model.t0)


def steps_of_paths(model: LatentSDE, series: Series, num_paths: int) -> int:
    """Return how many steps the longest series needs; refuse too many of all paths."""
    steps = num_steps_of(model, series)
    paths = num_paths * len(series.ts)
    cautions.of_many_steps(model.dt, steps, paths, model.num_states)
    return steps


@eqx.filter_jit
def linear_evidence(model: LatentSDE, series: Series, steps: int) -> Array:
    """Return `log p(y)` of each anchored linear model."""
    if is_exact(model) and model.linear.time_invariant:
        return jax.vmap(lambda s: evidence_by_innovations(_linear(model), s))(series)
    one = lambda s: anchored_on_grid(model, s, num_steps=steps, parallel=False)[0]
    return jax.vmap(lambda s: one(s).guided.log_evidence)(series)


@eqx.filter_jit
def draws_of(
    model: LatentSDE,
    series: Series,
    index: Index,
    steps: int,
    num: int,
    keys: Array,
    *,
    run: Callable[..., Smoothed] = twisted_filter,
) -> Draws:
    """Draw paths of each series, at the observations that `index` names.

    `twisted_futures` gives the same paths where all of these are past the last value.
    """

    def one(series: Series, index: Index, key: Array) -> Draws:
        if is_exact(model):
            return _exact_draws(model, series, index, steps, num, key)
        return _particle_draws(run, model, series, index, steps, num, key)

    return jax.vmap(one)(series, index, keys)


def holding_step(
    model: LatentSDE, series: Series, index: np.ndarray, keys: Array
) -> float | None:
    """Return the first half, quarter, ... of `dt` by which paths stay finite."""
    for halvings in range(1, 7):
        finer = dataclasses.replace(model, dt=model.dt / 2**halvings)
        steps = num_steps_of(finer, series)
        found = draws_of(finer, series, index, steps, 200, keys)
        if not cautions.lost(found.positions):
            return finer.dt
    return None


def is_future(series: Series, index: np.ndarray) -> bool:
    """Return whether all that `index` names is at or after each series' last value."""
    ts = np.asarray(series.ts)
    seen = series.seen
    # Where values are traced, each row that is not asked for may have one.
    if isinstance(seen, Tracer):
        seen = np.ones(ts.shape, bool)
        np.put_along_axis(seen, index, values=False, axis=1)
    last = last_seen(ts, np.asarray(seen))[:, None]
    return bool(np.all(np.take_along_axis(ts, index, axis=1) >= last))


def _exact_draws(
    model: LatentSDE, series: Series, index: Index, steps: int, num: int, key: Array
) -> Draws:
    model = _linear(model)
    anchored, grid = anchored_on_grid(model, series, num_steps=steps, parallel=False)
    paths = simulate(model, anchored, series, grid, num_paths=num, key=key)
    positions = jnp.moveaxis(paths.positions[grid.nodes[index]], 0, 1)
    ess = jnp.full(index.shape, float(num), positions.dtype)
    return Draws(series.ts[index], positions, paths.log_weights, ess)


def _particle_draws(
    run: Callable[..., Smoothed],
    model: LatentSDE,
    series: Series,
    index: Index,
    steps: int,
    num: int,
    key: Array,
) -> Draws:
    """Draw paths by twisted filters, one a guide, and choose by their evidence."""
    guides = _guides(model)
    keys = jax.random.split(key, len(guides) + 1)
    found = [
        _twisted(guide, series, steps, num, 0.5, key, run)
        for guide, key in zip(guides, keys, strict=False)
    ]
    logs = jnp.stack([smoothed.evidence.value for smoothed, _ in found])
    share = jax.nn.softmax(jnp.where(jnp.isfinite(logs), logs, -jnp.inf))
    share = jnp.where(jnp.isfinite(share), share, 1 / len(guides))
    each = jnp.log(jnp.repeat(share, num))
    chosen = resample(each, num, key=keys[-1]) if len(guides) > 1 else jnp.arange(num)
    at = found[0][1].nodes[index]
    positions = jnp.concatenate([s.positions[at] for s, _ in found], axis=1)[:, chosen]
    counts = jnp.stack([smoothed.ess[at] for smoothed, _ in found])
    ess = 1 / jnp.sum(share[:, None] ** 2 / counts, axis=0)
    whole = jax.nn.logsumexp(logs) - jnp.log(len(guides))
    return Draws(
        series.ts[index],
        jnp.moveaxis(positions, 0, 1),
        jnp.full(num, whole),
        jnp.minimum(ess, num),
    )


def _twisted(
    model: LatentSDE,
    series: Series,
    steps: int,
    num: int,
    below: float,
    key: Array,
    run: Callable[..., Smoothed] = twisted_filter,
) -> tuple[Smoothed, Grid]:
    anchored, grid = anchored_on_grid(model, series, num_steps=steps, parallel=False)
    found = run(
        model, anchored, series, grid, num_paths=num, key=key, resample_below=below
    )
    return found, grid


@eqx.filter_jit
def exact_laws(
    model: LatentSDE, series: Series, index: Index, steps: int
) -> tuple[Array, Array]:
    """Return means and covariances of each linear posterior."""

    def one(series: Series, index: Index) -> tuple[Array, Array]:
        anchored, grid = anchored_on_grid(
            _linear(model), series, num_steps=steps, parallel=False
        )
        means, covariances = marginals(anchored.guided)
        at = grid.nodes[index]
        return means[at], covariances[at]

    return jax.vmap(one)(series, index)


def exact_observations(
    model: LatentSDE, series: Series, index: Index
) -> tuple[Array, Array]:
    """Return means and variances of what each linear posterior would show."""
    model = from_time_to_time(model)
    return _exact_observations(model, series, index, num_steps_of(model, series))


@eqx.filter_jit
def _exact_observations(
    model: LatentSDE, series: Series, index: Index, steps: int
) -> tuple[Array, Array]:
    assert isinstance(model.decoder, LinearDecoder)
    means, covariances = exact_laws(model, series, index, steps)
    errors = errors_at(series, index)
    return jax.vmap(jax.vmap(model.decoder.law))(means, covariances, errors)


@jax.jit
def normal_quantiles(mean: Array, variance: Array, levels: Array) -> Array:
    """Return quantiles of normal laws, at an axis after the first."""
    normal = jax.scipy.stats.norm.ppf(levels).astype(mean.dtype)
    away = normal[None, :, None, None] * jnp.sqrt(variance)[:, None]
    return mean[:, None] + away


def errors_at(series: Series, index: Index) -> Array | None:
    """Return the errors' sizes at the observations that `index` names."""
    if series.errors is None:
        return None
    return jax.vmap(lambda errors, at: errors[at])(series.errors, index)


@eqx.filter_jit
def evidence_of(
    model: LatentSDE, series: Series, steps: int, num: int, keys: Array
) -> Evidence:
    """Return each series' evidence by importance weights."""
    guides = _guides(model)

    def one(series: Series, key: Array) -> Evidence:
        keys = jax.random.split(key)
        found = [
            anchored_on_grid(guide, series, num_steps=steps, parallel=False)
            for guide in guides
        ]
        anchored, grid = found[0]
        paths = simulate(model, anchored, series, grid, num_paths=num, key=keys[0])
        linear = anchored.guided.log_evidence
        own = weighted_evidence(paths.elbo, paths.log_weights, linear)
        if len(guides) == 1:
            return own
        pairs = tuple((g, a) for g, (a, _) in zip(guides, found, strict=True))
        mixed = mixture_weights(model, pairs, series, grid, num_paths=num, key=keys[1])
        return own.weighed_by(mixed)

    return jax.vmap(one)(series, keys)


@eqx.filter_jit
def smoothed(
    model: LatentSDE, series: Series, steps: int, num: int, below: float, keys: Array
) -> Smoothed:
    """Run a twisted particle filter for each series."""
    one = lambda series, key: _twisted(model, series, steps, num, below, key)[0]
    return jax.vmap(one)(series, keys)


@eqx.filter_jit
def filtered(
    model: LatentSDE, series: Series, steps: int, num: int, below: float, keys: Array
) -> Filtered:
    """Filter each series."""

    def one(series: Series, key: Array) -> Filtered:
        return _filtered(model, series, steps, num, below, key)

    return jax.vmap(one)(series, keys)


def _filtered(
    model: LatentSDE, series: Series, steps: int, num: int, below: float, key: Array
) -> Filtered:
    if is_exact(model):
        model = _linear(model)
    if is_exact(model):
        grid = grid_of(model, series, steps)
        return kalman_filter(model, series, grid, num_paths=num, key=key)
    anchored, grid = anchored_on_grid(model, series, num_steps=steps, parallel=False)
    return particle_filter(
        model, anchored, series, grid, num_paths=num, key=key, resample_below=below
    )


@eqx.filter_jit
def predicted(
    model: LatentSDE, series: Series, steps: int, num: int, keys: Array
) -> Predictions:
    """Predict each observation of each series from those before."""

    def one(series: Series, key: Array) -> Predictions:
        if is_exact(model):
            linear = _linear(model)
            return kalman_predictions(linear, series, grid_of(linear, series, steps))
        keys = jax.random.split(key)
        found = _filtered(model, series, steps, num, 0.5, keys[0])
        return predictions(model, series, found, key=keys[1])

    return jax.vmap(one)(series, keys)


@eqx.filter_jit
def observations_of(
    model: LatentSDE, positions: Array, errors: Array | None, keys: Array
) -> Array:
    """Draw what would be observed along paths, `(series, paths, times, state)`."""
    decoder = model.decoder

    def one(positions: Array, errors: Array | None, key: Array) -> Array:
        if isinstance(decoder, LinearDecoder):
            return decoder.sample(positions, key=key, errors=errors)
        keys = jax.random.split(key, positions.shape[:2])
        draw = lambda x, key: decoder.sample(x, key=key)
        return jax.vmap(jax.vmap(draw))(positions, keys)

    axes = (0, None if errors is None else 0, 0)
    return jax.vmap(one, axes)(positions, errors, keys)
