"""Compiled draws from posteriors, and the rows that times asked for add to a series."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from effgen.core.weights import effective_sample_size, normalized

from .evidence import Evidence, Filtered, twisted_filter, weighted_evidence
from .grid import steps_needed
from .messages import marginals
from .model import LatentSDE
from .objectives import anchored_on_grid
from .paths import simulate
from .series import Series


class Draws(NamedTuple):
    """Paths at the times asked for. A batch has one more leading axis on each.

    **Attributes:** `ts`; `positions`; `log_weights`, `log p(y, path) / q(path)`: with
    them, averages over the paths are right for the exact posterior.
    """

    ts: Float[Array, " times"]
    positions: Float[Array, "paths times state"]
    log_weights: Float[Array, " paths"]


class Marginals(NamedTuple):
    """Mean and standard deviation at each time, and how many paths counted for them."""

    mean: Float[Array, "times state"]
    scale: Float[Array, "times state"]
    ess: Float[Array, ""]


def num_steps_of(model: LatentSDE, series: Series) -> int:
    """Return how many steps the longest series needs."""
    assert model.dt is not None
    return steps_needed(np.asarray(series.ts), dt=model.dt, t0=model.t0)


def with_rows(
    series: Series, rows: np.ndarray, inputs: ArrayLike | None
) -> tuple[Series, np.ndarray]:
    """Return series with a row for each time asked for, and where these are."""
    length, more = series.ts.shape[1], rows.shape[1]
    ts = np.concatenate([np.asarray(series.ts), rows], axis=1)
    order = np.argsort(ts, axis=1, kind="stable")
    index = np.argsort(order, axis=1, kind="stable")[:, length:]

    def extended(x: Array, fill: Any) -> Array:
        shape = (x.shape[0], more, *x.shape[2:])
        whole = np.concatenate([np.asarray(x), np.broadcast_to(fill, shape)], axis=1)
        return jnp.asarray(np.stack([a[o] for a, o in zip(whole, order, strict=True)]))

    held = None
    if series.inputs is not None:
        if inputs is None:
            before = [
                np.searchsorted(np.asarray(t), r, side="right") - 1
                for t, r in zip(series.ts, rows, strict=True)
            ]
            last = np.asarray(series.inputs)
            inputs = np.stack(
                [u[np.maximum(b, 0)] for u, b in zip(last, before, strict=True)]
            )
        held = extended(series.inputs, np.asarray(inputs))
    merged = Series(
        jnp.asarray(np.take_along_axis(ts, order, axis=1)),
        extended(series.ys, 0),
        extended(series.mask, False),  # noqa: FBT003
        held,
    )
    return merged, index


@eqx.filter_jit
def linear_evidence(model: LatentSDE, series: Series, steps: int) -> Array:
    """Return `log p(y)` of each anchored linear model."""
    one = lambda s: anchored_on_grid(model, s, num_steps=steps, parallel=False)[0]
    return jax.vmap(lambda s: one(s).guided.log_evidence)(series)


@eqx.filter_jit
def draws_of(
    model: LatentSDE, series: Series, index: Array, steps: int, num: int, keys: Array
) -> Draws:
    """Draw paths of each series, at the observations that `index` names."""

    def one(series: Series, index: Array, key: Array) -> Draws:
        anchored, grid = anchored_on_grid(
            model, series, num_steps=steps, parallel=False
        )
        paths = simulate(model, anchored, series, grid, num_paths=num, key=key)
        positions = jnp.moveaxis(paths.positions[grid.nodes[index]], 0, 1)
        return Draws(series.ts[index], positions, paths.log_weights)

    return jax.vmap(one)(series, index, keys)


@eqx.filter_jit
def exact_laws(
    model: LatentSDE, series: Series, index: Array, steps: int
) -> tuple[Array, Array]:
    """Return means and deviations of each linear posterior."""

    def one(series: Series, index: Array) -> tuple[Array, Array]:
        anchored, grid = anchored_on_grid(
            model, series, num_steps=steps, parallel=False
        )
        means, covariances = marginals(anchored.guided)
        at = grid.nodes[index]
        variances = jnp.diagonal(covariances[at], axis1=1, axis2=2)
        return means[at], jnp.sqrt(jnp.maximum(variances, 0))

    return jax.vmap(one)(series, index)


@eqx.filter_jit
def evidence_of(
    model: LatentSDE, series: Series, steps: int, num: int, keys: Array
) -> Evidence:
    """Return each series' evidence by importance weights."""

    def one(series: Series, key: Array) -> Evidence:
        anchored, grid = anchored_on_grid(
            model, series, num_steps=steps, parallel=False
        )
        paths = simulate(model, anchored, series, grid, num_paths=num, key=key)
        linear = anchored.guided.log_evidence
        return weighted_evidence(paths.elbo, paths.log_weights, linear)

    return jax.vmap(one)(series, keys)


@eqx.filter_jit
def filtered(
    model: LatentSDE, series: Series, steps: int, num: int, below: float, keys: Array
) -> Filtered:
    """Run a twisted particle filter for each series."""

    def one(series: Series, key: Array) -> Filtered:
        anchored, grid = anchored_on_grid(
            model, series, num_steps=steps, parallel=False
        )
        return twisted_filter(
            model,
            anchored,
            series,
            grid,
            num_paths=num,
            key=key,
            resample_below=below,
        )

    return jax.vmap(one)(series, keys)


@eqx.filter_jit
def observations_of(
    model: LatentSDE, positions: Array, log_weights: Array, keys: Array
) -> Array:
    """Draw what would be observed along paths, chosen by their weights."""

    def one(positions: Array, logs: Array, key: Array) -> Array:
        keys = jax.random.split(key)
        num, times = positions.shape[:2]
        index = jax.random.categorical(keys[0], logs, shape=(num,))
        flat = positions[index].reshape(num * times, -1)
        noise = jax.random.split(keys[1], num * times)
        ys = jax.vmap(lambda x, k: model.decoder.sample(x, key=k))(flat, noise)
        return ys.reshape(num, times, *ys.shape[1:])

    return jax.vmap(one)(positions, log_weights, keys)


def moments(positions: Array, log_weights: Array) -> Marginals:
    """Return the weighted mean and deviation of paths."""
    weights = normalized(log_weights)
    mean = jnp.tensordot(weights, positions, 1)
    variance = jnp.tensordot(weights, (positions - mean[None]) ** 2, 1)
    return Marginals(mean, jnp.sqrt(variance), effective_sample_size(log_weights))
