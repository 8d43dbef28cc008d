"""A Bayesian drift beside a linear fit: its weights in closed form, drawn anew."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray

from .anchors import prior_transitions
from .draws import num_steps_of
from .driven import seen_and_moved
from .model import LatentSDE
from .objectives import anchored_on_grid
from .posterior import posterior
from .series import Series
from .twisted import twisted_filter


_LENGTH = 1.5
_NUM_PATHS = 64
_STRETCH = 1e-4


class KernelDrift(eqx.Module):
    """`drift(t, x) = sigma amplitude W' phi((x - center) / scale)`.

    `phi(z) = K^(-1/2) k(points, z)` with `k(a, b) = exp(-|a - b|^2 / (2 length^2))`: of
    `W ~ N(0, I)` the drift is a Gaussian process, seen through its inducing points.

    **Attributes:** `weights`, `W`; `amplitude`; `sigma`, `center` and `scale`, of the
    linear fit; `points`, and `whitening`, `K^(-1/2)`; `sees`, components.
    """

    weights: Float[Array, "points moves"]
    amplitude: Float[Array, ""]
    sigma: Float[Array, "state moves"]
    center: Float[Array, " sees"]
    scale: Float[Array, " sees"]
    points: Float[Array, "points sees"]
    whitening: Float[Array, "points points"]
    sees: tuple[int, ...] = eqx.field(static=True)

    def features(self, x: Float[Array, " state"]) -> Float[Array, " points"]:
        """Return `phi`."""
        z = (x[jnp.asarray(self.sees)] - self.center) / self.scale
        return self.whitening @ _kernel(self.points, z[None])[:, 0]

    def __call__(
        self, t: Float[Array, ""], x: Float[Array, " state"], u: Array | None = None
    ) -> Float[Array, " state"]:
        """Return the drift beside the linear one."""
        return self.sigma @ (self.amplitude * (self.features(x) @ self.weights))


class BayesianDrift(NamedTuple):
    """The law of a drift's weights: each column is `N(mean, precision^-1)`.

    **Attributes:** `model`, with the mean for its weights; `mean`; `root`, Cholesky's
    factor of `precision`; `amplitude`, by iteration.
    """

    model: LatentSDE
    mean: Float[Array, "points moves"]
    root: Float[Array, "points points"]
    amplitudes: Float[Array, " iterations"]

    def draw(self, num: int, *, key: PRNGKeyArray) -> tuple[LatentSDE, ...]:
        """Draw models, weights anew in each; forecast by all, each with its filter."""
        noise = jax.random.normal(key, (num, *self.mean.shape), self.mean.dtype)
        return tuple(_with_weights(self.model, _drawn(self, e)) for e in noise)


def with_bayesian_drift(
    model: LatentSDE,
    ts: ArrayLike,
    ys: ArrayLike,
    mask: ArrayLike | None = None,
    *,
    key: PRNGKeyArray,
    sees: Sequence[str] | None = None,
    moves: Sequence[str] | None = None,
    num_points: int = 24,
    num_iterations: int = 60,
) -> BayesianDrift:
    """Put a drift with a law of its weights beside a linear fit.

    A twisted filter draws paths given `W`; the innovations of their steps of length
    `h`, `e = r sqrt(h) + noise` for a drift `sigma r`, give the weights' law,

        precision = I + a^2 sum h phi phi',   mean = precision^-1 a sum sqrt(h) phi e'

    sums averaged over the paths, and over iterations with falling steps, each with `W`
    drawn anew. The amplitude `a` is set to `a sqrt(mean of W^2)`, by which it falls
    where the data show no drift: there the model is the linear one again.

    **Arguments:** as `with_network`; `model.dt`, the step; `num_points`, inducing
    points, the centers of clusters of the linear posterior.

    **Raises:** as `with_network`, and `ValueError` for a model without a step.
    """
    if not model.dt:
        raise ValueError(
            "`model` has no `dt`: pass `dataclasses.replace(model, dt=...)`."
        )
    start = _started(model, ts, ys, mask, sees, moves, num_points)
    series = jax.tree.map(lambda x: x[0], posterior(start, ts, ys, mask).series)
    steps = num_steps_of(start, jax.tree.map(lambda x: x[None], series))
    return _learned(start, series, steps, num_iterations, key)


def _started(
    model: LatentSDE,
    ts: ArrayLike,
    ys: ArrayLike,
    mask: ArrayLike | None,
    sees: Sequence[str] | None,
    moves: Sequence[str] | None,
    num_points: int,
) -> LatentSDE:
    """Return the model with a drift of zero, its points where the posterior is."""
    from scipy.cluster.vq import kmeans2

    place = seen_and_moved(model, ts, ys, mask, sees, moves)
    rng = np.random.default_rng(0)
    noise = rng.normal(size=place.means.shape)
    z = (place.means + place.scales * noise - place.center) / place.scale
    points, _ = kmeans2(z, min(num_points, len(z)), rng=rng, minit="++")
    gram = np.asarray(_kernel(jnp.asarray(points), jnp.asarray(points)), np.float64)
    sizes, vectors = np.linalg.eigh(gram + _STRETCH * np.eye(len(gram)))
    whitening = vectors / np.sqrt(sizes) @ vectors.T
    dtype = place.sigma.dtype
    shape = (len(points), place.sigma.shape[1])
    times = np.asarray(ts, np.float64)
    # At first a drift is a third of the noise between two observations.
    amplitude = 1 / np.sqrt(np.median(np.diff(times)) * 10)
    of = lambda x: jnp.asarray(x, dtype)
    drift = KernelDrift(
        jnp.zeros(shape, dtype),
        jnp.asarray(amplitude, dtype),
        place.sigma,
        of(place.center),
        of(place.scale),
        of(points),
        of(whitening),
        place.sees,
    )
    return dataclasses.replace(model, drift=drift, residual=None)


def _kernel(
    a: Float[Array, "n sees"], b: Float[Array, "m sees"]
) -> Float[Array, "n m"]:
    away = jnp.sum((a[:, None] - b[None]) ** 2, axis=-1)
    return jnp.exp(-0.5 * away / _LENGTH**2)


class _Sums(NamedTuple):
    """`sum h phi phi'` and `sum sqrt(h) phi e'`."""

    features: Float[Array, "points points"]
    innovations: Float[Array, "points moves"]


def _law(model: LatentSDE, sums: _Sums, amplitude: Array) -> BayesianDrift:
    """Return the weights' law given the sums."""
    eye = jnp.eye(len(sums.features), dtype=sums.features.dtype)
    root = jnp.linalg.cholesky(eye + amplitude**2 * sums.features)
    mean = jax.scipy.linalg.cho_solve((root, True), amplitude * sums.innovations)
    law = BayesianDrift(model, mean, root, amplitude[None])
    changed = eqx.tree_at(lambda m: m.drift.amplitude, model, amplitude)
    return law._replace(model=_with_weights(changed, mean))


def _drawn(law: BayesianDrift, noise: Array) -> Array:
    away = jax.scipy.linalg.solve_triangular(law.root, noise, lower=True, trans=1)
    return law.mean + away


def _drift(model: LatentSDE) -> KernelDrift:
    assert isinstance(model.drift, KernelDrift)
    return model.drift


def _with_weights(model: LatentSDE, weights: Array) -> LatentSDE:
    return eqx.tree_at(lambda m: m.drift.weights, model, weights)


def _second_moment(law: BayesianDrift) -> Array:
    """Return the mean of `W^2`."""
    eye = jnp.eye(len(law.root), dtype=law.root.dtype)
    inverse = jax.scipy.linalg.solve_triangular(law.root, eye, lower=True)
    return jnp.mean(law.mean**2) + jnp.mean(jnp.sum(inverse**2, axis=0))


@eqx.filter_jit
def _learned(
    model: LatentSDE, series: Series, steps: int, num: int, key: PRNGKeyArray
) -> BayesianDrift:
    size, moves = _drift(model).weights.shape
    dtype = _drift(model).weights.dtype
    zero = _Sums(jnp.zeros((size, size), dtype), jnp.zeros((size, moves), dtype))

    def body(carry: tuple[_Sums, Array], xs: tuple[Array, Array]):
        sums, amplitude = carry
        i, key = xs
        keys = jax.random.split(key)
        law = _law(model, sums, amplitude)
        noise = jax.random.normal(keys[0], (size, moves), dtype)
        found = _sums(
            _with_weights(law.model, _drawn(law, noise)), series, steps, keys[1]
        )
        late = jnp.maximum(i - num // 2, 0)
        rate = jnp.maximum(0.3 / (1 + 0.3 * late), 0.02)
        sums = jax.tree.map(lambda a, b: a + rate * (b - a), sums, found)
        moment = _second_moment(_law(model, sums, amplitude))
        amplitude = jnp.where(i > 8, amplitude * jnp.sqrt(moment), amplitude)
        return (sums, amplitude), amplitude

    keys = jax.random.split(key, num)
    start = (zero, _drift(model).amplitude)
    (sums, amplitude), history = jax.lax.scan(body, start, (jnp.arange(num), keys))
    return _law(model, sums, amplitude)._replace(amplitudes=history)


def _sums(model: LatentSDE, series: Series, steps: int, key: PRNGKeyArray) -> _Sums:
    """Return the sums over steps before the last observation, means over paths."""
    anchored, grid = anchored_on_grid(model, series, num_steps=steps, parallel=False)
    paths = twisted_filter(
        model, anchored, series, grid, num_paths=_NUM_PATHS, key=key
    ).positions
    inside = (grid.until_next > 0) & (grid.lengths > 0)
    transitions = prior_transitions(model, series, grid)
    drift = _drift(model)

    def one(transition, x: Array, there: Array, length: Array, inside: Array) -> _Sums:
        push = transition.push @ drift.sigma
        push = jnp.where(inside, push, jnp.eye(*push.shape))
        error = there - x @ transition.matrix.T - transition.offset[None]
        drifts = error @ jnp.linalg.pinv(push).T
        phi = jax.vmap(drift.features)(x)
        share = jnp.where(inside, length, 0) / len(x)
        return _Sums(share * phi.T @ phi, share * phi.T @ drifts)

    each = jax.vmap(one)(transitions, paths[:-1], paths[1:], grid.lengths, inside)
    return jax.tree.map(lambda x: jnp.sum(x, axis=0), each)
