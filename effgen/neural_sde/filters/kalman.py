"""The Kalman filter of a linear model: exact laws given what was seen so far."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from effgen.core.weights import Estimate
from effgen.neural_sde.data.grid import Grid
from effgen.neural_sde.data.series import Series
from effgen.neural_sde.linear_sdes.messages import Site
from effgen.neural_sde.linear_sdes.transitions import Transition, covariance_root
from effgen.neural_sde.modeling.anchors import Anchored, cast, prior_transitions
from effgen.neural_sde.modeling.dynamics import AbstractLatentSDE
from effgen.neural_sde.observing.decoders import LinearDecoder

from .filtering import Filtered, at_first, sites_at_nodes
from .predictions import Predictions


class KalmanLaws(NamedTuple):
    """Means and covariances of a linear model at each node: exact.

    Attributes:
        mean: Given what was seen until the node.
        covariance: Given the same.
        predicted_mean: Before what is seen at the node.
        predicted_covariance: Before the same.
        scores: The log-density of what is seen at the node given all before.
    """

    mean: Float[Array, "nodes state"]
    covariance: Float[Array, "nodes state state"]
    predicted_mean: Float[Array, "nodes state"]
    predicted_covariance: Float[Array, "nodes state state"]
    scores: Float[Array, " nodes"]


def kalman_laws(
    model: AbstractLatentSDE, anchored: Anchored, series: Series, grid: Grid
) -> KalmanLaws:
    """Run a Kalman filter over the grid's nodes, without inverting a covariance.

    `(I + P J) m = m' + P shift` and `(I + P J)^-1 P` for a site of precision `J`.
    """
    transitions = prior_transitions(model, series, grid)
    dtype = transitions.offset.dtype
    sites = sites_at_nodes(anchored, grid, dtype)
    law = cast(model.linear.initial, dtype)

    def updated(mean: Array, covariance: Array, site: Site):
        matrix = jnp.eye(len(mean), dtype=dtype) + covariance @ site.precision
        error = site.shift - site.precision @ mean
        move, kept = (
            jnp.linalg.solve(matrix, b) for b in (covariance @ error, covariance)
        )
        score = site.log_value(mean) + 0.5 * error @ move
        score = score - 0.5 * jnp.linalg.slogdet(matrix)[1]
        return mean + move, (kept + kept.T) / 2, score

    def forward(carry: tuple[Array, Array], xs: tuple[Transition, Site]):
        step, site = xs
        mean = step.matrix @ carry[0] + step.offset
        covariance = step.matrix @ carry[1] @ step.matrix.T + step.covariance
        *after, score = updated(mean, covariance, site)
        return tuple(after), (*after, mean, covariance, score)

    first, later = (
        jax.tree.map(lambda x, i=i: x[i], sites) for i in (0, slice(1, None))
    )
    *start, score = updated(law.mean, law.covariance, first)
    _, rest = jax.lax.scan(forward, tuple(start), (transitions, later))
    begin = (*start, law.mean, law.covariance, score)
    return KalmanLaws(
        *(jnp.concatenate([a[None], b]) for a, b in zip(begin, rest, strict=True))
    )


def evidence_by_innovations(
    model: AbstractLatentSDE, series: Series
) -> Float[Array, ""]:
    """Return `log p(y)` of a linear model as the sum of its predictions' log-densities.

        log p(y) = sum_i log N(y_i; H m_i + d, H P_i H^T + R)

    The filter goes from observation to observation, with coefficients that are
    constant. No term is larger than an innovation: digits are kept where values are far
    from the offset, or the noise is small, and the sum over messages would lose them.

    Source:
        Schweppe (1965); the covariance's update, Bucy and Joseph (1968).
    """
    decoder = model.decoder
    assert isinstance(decoder, LinearDecoder)
    dtype = series.ys.dtype
    first = series.ts[:1] if model.t0 is None else jnp.full(1, model.t0, dtype)
    before = jnp.concatenate([first, series.ts[:-1]])
    inputs = series.inputs
    if inputs is not None:
        inputs = jnp.concatenate([inputs[:1], inputs[:-1]])
    axes = (0, 0, None if inputs is None else 0)
    gaps = jax.vmap(model.linear.transition, axes)(before, series.ts - before, inputs)
    law = model.linear.initial

    def forward(carry: tuple[Array, Array], xs: tuple):
        step, y, mask, errors = xs
        mean = step.matrix @ carry[0] + step.offset
        covariance = step.matrix @ carry[1] @ step.matrix.T + step.covariance
        told = innovated(decoder, mean, covariance, y, mask, errors)
        return told[:2], told[2]

    start = (law.mean.astype(dtype), law.covariance.astype(dtype))
    xs = (gaps, series.ys, series.mask, series.errors)
    return jnp.sum(jax.lax.scan(forward, start, xs)[1])


def innovated(
    decoder: LinearDecoder,
    mean: Float[Array, " state"],
    covariance: Float[Array, "state state"],
    y: Float[Array, " sensors"],
    mask: Array,
    errors: Array | None,
) -> tuple[Array, Array, Float[Array, ""]]:
    """Return a predicted law given what is seen, and the log-density of this."""
    rows, noise = decoder.observed(mask, errors)
    error = jnp.where(mask, y - decoder.mean(mean), 0)
    factor = jnp.linalg.cholesky(rows @ covariance @ rows.T + noise)
    solve = lambda b: jax.scipy.linalg.cho_solve((factor, True), b)
    gain = solve(rows @ covariance).T
    logs = jnp.sum(jnp.log(jnp.diagonal(factor)))
    score = -0.5 * error @ solve(error) - logs
    score = score - 0.5 * jnp.log(2 * jnp.pi) * jnp.sum(mask)
    kept = jnp.eye(len(mean), dtype=mean.dtype) - gain @ rows
    covariance = kept @ covariance @ kept.T + gain @ noise @ gain.T
    return mean + gain @ error, covariance, score


def kalman_filter(
    model: AbstractLatentSDE,
    anchored: Anchored,
    series: Series,
    grid: Grid,
    *,
    num_paths: int,
    key: PRNGKeyArray,
) -> Filtered:
    """Return a linear model's filter, particles drawn from each node's exact law."""
    laws = kalman_laws(model, anchored, series, grid)
    keys = jax.random.split(key)
    dtype = series.ys.dtype

    def drawn(key: PRNGKeyArray, mean: Array, covariance: Array) -> Array:
        root = jax.vmap(covariance_root)(covariance)
        noise = jax.random.normal(key, (len(mean), num_paths, mean.shape[1]), dtype)
        return mean[:, None] + jnp.einsum("nij,npj->npi", root, noise)

    positions = drawn(keys[0], laws.mean.astype(dtype), laws.covariance.astype(dtype))
    at = grid.nodes
    predicted = drawn(
        keys[1],
        laws.predicted_mean[at].astype(dtype),
        laws.predicted_covariance[at].astype(dtype),
    )
    whole = jnp.full(len(at), float(num_paths), dtype)
    evidence = Estimate(jnp.sum(laws.scores).astype(dtype), jnp.zeros((), dtype))
    even = jnp.zeros(num_paths, dtype)
    scores = at_first(laws.scores.astype(dtype), at)
    return Filtered(evidence, positions, even, whole, predicted, scores)


def kalman_predictions(
    model: AbstractLatentSDE, anchored: Anchored, series: Series, grid: Grid
) -> Predictions:
    """Return a linear model's one-step-ahead predictions, exact."""
    assert isinstance(model.decoder, LinearDecoder)
    laws = kalman_laws(model, anchored, series, grid)
    dtype, at = series.ys.dtype, grid.nodes
    mean, variance = jax.vmap(model.decoder.law)(
        laws.predicted_mean[at].astype(dtype),
        laws.predicted_covariance[at].astype(dtype),
        series.errors,
    )
    scale = jnp.sqrt(variance)
    residuals = jnp.where(series.mask, (series.ys - mean) / scale, jnp.nan)
    scores = at_first(laws.scores.astype(dtype), at)
    whole = jnp.full(len(at), jnp.inf, dtype)
    return Predictions(series.ts, mean, scale, residuals, scores, whole)
