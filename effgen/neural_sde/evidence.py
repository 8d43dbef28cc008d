"""How far a bound is from the truth: importance weights and particle filters."""

from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from effgen.core.weights import (
    Estimate,
    effective_sample_size,
    log_mean_exp,
    normalized,
    resample,
)

from .anchors import Anchored
from .grid import Grid
from .paths import Step, correction, moved, steps_of
from .series import Series


if TYPE_CHECKING:
    from .model import LatentSDE


class Evidence(NamedTuple):
    """What is known of one series' `log p(y)`, each with a standard error.

    **Attributes:**

    - `elbo`: the bound.
    - `evidence`: `log p(y)` itself by importance weights (a bound too, on average,
      that rises to it with the number of paths).
    - `gap`: `evidence - elbo`, how far training is from the exact posterior.
    - `ess`: the effective number of paths; the estimate is good where it is large.
    - `linear`: the exact `log p(y)` of the anchored linear model.
    """

    elbo: Estimate
    evidence: Estimate
    gap: Estimate
    ess: Float[Array, ""]
    linear: Float[Array, ""]


def weighted_evidence(
    elbo: Float[Array, " paths"],
    log_weights: Float[Array, " paths"],
    linear: Float[Array, ""],
) -> Evidence:
    """Return the evidence by importance weights, `log mean exp(log_weights)`.

    **Source:** Burda, Grosse and Salakhutdinov (2016), equation 8.
    """
    num = elbo.shape[0]
    mean = Estimate(elbo.mean(), elbo.std() / jnp.sqrt(max(num - 1, 1)))
    found = log_mean_exp(log_weights)
    # Each path's share in the gap, to first order: the two errors go together.
    shares = num * normalized(log_weights) - 1 - (elbo - mean.value)
    error = shares.std() / jnp.sqrt(max(num - 1, 1))
    ess = effective_sample_size(log_weights)
    gap = Estimate(found.value - mean.value, error)
    return Evidence(mean, found, gap, ess, linear)


class Filtered(NamedTuple):
    """A twisted particle filter's end.

    **Attributes:** `evidence`, an unbiased estimate's logarithm (its error from the
    spread within each stretch between resamplings, as if they were independent);
    `positions`, each path with its ancestors; `log_weights`; `num_resampled`, how
    often.
    """

    evidence: Estimate
    positions: Float[Array, "nodes paths state"]
    log_weights: Float[Array, " paths"]
    num_resampled: Float[Array, ""]


class _Particles(NamedTuple):
    positions: Array
    ancestors: Array
    log_weights: Array
    evidence: Array
    variance: Array
    num_resampled: Array


def twisted_filter(
    model: "LatentSDE",
    anchored: Anchored,
    series: Series,
    grid: Grid,
    *,
    num_paths: int,
    key: PRNGKeyArray,
    resample_below: float = 0.5,
) -> Filtered:
    """Run a particle filter whose particles know the future by the linear messages.

    Particles move as the posterior's paths do and are resampled where fewer than
    `resample_below` of them count. Where sites are not the likelihood, each observation
    adds `log p(y | x) - log s(x)` when it is met.

    **Source:** Whiteley and Lee (2014); Guarniero, Johansen and Lee (2017).
    """
    keys = jax.random.split(key)
    steps = steps_of(anchored, series, grid)
    num_steps = grid.starts.shape[0]
    first = anchored.guided.initial.sample(num_paths, key=keys[0])
    zero = jnp.zeros((), first.dtype)
    start = _Particles(
        first,
        jnp.arange(num_paths),
        jnp.zeros(num_paths, first.dtype),
        zero,
        zero,
        zero,
    )
    met = _met_at(grid.nodes, num_steps + 1)
    observations = (anchored.sites, series.ys, series.mask, series.seen)

    def weighted(particles: _Particles, node: Array) -> _Particles:
        if model.decoder.exact:
            return particles

        def add(i: Array, logs: Array) -> Array:
            row = jax.tree.map(lambda a: a[i], observations)
            return logs + correction(model, row, particles.positions)

        logs = jax.lax.fori_loop(met[0][node], met[1][node], add, particles.log_weights)
        return particles._replace(log_weights=logs)

    def body(particles: _Particles, xs: tuple[Step, Array, Array]):
        step, node, key = xs
        keys = jax.random.split(key)
        particles = _resampled(particles, resample_below, keys[0])
        shape = (num_paths, step.guide.root.shape[1])
        noise = jax.random.normal(keys[1], shape, first.dtype)
        there = moved(model, step, particles.positions, noise)
        particles = particles._replace(
            positions=there.positions,
            log_weights=particles.log_weights + there.log_weights,
        )
        ancestors = particles.ancestors
        particles = particles._replace(ancestors=jnp.arange(num_paths))
        return weighted(particles, node + 1), (there.positions, ancestors)

    start = weighted(start, jnp.zeros((), jnp.int32))
    nodes = jnp.arange(num_steps)
    step_keys = jax.random.split(keys[1], num_steps)
    end, (later, ancestors) = jax.lax.scan(body, start, (steps, nodes, step_keys))
    last = log_mean_exp(end.log_weights)
    value = anchored.guided.log_evidence + end.evidence + last.value
    error = jnp.sqrt(end.variance + last.standard_error**2)
    positions = jnp.concatenate([first[None], later])
    return Filtered(
        Estimate(value, error),
        _traced(positions, ancestors),
        end.log_weights,
        end.num_resampled,
    )


def _resampled(particles: _Particles, below: float, key: PRNGKeyArray) -> _Particles:
    num = particles.log_weights.shape[0]
    ess = effective_sample_size(particles.log_weights)
    found = log_mean_exp(particles.log_weights)

    def chosen() -> _Particles:
        index = resample(particles.log_weights, num, key=key)
        return _Particles(
            particles.positions[index],
            index,
            jnp.zeros_like(particles.log_weights),
            particles.evidence + found.value,
            particles.variance + found.standard_error**2,
            particles.num_resampled + 1,
        )

    return jax.lax.cond(ess < below * num, chosen, lambda: particles)


def _traced(positions: Array, ancestors: Array) -> Float[Array, "nodes paths state"]:
    """Follow each particle back to its first position."""

    def back(index: Array, xs: tuple[Array, Array]):
        here, parents = xs
        return parents[index], here[index]

    last = jnp.arange(positions.shape[1])
    index, later = jax.lax.scan(back, last, (positions[1:], ancestors), reverse=True)
    return jnp.concatenate([positions[:1][:, index], later])


def _met_at(nodes: Array, num_nodes: int) -> tuple[Array, Array]:
    """Return the first observation at each node, and one past its last."""
    index = jnp.arange(num_nodes)
    return (
        jnp.searchsorted(nodes, index, side="left"),
        jnp.searchsorted(nodes, index, side="right"),
    )
