"""The particle filter: laws of the state given the past values alone."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from effgen.core.weights import (
    Estimate,
    effective_sample_size,
    log_mean_exp,
    resample,
)
from effgen.neural_sde.bounds.paths import Step, stepped, steps_of
from effgen.neural_sde.data.grid import Grid
from effgen.neural_sde.data.series import Series
from effgen.neural_sde.linear_sdes.gaussian import Gaussian
from effgen.neural_sde.linear_sdes.messages import (
    Guide,
    Site,
    at_nodes,
    at_once,
    guided,
    multiplied,
)
from effgen.neural_sde.linear_sdes.noise import standard_normal
from effgen.neural_sde.linear_sdes.transitions import Transition
from effgen.neural_sde.modeling.anchors import Anchored, cast, prior_transitions
from effgen.neural_sde.modeling.dynamics import AbstractLatentSDE

from .twisted import finite, met_at, weighting


class Filtered(NamedTuple):
    """The law of the state given what was seen until each node.

    Attributes:
        evidence: `log p(y)`, in nats, with its standard error, 0 where it is exact.
        positions: Particles at the grid's nodes, observations at a node included, shape
            `(nodes, paths, state)`.
        log_weights: Zero, since all count alike, shape `(paths,)`.
        ess: The effective number of particles at each observation, before they are
            resampled, shape `(obs,)`.
        predicted: Particles at each observation given those before it, shape `(obs,
            paths, state)`.
        scores: The log-density of all that is seen at a time given all before, at the
            first of equal times, shape `(obs,)`. Their sum is `evidence`.
    """

    evidence: Estimate
    positions: Float[Array, "nodes paths state"]
    log_weights: Float[Array, " paths"]
    ess: Float[Array, " obs"]
    predicted: Float[Array, "obs paths state"]
    scores: Float[Array, " obs"]


def sites_at_nodes(anchored: Anchored, grid: Grid, dtype: jnp.dtype) -> Site:
    """Return what is seen at each node as one factor."""
    return at_nodes(cast(anchored.sites, dtype), grid.nodes, len(grid.starts) + 1)


def at_first(values: Float[Array, " nodes"], nodes: Array) -> Float[Array, " obs"]:
    """Return nodes' values at the first observation of each, zero at the others."""
    first = jnp.concatenate([jnp.ones(1, bool), nodes[1:] != nodes[:-1]])
    return jnp.where(first, values[nodes], 0)


class _Particles(NamedTuple):
    """Particles that are led to the next observation, and ones that know nothing of it.

    `score`, of what was resampled since the last observation; `variance`, its square
    error.
    """

    led: Array
    log_weights: Array
    free: Array
    score: Array
    variance: Array


def particle_filter(
    model: AbstractLatentSDE,
    anchored: Anchored,
    series: Series,
    grid: Grid,
    *,
    num_paths: int,
    key: PRNGKeyArray,
    resample_below: float = 0.5,
) -> Filtered:
    """Filter by particles that are led to the next observation, and no further.

    At an observation all are weighed and resampled; from there one half of the work
    goes on by the prior's chain, which gives what was known between and before, and the
    other is led to the next.

    Source:
        Doucet, Godsill and Andrieu (2000); Pitt and Shephard (1999).
    """
    num_nodes = len(grid.starts) + 1
    dtype = series.ys.dtype
    model = dataclasses.replace(model, residual=None)
    ahead = _one_ahead(model, anchored, series, grid)
    has, before = ahead.has, ahead.before
    keys = jax.random.split(key, 4)
    steps = steps_of(anchored, series, grid)._replace(mismatch=None)
    led_steps = steps._replace(guide=ahead.led)
    free_steps = steps._replace(guide=ahead.free)
    weighted = weighting(model, anchored, series, grid)
    zero = jnp.zeros((), dtype)

    def met(particles: _Particles, node: Array, key: PRNGKeyArray):
        """Weigh and resample at an observation; go on from there."""
        logs = weighted(particles.log_weights, particles.led, node)
        found = log_mean_exp(logs)
        index = resample(logs, num_paths, key=key)
        here = particles.led[index]
        seen = has[node]
        free = jnp.where(seen, here, particles.free)
        on = jax.vmap(jax.tree.map(lambda x: x[node], before).log_value)(here)
        after = _Particles(
            jnp.where(seen, here, particles.led),
            jnp.where(seen, on, particles.log_weights),
            free,
            jnp.where(seen, zero, particles.score),
            jnp.where(seen, zero, particles.variance),
        )
        score = jnp.where(seen, particles.score + found.value, 0)
        variance = particles.variance + found.standard_error**2
        ess = effective_sample_size(logs)
        out = (free, particles.free, score, jnp.where(seen, variance, 0), ess)
        return after, out

    def body(particles: _Particles, xs: tuple[Step, Step, Array, Array]):
        led, free, node, key = xs
        keys = jax.random.split(key, 4)
        particles = _resampled(particles, resample_below, keys[0])
        shape = (num_paths, led.guide.root.shape[1])
        there = stepped(
            model, led, particles.led, standard_normal(keys[1], shape, dtype)
        )
        unled = stepped(
            model, free, particles.free, standard_normal(keys[2], shape, dtype)
        )
        logs = particles.log_weights + there.log_weights
        lost = ~finite(there.positions, logs)
        particles = particles._replace(
            led=jnp.where(lost[:, None], particles.led, there.positions),
            log_weights=jnp.where(lost, -jnp.inf, logs),
            free=unled.positions,
        )
        return met(particles, node + 1, keys[3])

    # The first state is led to the first node's observations; the prior's is free.
    led = ahead.initial.sample(num_paths, key=keys[0])
    free = cast(model.linear.initial, dtype).sample(num_paths, key=keys[1])
    logs = jnp.full(num_paths, ahead.log_initial)
    start = _Particles(led, logs, free, zero, zero)
    start, begin = met(start, jnp.zeros((), jnp.int32), keys[2])
    xs = (led_steps, free_steps, jnp.arange(num_nodes - 1))
    step_keys = jax.random.split(keys[3], num_nodes - 1)
    _, rest = jax.lax.scan(body, start, (*xs, step_keys))
    positions, predicted, scores, variances, ess = (
        jnp.concatenate([a[None], b]) for a, b in zip(begin, rest, strict=True)
    )
    at = grid.nodes
    evidence = Estimate(jnp.sum(scores), jnp.sqrt(jnp.sum(variances)))
    even = jnp.zeros(num_paths, dtype)
    return Filtered(
        evidence, positions, even, ess[at], predicted[at], at_first(scores, at)
    )


class _Ahead(NamedTuple):
    """Steps led by the next observation alone, and by none; and what leads them.

    `before`, the message at each node without what is seen at it; `initial`, the first
    state's led law, `log_initial` its normalizer; `has`, where something is seen.
    """

    led: Guide
    free: Guide
    before: Site
    initial: Gaussian
    log_initial: Array
    has: Array


def _one_ahead(
    model: AbstractLatentSDE, anchored: Anchored, series: Series, grid: Grid
) -> _Ahead:
    """Carry each observation's message back to the one before it, and no further."""
    transitions = prior_transitions(model, series, grid)
    sites = sites_at_nodes(anchored, grid, transitions.offset.dtype)
    first, past = met_at(grid.nodes, len(grid.starts) + 1)
    count = jnp.concatenate([jnp.zeros(1, int), jnp.cumsum(series.seen)])
    has = count[past] > count[first]

    def back(after: Site, xs: tuple[Transition, Site, Array]):
        transition, site, seen = xs
        before, guide = guided(transition, after)
        both = multiplied(before, site)
        message = jax.tree.map(lambda a, b: jnp.where(seen, a, b), site, both)
        return message, (guide, before)

    last = jax.tree.map(lambda x: x[-1], sites)
    earlier = jax.tree.map(lambda x: x[:-1], sites)
    message, (led, before) = jax.lax.scan(
        back, last, (transitions, earlier, has[:-1]), reverse=True
    )
    nothing = jax.tree.map(jnp.zeros_like, last)
    join = lambda a, b: jnp.concatenate([a, b[None]])
    before = jax.tree.map(join, before, nothing)
    free = jax.vmap(lambda step: guided(step, nothing)[1])(transitions)
    law = cast(model.linear.initial, transitions.offset.dtype)
    constant, start = guided(at_once(law), message)
    found = _Ahead(
        led, free, before, Gaussian(start.offset, start.root), constant.constant, has
    )
    return cast(found, series.ys.dtype)


def _resampled(particles: _Particles, below: float, key: PRNGKeyArray) -> _Particles:
    """Resample the particles that are led where too few count."""
    num = particles.log_weights.shape[0]
    found = log_mean_exp(particles.log_weights)
    few = effective_sample_size(particles.log_weights) < below * num
    index = resample(particles.log_weights, num, key=key)
    return particles._replace(
        led=jnp.where(few, particles.led[index], particles.led),
        log_weights=jnp.where(few, 0, particles.log_weights),
        score=jnp.where(few, particles.score + found.value, particles.score),
        variance=particles.variance + jnp.where(few, found.standard_error**2, 0),
    )
