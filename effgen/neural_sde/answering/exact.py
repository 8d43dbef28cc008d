"""Closed forms of linear models that are observed linearly."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from effgen.neural_sde.bounds.objectives import anchored_on_grid
from effgen.neural_sde.bounds.paths import Paths, simulate
from effgen.neural_sde.data.grid import steps_needed
from effgen.neural_sde.data.series import Series
from effgen.neural_sde.filters.kalman import evidence_by_innovations
from effgen.neural_sde.linear_sdes.messages import marginals
from effgen.neural_sde.modeling.anchors import Anchored, PriorAnchor
from effgen.neural_sde.modeling.model import LatentSDE
from effgen.neural_sde.observing.decoders import LinearDecoder


Index = Array | np.ndarray


def is_exact(model: LatentSDE) -> bool:
    """Return whether the model is linear and observed linearly: closed forms hold."""
    return model.drift is None and model.diffusion is None and model.decoder.exact


def from_time_to_time(model: LatentSDE) -> LatentSDE:
    """Return a model without steps between times where one step is exact."""
    if is_exact(model) and model.linear.time_invariant:
        return dataclasses.replace(model, dt=np.inf)
    return model


def unguided(model: LatentSDE) -> LatentSDE:
    """Return a linear model without what guides nonlinear ones."""
    return dataclasses.replace(model, residual=None, anchor=PriorAnchor())


def num_steps_of(model: LatentSDE, series: Series) -> int:
    """Return how many steps the longest series needs."""
    return steps_needed(np.asarray(series.ts), dt=model.dt, t0=model.t0)


@eqx.filter_jit
def linear_evidence(model: LatentSDE, series: Series, steps: int) -> Array:
    """Return `log p(y)` of each anchored linear model."""
    if is_exact(model) and model.linear.time_invariant:
        return jax.vmap(lambda s: evidence_by_innovations(unguided(model), s))(series)
    one = lambda s: anchored_on_grid(model, s, num_steps=steps, parallel=False)[0]
    return jax.vmap(lambda s: one(s).guided.log_evidence)(series)


@eqx.filter_jit
def exact_laws(
    model: LatentSDE, series: Series, index: Index, steps: int
) -> tuple[Array, Array]:
    """Return means and covariances of each linear posterior."""

    def one(series: Series, index: Index) -> tuple[Array, Array]:
        anchored, grid = anchored_on_grid(
            unguided(model), series, num_steps=steps, parallel=False
        )
        means, covariances = marginals(anchored.guided)
        at = grid.nodes[index]
        return means[at], covariances[at]

    return jax.vmap(one)(series, index)


def drawn_paths(
    model: LatentSDE, series: Series, index: Index, steps: int, num: int, key: Array
) -> tuple[Anchored, Array, Paths]:
    """Return the unguided model of a series, its nodes at `index`, and its paths."""
    anchored, grid = anchored_on_grid(model, series, num_steps=steps, parallel=False)
    paths = simulate(model, anchored, series, grid, num_paths=num, key=key)
    return anchored, grid.nodes[index], paths


@eqx.filter_jit
def drawn_records(
    model: LatentSDE,
    series: Series,
    index: Index,
    steps: int,
    num: int,
    keys: tuple[Array, Array],
) -> tuple[Array, Array, Array]:
    """Draw what each linear posterior would show; return means and variances too.

    One program has all three: apart, each would compile the same messages again.
    """
    model, decoder = unguided(model), model.decoder
    assert isinstance(decoder, LinearDecoder)

    def one(
        series: Series, index: Index, key: Array, noise: Array
    ) -> tuple[Array, Array, Array]:
        anchored, at, paths = drawn_paths(model, series, index, steps, num, key)
        positions = jnp.moveaxis(paths.positions[at], 0, 1)
        means, covariances = marginals(anchored.guided)
        errors = None if series.errors is None else series.errors[index]
        drawn = decoder.sample(positions, key=noise, errors=errors)
        mean, variance = jax.vmap(decoder.law)(means[at], covariances[at], errors)
        return drawn, mean, variance

    return jax.vmap(one)(series, index, *keys)


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
