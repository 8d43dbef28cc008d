"""The Kalman filter of a linear model: exact laws given what was seen so far."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from effgen.core.weights import Estimate
from effgen.neural_sde.data.grid import Grid
from effgen.neural_sde.data.series import Series
from effgen.neural_sde.linear_sdes.noise import standard_normal
from effgen.neural_sde.linear_sdes.transitions import covariance_root
from effgen.neural_sde.modeling.anchors import cast, prior_transitions
from effgen.neural_sde.modeling.dynamics import AbstractLatentSDE
from effgen.neural_sde.observing.decoders import LinearDecoder

from .filtering import Filtered, at_first
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


def kalman_laws(model: AbstractLatentSDE, series: Series, grid: Grid) -> KalmanLaws:
    """Run a Kalman filter over the grid's nodes, by roots of covariances.

        [[I, G S], [0, S]] Q = [[F, 0], [K, S']],  G = R^(-1/2) H

    with `S S^T` the covariance before an observation and `S' S'^T` after it, and `Q`
    orthogonal. No covariance is formed or inverted: its digits would be lost as its
    ratio to the noise's variance. Of a node's observations one comes after the other.

    Source:
        Kaminski, Bryson and Schmidt (1971).
    """
    transitions = prior_transitions(model, series, grid)
    dtype = transitions.offset.dtype
    law, decoder = cast((model.linear.initial, model.decoder), dtype)
    assert isinstance(decoder, LinearDecoder)
    num = len(grid.starts) + 1
    arrives = jnp.arange(num)
    # Each node's step, then its observations: rows of either, in one order.
    order = jnp.argsort(jnp.concatenate([2 * arrives, 2 * grid.nodes + 1]), stable=True)
    none = lambda x: jnp.zeros((1, *x.shape[1:]), x.dtype)
    steps = jax.tree.map(lambda x: jnp.concatenate([none(x), x]), transitions)

    def arrive(carry: tuple[Array, Array], row: Array):
        step = jax.tree.map(lambda x: x[row], steps)
        mean = step.matrix @ carry[0] + step.offset
        root = lower_root(jnp.concatenate([step.matrix @ carry[1], step.root], axis=1))
        first = row == 0
        return (
            jnp.where(first, carry[0], mean),
            jnp.where(first, carry[1], root),
        ), jnp.zeros((), dtype)

    def observe(carry: tuple[Array, Array], row: Array):
        at = row - num
        errors = None if series.errors is None else series.errors[at].astype(dtype)
        y, mask = series.ys[at].astype(dtype), series.mask[at]
        return updated(decoder, *carry, y, mask, errors)

    def forward(carry: tuple[Array, Array], row: Array):
        carry, score = jax.lax.cond(row < num, arrive, observe, carry, row)
        return carry, (*carry, score)

    begin = (law.mean, lower_root(law.root))
    _, (means, roots, scores) = jax.lax.scan(forward, begin, order)
    place = jnp.argsort(order)
    before = place[:num]
    counts = jax.ops.segment_sum(jnp.ones_like(grid.nodes), grid.nodes, num)
    after = before + counts
    owner = jnp.where(order < num, order, grid.nodes[jnp.maximum(order - num, 0)])
    covariance = lambda rows: jnp.einsum("nij,nkj->nik", roots[rows], roots[rows])
    return KalmanLaws(
        means[after],
        covariance(after),
        means[before],
        covariance(before),
        jax.ops.segment_sum(scores, owner, num),
    )


def lower_root(root: Float[Array, "state any"]) -> Float[Array, "state state"]:
    """Return a square root of `root root^T`, lower triangular."""
    size, width = root.shape
    if width < size:
        root = jnp.concatenate([root, jnp.zeros((size, size - width), root.dtype)], 1)
    return jnp.linalg.qr(root.T, mode="r").T


def updated(
    decoder: LinearDecoder,
    mean: Float[Array, " state"],
    root: Float[Array, "state state"],
    y: Float[Array, " sensors"],
    mask: Array,
    errors: Array | None,
) -> tuple[tuple[Array, Array], Float[Array, ""]]:
    """Return mean and root given what is seen, and the log-density of this."""
    rows, noise = decoder.observed(mask, errors)
    whiten = jnp.linalg.cholesky(noise)
    white = lambda b: jax.scipy.linalg.solve_triangular(whiten, b, lower=True)
    error = white(jnp.where(mask, y - decoder.mean(mean), 0))
    num, size = rows.shape
    eye, zero = jnp.eye(num, dtype=mean.dtype), jnp.zeros((size, num), mean.dtype)
    both = jnp.block([[eye, white(rows @ root)], [zero, root]])
    found = lower_root(both)
    factor, gain, kept = found[:num, :num], found[num:, :num], found[num:, num:]
    left = jax.scipy.linalg.solve_triangular(factor, error, lower=True)
    logs = jnp.log(jnp.abs(jnp.diagonal(factor))) + jnp.log(jnp.diagonal(whiten))
    score = -0.5 * left @ left - jnp.sum(logs)
    score = score - 0.5 * jnp.log(2 * jnp.pi) * jnp.sum(mask)
    return (mean + gain @ left, kept), score


def evidence_by_innovations(
    model: AbstractLatentSDE, series: Series
) -> Float[Array, ""]:
    """Return `log p(y)` of a linear model as the sum of its predictions' log-densities.

        log p(y) = sum_i log N(y_i; H m_i + d, H P_i H^T + R)

    The filter goes from observation to observation, with coefficients that are
    constant. No term is larger than an innovation, and covariances are kept by their
    roots: digits are kept where values are far from the offset, or the noise is small,
    and the sum over messages would lose them. Derivatives are those of the filter by
    covariances, since a root has none where a covariance is singular.

    Source:
        Schweppe (1965); Kaminski, Bryson and Schmidt (1971); the covariance's update,
        Bucy and Joseph (1968).
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
    law = cast(model.linear.initial, dtype)
    xs = (gaps, series.ys, series.mask, series.errors)

    def by_roots(carry: tuple[Array, Array], xs: tuple):
        step, *seen = xs
        mean = step.matrix @ carry[0] + step.offset
        root = jnp.concatenate([step.matrix @ carry[1], step.root], axis=1)
        return updated(decoder, mean, lower_root(root), *seen)

    def by_covariances(carry: tuple[Array, Array], xs: tuple):
        step, *seen = xs
        mean = step.matrix @ carry[0] + step.offset
        covariance = step.matrix @ carry[1] @ step.matrix.T + step.covariance
        told = innovated(decoder, mean, covariance, *seen)
        return told[:2], told[2]

    value = jnp.sum(jax.lax.scan(by_roots, (law.mean, lower_root(law.root)), xs)[1])
    found = jnp.sum(jax.lax.scan(by_covariances, (law.mean, law.covariance), xs)[1])
    moved = found - jax.lax.stop_gradient(found)
    return jax.lax.stop_gradient(value) + jnp.where(jnp.isfinite(moved), moved, 0)


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
    series: Series,
    grid: Grid,
    *,
    num_paths: int,
    key: PRNGKeyArray,
) -> Filtered:
    """Return a linear model's filter, particles drawn from each node's exact law."""
    laws = kalman_laws(model, series, grid)
    keys = jax.random.split(key)
    dtype = series.ys.dtype

    def drawn(key: PRNGKeyArray, mean: Array, covariance: Array) -> Array:
        root = jax.vmap(covariance_root)(covariance)
        noise = standard_normal(key, (len(mean), num_paths, mean.shape[1]), dtype)
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
    model: AbstractLatentSDE, series: Series, grid: Grid
) -> Predictions:
    """Return a linear model's one-step-ahead predictions, exact."""
    assert isinstance(model.decoder, LinearDecoder)
    laws = kalman_laws(model, series, grid)
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
