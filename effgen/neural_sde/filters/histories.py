"""Histories of regimes, each with a Kalman filter of its own, as compiled programs."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from effgen.neural_sde.data.series import Series
from effgen.neural_sde.linear_sdes.noise import standard_normal
from effgen.neural_sde.linear_sdes.transitions import covariance_root
from effgen.neural_sde.modeling.anchors import cast
from effgen.neural_sde.modeling.model import LatentSDE
from effgen.neural_sde.observing.decoders import LinearDecoder

from .chains import turned
from .kalman import innovated


def observed_by(model: LatentSDE) -> LinearDecoder:
    """Return the decoder of one regime."""
    assert isinstance(model.decoder, LinearDecoder)
    return model.decoder


class _Histories(NamedTuple):
    means: Array
    covariances: Array
    log_weights: Array
    regimes: Array


@eqx.filter_jit
def filtered(
    models: tuple[LatentSDE, ...], generator: Array, series: Series, num: int
) -> tuple[Array, ...]:
    """Follow the `num` most probable histories: see `Regimes`, in its order."""
    kinds, dtype = len(models), series.ys.dtype
    gaps = jnp.diff(series.ts)
    generator = generator.astype(dtype)
    after = jax.vmap(lambda gap: turned(generator, gap))(gaps)
    # Between equal times no regime turns: log(0) is right, and has no derivative.
    some = after > 0
    chances = jnp.where(some, jnp.log(jnp.where(some, after, 1.0)), -jnp.inf)
    first = (series.ys[0], series.mask[0])
    laws = [m.linear.initial for m in models]
    begun = [
        innovated(
            observed_by(m),
            law.mean.astype(dtype),
            law.covariance.astype(dtype),
            *first,
            None,
        )
        for m, law in zip(models, laws, strict=True)
    ]
    means, covariances, scores = (jnp.stack(x) for x in zip(*begun, strict=True))
    logs = scores + jnp.log(_stationary(generator))
    more = num - kinds
    start = _Histories(
        jnp.concatenate([means, jnp.zeros((more, *means.shape[1:]), dtype)]),
        jnp.concatenate(
            [covariances, jnp.zeros((more, *covariances.shape[1:]), dtype)]
        ),
        jnp.concatenate([logs, jnp.full(more, -jnp.inf, dtype)]),
        jnp.concatenate(
            [jnp.arange(kinds, dtype=jnp.int32), jnp.zeros(more, jnp.int32)]
        ),
    )

    def forward(now: _Histories, xs: tuple):
        gap, chance, y, mask = xs
        moved = [_ahead(m, now, gap, y, mask) for m in models]
        means, covariances, scores = (
            jnp.concatenate(x) for x in zip(*moved, strict=True)
        )
        logs = jnp.tile(now.log_weights, kinds) + scores
        regimes = jnp.repeat(jnp.arange(kinds, dtype=jnp.int32), num)
        logs = logs + chance[jnp.tile(now.regimes, kinds), regimes]
        kept, index = jax.lax.top_k(logs, num)
        lost = 1 - jnp.exp(jax.nn.logsumexp(kept) - jax.nn.logsumexp(logs))
        later = _Histories(means[index], covariances[index], kept, regimes[index])
        return later, (
            (index % num).astype(jnp.int32),
            regimes[index],
            kept,
            jnp.maximum(lost, 0),
        )

    xs = (gaps, chances, series.ys[1:], series.mask[1:])
    end, (parents, regimes, logs, lost) = jax.lax.scan(forward, start, xs)
    join = lambda a, b: jnp.concatenate([a[None], b])
    regimes, logs = join(start.regimes, regimes), join(start.log_weights, logs)
    share = lambda w, r: jnp.zeros(kinds, dtype).at[r].add(jax.nn.softmax(w))
    so_far = jax.vmap(share)(logs, regimes)

    def back(index: Array, xs: tuple[Array, Array]):
        parent, regime = xs
        return parent[index], regime[index]

    own = jnp.arange(num, dtype=jnp.int32)
    index, traced = jax.lax.scan(back, own, (parents, regimes[1:]), reverse=True)
    histories = join(regimes[0][index], traced)
    smoothed = jax.vmap(lambda r: share(end.log_weights, r))(histories)
    evidence = jax.nn.logsumexp(end.log_weights)
    dropped = jnp.concatenate([jnp.zeros(1, dtype), lost])
    return (
        evidence,
        so_far,
        smoothed,
        dropped,
        end.means,
        end.covariances,
        jax.nn.log_softmax(end.log_weights),
        end.regimes,
    )


def _ahead(
    model: LatentSDE, now: _Histories, gap: Array, y: Array, mask: Array
) -> tuple[Array, Array, Array]:
    """Carry every history through a gap by one regime, to what is seen after it."""
    step = cast(model.linear, gap.dtype).transition(jnp.zeros_like(gap), gap)

    def one(mean: Array, covariance: Array) -> tuple[Array, Array, Array]:
        mean = step.matrix @ mean + step.offset
        covariance = step.matrix @ covariance @ step.matrix.T + step.covariance
        return innovated(observed_by(model), mean, covariance, y, mask, None)

    return jax.vmap(one)(now.means, now.covariances)


def _stationary(generator: Array) -> Float[Array, " regimes"]:
    """Return the chain's own law, `p Q = 0`."""
    size = generator.shape[0]
    matrix = generator.T.at[-1].set(1)
    return jnp.linalg.solve(matrix, jnp.zeros(size, generator.dtype).at[-1].set(1))


@eqx.filter_jit
def drawn(
    models: tuple[LatentSDE, ...],
    generator: Array,
    state: tuple,
    gaps: Array,
    num_paths: int,
    key: PRNGKeyArray,
) -> Float[Array, "paths times sensors"]:
    """Draw regimes, states and what is observed after the last time."""
    means, covariances, log_weights, last = state
    keys = jax.random.split(key, 3)
    which = jax.random.categorical(keys[0], log_weights, shape=(num_paths,))
    roots = jax.vmap(covariance_root)(covariances)
    noise = standard_normal(keys[1], (num_paths, means.shape[1]), means.dtype)
    begin = means[which] + jnp.einsum("pij,pj->pi", roots[which], noise)
    generator = generator.astype(means.dtype)

    def one(carry: tuple[Array, Array], xs: tuple[Array, Array]):
        x, regime = carry
        gap, key = xs
        keys = jax.random.split(key, 3)
        chances = jnp.log(turned(generator, gap))
        regime = jax.random.categorical(keys[0], chances[regime]).astype(jnp.int32)
        x_each, y_each = [], []
        for m in models:
            step = cast(m.linear, x.dtype).transition(jnp.zeros_like(gap), gap)
            z = standard_normal(keys[1], (step.root.shape[1],), x.dtype)
            there = step.matrix @ x + step.offset + step.root @ z
            x_each.append(there)
            y_each.append(observed_by(m).sample(there, key=keys[2]))
        return (jnp.stack(x_each)[regime], regime), jnp.stack(y_each)[regime]

    def path(x: Array, regime: Array, key: Array) -> Array:
        return jax.lax.scan(one, (x, regime), (gaps, jax.random.split(key, len(gaps))))[
            1
        ]

    return jax.vmap(path)(begin, last[which], jax.random.split(keys[2], num_paths))
