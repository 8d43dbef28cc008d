"""Exact steps of linear SDEs, without an inverse of any covariance."""

import math
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


Matrix = Float[Array, "state state"]
Vector = Float[Array, " state"]

NUM_NODES = 8  # Gauss nodes of a step where noise drives fewer directions than `state`
_NUM_TERMS = 18
_NUM_DOUBLINGS = 12


class Transition(eqx.Module):
    """One step of length `dt`, `X' = matrix X + offset + push g + root noise`.

    `noise` is standard normal; `g`, a drift beside the linear one that is held over the
    step, moves the mean by `push g`, `push = int Phi ds`. Where the noise can make that
    move, `root gain g = push g`, and `|gain g|^2` is the control energy it takes.
    Nothing is divided by a variance that may be zero; at `dt = 0` the step is the
    identity.
    """

    matrix: Matrix
    offset: Vector
    root: Float[Array, "state noise"]
    gain: Float[Array, "noise state"]
    push: Matrix

    @property
    def covariance(self) -> Matrix:
        """`root root^T`."""
        return self.root @ self.root.T


class Coefficients(NamedTuple):
    """`A`, `b` and `sigma` of a linear SDE at one time."""

    matrix: Matrix
    bias: Vector
    diffusion: Float[Array, "state brownian"]


def relative_growth(z: Array) -> Array:
    """Return `(exp(z) - 1) / z`, one at zero, with derivatives that are right there."""
    small = jnp.abs(z) < 1e-3
    safe = jnp.where(small, 1.0, z)
    series = 1 + z / 2 * (1 + z / 3 * (1 + z / 4 * (1 + z / 5)))
    return jnp.where(small, series, jnp.expm1(safe) / safe)


def safe_sqrt(x: Array) -> Array:
    """Return `sqrt(x)`, with a derivative of zero where `x` is zero."""
    positive = x > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1.0)), 0.0)


def constant_transition(
    coefficients: Coefficients, dt: Float[Array, ""], force: Vector
) -> Transition:
    """Return the exact step for coefficients that are constant over `dt`."""
    matrix, _, diffusion = coefficients
    if diffusion.shape[0] == diffusion.shape[1]:
        flow, mean_weight, spread = _doubled(matrix, diffusion @ diffusion.T, dt)
        return from_spread(flow, dt * mean_weight @ force, mean_weight, spread, dt)
    nodes, weights = gauss_nodes(matrix.dtype)
    nothing = jnp.zeros_like(matrix)
    flows = jax.vmap(lambda s: _doubled(matrix, nothing, s * dt)[0])(1 - nodes)
    flow, mean_weight, _ = _doubled(matrix, nothing, dt)
    diffusions = jnp.broadcast_to(diffusion, (len(nodes), *diffusion.shape))
    push = dt * mean_weight
    return from_nodes(flow, push @ force, push, flows, diffusions, weights, dt)


def from_spread(
    flow: Matrix, offset: Vector, mean_weight: Matrix, spread: Matrix, dt: Array
) -> Transition:
    """Return the step of `mean_weight = int Phi ds / dt`, noise `spread = S / dt`."""
    root = jnp.linalg.cholesky(spread)
    gain = jax.scipy.linalg.solve_triangular(root, mean_weight, lower=True)
    root_dt = safe_sqrt(dt)
    return Transition(flow, offset, root_dt * root, root_dt * gain, dt * mean_weight)


def from_nodes(
    flow: Matrix,
    offset: Vector,
    push: Matrix,
    flows: Float[Array, "nodes state state"],
    diffusions: Float[Array, "nodes state brownian"],
    weights: Float[Array, " nodes"],
    dt: Float[Array, ""],
) -> Transition:
    """Return the step whose noise acts at Gauss nodes, `root_i = sqrt(w_i dt) F_i s_i`.

    `flows` carry from each node to the end of the step.
    """
    scales = safe_sqrt(dt) * jnp.sqrt(weights)
    roots = scales[:, None, None] * (flows @ diffusions)
    gains = scales[:, None, None] * jax.vmap(left_inverse)(diffusions)
    state = flow.shape[0]
    root = jnp.moveaxis(roots, 0, 1).reshape(state, -1)
    return Transition(flow, offset, root, gains.reshape(-1, state), push)


def left_inverse(diffusion: Float[Array, "state brownian"]) -> Array:
    """Return `(s^T s)^-1 s^T`, which takes a drift to the control that makes it."""
    return jnp.linalg.solve(diffusion.T @ diffusion, diffusion.T)


def gauss_nodes(dtype: jnp.dtype) -> tuple[Array, Array]:
    """Return the nodes and weights of Gauss and Legendre on `[0, 1]`."""
    nodes, weights = np.polynomial.legendre.leggauss(NUM_NODES)
    return jnp.asarray((nodes + 1) / 2, dtype), jnp.asarray(weights / 2, dtype)


def _doubled(
    matrix: Matrix, noise: Matrix, dt: Float[Array, ""]
) -> tuple[Matrix, Matrix, Matrix]:
    """Return `Phi`, `int Phi ds / dt` and `S / dt`.

    Taylor's series of a step short enough (norm of `A h` below a half), then doubled.
    """
    size = jnp.max(jnp.sum(jnp.abs(jax.lax.stop_gradient(matrix)), axis=0)) * dt
    count = jnp.ceil(jnp.log2(jnp.maximum(2 * size, 1.0)))
    short = dt / 2**count
    weights = _taylor_weights(short)
    powers, noises = _taylor_terms(matrix, noise)
    mean_weight = jnp.tensordot(weights, powers, 1)
    spread = jnp.tensordot(weights, noises, 1)
    eye = jnp.eye(matrix.shape[0], dtype=matrix.dtype)
    start = (eye + short * matrix @ mean_weight, mean_weight, spread)

    def double(
        carry: tuple[Matrix, Matrix, Matrix], i: Array
    ) -> tuple[tuple[Matrix, Matrix, Matrix], None]:
        flow, mean_weight, spread = carry
        more = (
            flow @ flow,
            (flow @ mean_weight + mean_weight) / 2,
            (flow @ spread @ flow.T + spread) / 2,
        )
        kept = jax.tree.map(lambda a, b: jnp.where(i < count, a, b), more, carry)
        return kept, None

    return jax.lax.scan(double, start, jnp.arange(_NUM_DOUBLINGS))[0]


def _taylor_weights(h: Array) -> Array:
    """Return `h^k / (k + 1)!` for each term."""
    factorials = [1 / math.factorial(k + 1) for k in range(_NUM_TERMS)]
    return jnp.asarray(factorials, h.dtype) * h ** jnp.arange(_NUM_TERMS)


def _taylor_terms(matrix: Matrix, noise: Matrix) -> tuple[Array, Array]:
    """Return the powers of `A`, and the terms `T' = A T + T A^T` from `Q`."""

    def more(terms: tuple[Array, Array], _: None) -> tuple[tuple, tuple]:
        half = matrix @ terms[1]
        return (matrix @ terms[0], half + half.T), terms

    start = (jnp.eye(matrix.shape[0], dtype=matrix.dtype), noise)
    return jax.lax.scan(more, start, length=_NUM_TERMS)[1]
