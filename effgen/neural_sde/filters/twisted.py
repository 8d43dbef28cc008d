"""The twisted particle filter: smoothed paths of nonlinear models, and their evidence.

Particles use the future through the linear messages. Paths are drawn backward through
them, so that early times keep as many distinct positions as late ones. A forecast needs
no more than the particles' own ancestors.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from effgen.core.weights import (
    Estimate,
    effective_sample_size,
    log_mean_exp,
    normalized,
    resample,
)
from effgen.neural_sde.bounds.paths import (
    Step,
    correction,
    drift_difference,
    relative_noise,
    stepped,
    steps_of,
)
from effgen.neural_sde.data.grid import Grid
from effgen.neural_sde.data.series import Series
from effgen.neural_sde.linear_sdes.linear import driven_fully
from effgen.neural_sde.linear_sdes.noise import standard_normal, standard_uniform
from effgen.neural_sde.linear_sdes.transitions import Transition
from effgen.neural_sde.modeling.anchors import Anchored, cast, prior_transitions
from effgen.neural_sde.modeling.dynamics import AbstractLatentSDE


_NUM_CANDIDATES = 32


class Smoothed(NamedTuple):
    """Paths given all observations; all count alike.

    Attributes:
        evidence: The logarithm of an unbiased estimate of `p(y)`. Its error is from
            the spread within each stretch between resamplings, as if the stretches
            were independent.
        positions: States at the grid's nodes, shape `(nodes, paths, state)`.
        ess: The effective number of paths at each node, by how many of them share a
            particle there; after the last observation, that at it. Shape `(nodes,)`.
        num_resampled: How often particles were resampled.
        num_lost: How many particles were not finite before the last observation.
    """

    evidence: Estimate
    positions: Float[Array, "nodes paths state"]
    ess: Float[Array, " nodes"]
    num_resampled: Float[Array, ""]
    num_lost: Float[Array, ""]


class _Particles(NamedTuple):
    positions: Array
    ancestors: Array
    log_weights: Array
    evidence: Array
    variance: Array
    num_resampled: Array
    num_lost: Array


class _Cloud(NamedTuple):
    """What is kept of each node: particles, weights, and whom they come from."""

    positions: Float[Array, "nodes paths state"]
    log_weights: Float[Array, "nodes paths"]
    parents: Array


def twisted_filter(
    model: AbstractLatentSDE,
    anchored: Anchored,
    series: Series,
    grid: Grid,
    *,
    num_paths: int,
    key: PRNGKeyArray,
    resample_below: float = 0.5,
) -> Smoothed:
    """Run a particle filter whose particles use the future, and draw paths backward.

    Particles move as the posterior's paths do and are resampled where fewer than
    `resample_below` of them count, and at the last observation. Where sites are not the
    likelihood, each observation adds `log p(y | x) - log s(x)` when it is met.

    Backward, each path chooses its particle at a node among its own ancestor and 32
    drawn by the filter's weights, in proportion to the prior's step to where it is
    next. Where the noise drives fewer directions than there are states no other
    particle leads there, and paths are their ancestors'.

    Source:
        Whiteley and Lee (2014); Guarniero, Johansen and Lee (2017); backward, Dau and
        Chopin (2023).
    """
    keys = jax.random.split(key, 3)
    end, cloud = _forward(
        model, anchored, series, grid, num_paths, resample_below, keys[:2]
    )
    drawn = _backward(model, anchored, series, grid, cloud, keys[2])
    return _smoothed(anchored, grid, end, *drawn)


def twisted_futures(
    model: AbstractLatentSDE,
    anchored: Anchored,
    series: Series,
    grid: Grid,
    *,
    num_paths: int,
    key: PRNGKeyArray,
    resample_below: float = 0.5,
) -> Smoothed:
    """Run the same filter, and return the paths of the particles' own ancestors.

    From the last observation on they are those of `twisted_filter`, the filter's end
    resampled and then the prior's chain, without a step drawn backward. Before it few
    of them differ: those times are not for use.
    """
    keys = jax.random.split(key, 3)
    end, cloud = _forward(
        model, anchored, series, grid, num_paths, resample_below, keys[:2]
    )
    drawn = _lineages(cloud, _ends(cloud, len(grid.starts), keys[2])[0])
    return _smoothed(anchored, grid, end, *drawn)


def _smoothed(
    anchored: Anchored, grid: Grid, end: _Particles, positions: Array, index: Array
) -> Smoothed:
    """Return paths with the evidence, and how many of them differ at each node."""
    last = log_mean_exp(end.log_weights)
    value = anchored.guided.log_evidence + end.evidence + last.value
    error = jnp.sqrt(end.variance + last.standard_error**2)
    ess = jax.vmap(_sharing)(index)
    seen = jnp.concatenate([grid.until_next > 0, jnp.zeros(1, bool)])
    # The last node that knows of an observation has more after it than before.
    final = jnp.minimum(jnp.sum(seen), len(seen) - 1)
    ess = jnp.where(jnp.arange(len(seen)) > final, ess[final], ess)
    return Smoothed(
        Estimate(value, error), positions, ess, end.num_resampled, end.num_lost
    )


def _forward(
    model: AbstractLatentSDE,
    anchored: Anchored,
    series: Series,
    grid: Grid,
    num_paths: int,
    resample_below: float,
    keys: PRNGKeyArray,
) -> tuple[_Particles, _Cloud]:
    steps = steps_of(anchored, series, grid)
    num_steps = grid.starts.shape[0]
    first = anchored.guided.initial.sample(num_paths, key=keys[0])
    zero = jnp.zeros((), first.dtype)
    even = jnp.zeros(num_paths, first.dtype)
    own = jnp.arange(num_paths)
    weighted = weighting(model, anchored, series, grid)
    even = weighted(even, first, jnp.zeros((), jnp.int32))
    start = _Particles(first, own, even, zero, zero, zero, zero)

    def body(particles: _Particles, xs: tuple[Step, Array, Array]):
        step, node, key = xs
        keys = jax.random.split(key)
        guiding = step.until_next > 0
        share = jnp.where(guiding, resample_below, 1 - 1e-3)
        particles = _resampled(particles, share, keys[0])
        shape = (num_paths, step.guide.root.shape[1])
        noise = standard_normal(keys[1], shape, first.dtype)
        there = stepped(model, step, particles.positions, noise)
        ancestors = particles.ancestors
        logs = particles.log_weights + there.log_weights
        lost = guiding & ~finite(there.positions, logs)
        positions = jnp.where(lost[:, None], particles.positions, there.positions)
        logs = weighted(jnp.where(lost, -jnp.inf, logs), positions, node + 1)
        particles = particles._replace(
            positions=positions,
            ancestors=own,
            log_weights=logs,
            num_lost=particles.num_lost + jnp.sum(lost),
        )
        return particles, _Cloud(particles.positions, particles.log_weights, ancestors)

    step_keys = jax.random.split(keys[1], num_steps)
    end, later = jax.lax.scan(body, start, (steps, jnp.arange(num_steps), step_keys))
    begin = _Cloud(start.positions, start.log_weights, own)
    return end, jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), begin, later)


def finite(positions: Array, log_weights: Array) -> Bool[Array, " paths"]:
    """Return which particles are somewhere, with a weight."""
    return jnp.all(jnp.isfinite(positions), axis=1) & ~jnp.isnan(log_weights)


def weighting(
    model: AbstractLatentSDE, anchored: Anchored, series: Series, grid: Grid
) -> Callable[[Array, Array, Array], Array]:
    """Return what adds to log-weights what sites leave of a node's observations."""
    if model.decoder.exact:
        return lambda log_weights, positions, node: log_weights
    met = met_at(grid.nodes, grid.starts.shape[0] + 1)
    observations = (anchored.sites, series.ys, series.mask, series.seen)

    def weighted(log_weights: Array, positions: Array, node: Array) -> Array:
        def add(i: Array, logs: Array) -> Array:
            row = jax.tree.map(lambda a: a[i], observations)
            return logs + correction(model, row, positions)

        logs = jax.lax.fori_loop(met[0][node], met[1][node], add, log_weights)
        return jnp.where(jnp.isnan(logs), -jnp.inf, logs)

    return weighted


def _resampled(particles: _Particles, below: Array, key: PRNGKeyArray) -> _Particles:
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
            particles.num_lost,
        )

    return jax.lax.cond(ess < below * num, chosen, lambda: particles)


def _ends(cloud: _Cloud, num_steps: int, key: PRNGKeyArray) -> tuple[Array, Array]:
    """Return the particles where paths end, and a key for each step back."""
    keys = jax.random.split(key, num_steps + 1)
    num = cloud.positions.shape[1]
    return resample(cloud.log_weights[-1], num, key=keys[0]), keys[1:]


def _lineages(
    cloud: _Cloud, last: Array
) -> tuple[Float[Array, "nodes paths state"], Array]:
    """Return the paths that end at `last`, each the ancestors', and their indices."""

    def back(index: Array, xs: tuple[Array, Array]) -> tuple[Array, tuple]:
        positions, parents = xs
        index = parents[index]
        return index, (positions[index], index)

    here = (cloud.positions[:-1], cloud.parents[1:])
    _, found = jax.lax.scan(back, last, here, reverse=True)
    end = (cloud.positions[-1][last], last)
    join = lambda a, b: jnp.concatenate([a, b[None]])
    return jax.tree.map(join, found, end)


def _backward(
    model: AbstractLatentSDE,
    anchored: Anchored,
    series: Series,
    grid: Grid,
    cloud: _Cloud,
    key: PRNGKeyArray,
) -> tuple[Float[Array, "nodes paths state"], Array]:
    """Draw paths from the last node back; return positions, and particles' indices."""
    last, keys = _ends(cloud, len(grid.starts), key)
    steps = steps_of(anchored, series, grid)
    dtype = cloud.positions.dtype
    transitions = cast(prior_transitions(model, series, grid), dtype)
    before = cast(anchored.guided.before, dtype)
    others = driven_fully(model.linear)

    def back(carry: tuple[Array, Array], xs: tuple):
        index, there = carry
        step, transition, message, positions, logs, parents, key = xs
        index = parents[index]
        if others:
            logs = logs - jax.vmap(message.log_value)(positions)
            inside = (step.until_next > 0) & (step.length > 0)
            chosen = _chosen(
                model, step, transition, positions, logs, index, there, key
            )
            index = jnp.where(inside, chosen, index)
        return (index, positions[index]), (index, positions[index])

    here = jax.tree.map(lambda x: x[:-1], cloud)
    xs = (
        steps,
        transitions,
        before,
        here.positions,
        here.log_weights,
        cloud.parents[1:],
        keys,
    )
    end = (last, cloud.positions[-1][last])
    _, (index, positions) = jax.lax.scan(back, end, xs, reverse=True)
    join = lambda a, b: jnp.concatenate([a, b[None]])
    return join(positions, end[1]), join(index, end[0])


def _chosen(
    model: AbstractLatentSDE,
    step: Step,
    transition: Transition,
    x: Float[Array, "paths state"],
    log_weights: Float[Array, " paths"],
    own: Array,
    there: Float[Array, "paths state"],
    key: PRNGKeyArray,
) -> Array:
    """Choose among a path's own ancestor and candidates, by the prior's step."""
    keys = jax.random.split(key)
    num = x.shape[0]
    places = standard_uniform(keys[0], (num, _NUM_CANDIDATES), x.dtype)
    drawn = jnp.searchsorted(jnp.cumsum(normalized(log_weights)), places)
    among = jnp.concatenate([own[:, None], jnp.minimum(drawn, num - 1)], axis=1)
    drift = drift_difference(model, step, x)
    means = x @ transition.matrix.T + transition.offset[None]
    if drift is not None:
        means = means + drift @ transition.push.T
    size = x.shape[1]
    inverse = jnp.linalg.inv(
        jnp.where(step.length > 0, transition.root, jnp.eye(size, dtype=x.dtype))
    )
    # Differences first: far from zero their size is a rounding error of the positions'.
    error = (there[:, None] - means[among]) @ inverse.T
    logs = jnp.zeros(among.shape, x.dtype)
    if model.diffusion is not None:
        spread = jax.vmap(lambda x: relative_noise(model, step.start, x))(x)
        own_inverse = jnp.linalg.inv(spread)
        error = jnp.einsum("pcij,pcj->pci", own_inverse[among], error)
        logs = jnp.linalg.slogdet(own_inverse)[1][among]
    logs = logs - 0.5 * jnp.sum(error**2, axis=2)
    logs = jnp.where(jnp.isfinite(logs), logs, -jnp.inf)
    top = jnp.max(logs, axis=1, keepdims=True)
    # Where no candidate's step is finite the path keeps its ancestor.
    logs = jnp.where(
        jnp.isfinite(top), logs, jnp.zeros_like(logs).at[:, 1:].set(-jnp.inf)
    )
    place = jax.random.categorical(keys[1], logs)
    return jnp.take_along_axis(among, place[:, None], axis=1)[:, 0]


def _sharing(index: Array) -> Float[Array, ""]:
    """Return the effective number of particles that paths are of."""
    num = index.shape[0]
    counts = jnp.zeros(num).at[index].add(1.0)
    return num**2 / jnp.sum(counts**2)


def met_at(nodes: Array, num_nodes: int) -> tuple[Array, Array]:
    """Return the first observation at each node, and one past its last."""
    index = jnp.arange(num_nodes)
    return (
        jnp.searchsorted(nodes, index, side="left"),
        jnp.searchsorted(nodes, index, side="right"),
    )
