"""Compiled answers of posteriors: draws, and what would be observed."""

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
from effgen.neural_sde.data.grid import Grid
from effgen.neural_sde.data.series import Series, last_seen
from effgen.neural_sde.filters import cautions
from effgen.neural_sde.filters.evidence import (
    Evidence,
    mixture_weights,
    weighted_evidence,
)
from effgen.neural_sde.filters.filtering import Filtered, particle_filter
from effgen.neural_sde.filters.kalman import (
    kalman_filter,
    kalman_predictions,
)
from effgen.neural_sde.filters.predictions import Predictions, predictions
from effgen.neural_sde.filters.twisted import Smoothed, twisted_filter
from effgen.neural_sde.modeling.anchors import PriorAnchor
from effgen.neural_sde.modeling.model import LatentSDE
from effgen.neural_sde.observing.decoders import Decoder, LinearDecoder
from effgen.neural_sde.observing.sites import NoSites

from .answers import Draws
from .exact import (
    Index,
    drawn_paths,
    drawn_records,
    from_time_to_time,
    is_exact,
    num_steps_of,
    unguided,
)


_ENOUGH = 0.05  # of the paths


def _is_heavy(model: LatentSDE) -> bool:
    """Return whether observations have a tail that no Gaussian factor covers."""
    decoder = model.decoder
    return isinstance(decoder, Decoder) and decoder.likelihood.heavy_tailed


def _guides(model: LatentSDE) -> tuple[LatentSDE, ...]:
    """Return the model, and what finds parts of the posterior that it may miss.

    That is the prior's anchor, beside another one, and where a likelihood has a tail
    heavier than its sites, the prior without sites. What they find is weighed.
    """
    found = (model,)
    if not isinstance(model.anchor, PriorAnchor):
        found += (unguided(model),)
    if _is_heavy(model):
        free = dataclasses.replace(model.decoder, proposal=NoSites())
        found += (dataclasses.replace(unguided(model), decoder=free),)
    return found


def steps_of_paths(model: LatentSDE, series: Series, num_paths: int) -> int:
    """Return how many steps the longest series needs; refuse too many of all paths."""
    steps = num_steps_of(model, series)
    paths = num_paths * len(series.ts)
    cautions.of_many_steps(model.dt, steps, paths, model.num_states)
    return steps


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


def exact_records(
    model: LatentSDE,
    series: Series,
    index: np.ndarray,
    num: int,
    keys: tuple[Array, Array],
) -> tuple[Array, Array, Array]:
    """Return draws, means and variances of what linear posteriors would show.

    `keys` are of paths and of noise, one each for each series.
    """
    whole = from_time_to_time(model)
    steps = steps_of_paths(whole, series, num)
    found = drawn_records(whole, series, index, steps, num, keys)
    if cautions.lost(found[0]):
        holding = holding_step(model, series, index, keys[0])
        cautions.of_lost(model.dt, holding)
    return found


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
    # Where values are traced, each row that was not added to be asked for may have one.
    if isinstance(seen, Tracer):
        seen = np.ones(ts.shape, bool)
        if index.shape != ts.shape:
            np.put_along_axis(seen, index, values=False, axis=1)
    last = last_seen(ts, np.asarray(seen))[:, None]
    return bool(np.all(np.take_along_axis(ts, index, axis=1) >= last))


def _exact_draws(
    model: LatentSDE, series: Series, index: Index, steps: int, num: int, key: Array
) -> Draws:
    _, at, paths = drawn_paths(unguided(model), series, index, steps, num, key)
    positions = jnp.moveaxis(paths.positions[at], 0, 1)
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
    at = found[0][1].nodes[index]
    counts = jnp.stack([smoothed.ess[at] for smoothed, _ in found])
    if _is_heavy(model):
        # Draws without sites miss no tail; if enough of them count they are all.
        enough = jnp.min(counts[-1]) > _ENOUGH * num
        share = jnp.where(enough, jnp.arange(len(guides)) == len(guides) - 1, share)
    each = jnp.log(jnp.repeat(share, num))
    chosen = resample(each, num, key=keys[-1]) if len(guides) > 1 else jnp.arange(num)
    positions = jnp.concatenate([s.positions[at] for s, _ in found], axis=1)[:, chosen]
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
        model = unguided(model)
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
            linear = unguided(model)
            return kalman_predictions(linear, series, grid_of(linear, series, steps))
        keys = jax.random.split(key)
        found = _filtered(model, series, steps, num, 0.5, keys[0])
        return predictions(model, series, found, key=keys[1])

    return jax.vmap(one)(series, keys)


@eqx.filter_jit
def observations_of(
    model: LatentSDE, positions: Array, errors: Array | None, keys: Array
) -> tuple[Array, Array]:
    """Draw what would be observed along paths, `(series, paths, times, state)`.

    Returns the draws, and the mean over paths of each value's mean there, which has no
    noise of observations: of a heavy tail this would not average out.
    """
    decoder = model.decoder

    def one(positions: Array, errors: Array | None, key: Array) -> tuple[Array, Array]:
        mean = jax.vmap(jax.vmap(decoder.mean))(positions).mean(axis=0)
        if isinstance(decoder, LinearDecoder):
            return decoder.sample(positions, key=key, errors=errors), mean
        keys = jax.random.split(key, positions.shape[:2])
        draw = lambda x, key: decoder.sample(x, key=key)
        return jax.vmap(jax.vmap(draw))(positions, keys), mean

    axes = (0, None if errors is None else 0, 0)
    return jax.vmap(one, axes)(positions, errors, keys)
