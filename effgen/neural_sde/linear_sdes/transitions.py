"""Exact steps of linear SDEs, for rates that are fast, slow, both, or of one noise."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


Matrix = Float[Array, "state state"]
Vector = Float[Array, " state"]

_NUM_TERMS = 18
_NUM_DOUBLINGS = 36  # rates times `dt` up to 3e10
_NUM_BALANCINGS = 8
MOST_ELIMINATED = 16  # larger matrices are left to a library


class Transition(eqx.Module):
    """One step of a linear SDE, `X' = matrix X + offset + push g + root noise`.

    `noise` is standard normal. `g` is a drift beside the linear one that is held over
    the step. Where the noise can make its move, `root gain g = push g`, and the control
    energy it takes is `|gain g|^2`. Nothing is divided by a variance that may be zero.
    At `dt = 0` the step is the identity.

    Arguments:
        matrix: `Phi`, shape `(state, state)`.
        offset: `int Phi (b + C u) ds`, shape `(state,)`.
        root: A root of the noise's covariance, shape `(state, noise)`.
        gain: From `g` to the mean of the noise that makes its move, shape `(noise,
            state)`.
        push: `int Phi ds`, shape `(state, state)`.
        covariance: `root root^T`, which is known before its root where that is factored
            from it; `None`: found from `root`. A filter that asks for no root then
            compiles none.
    """

    matrix: Matrix
    offset: Vector
    root: Float[Array, "state noise"]
    gain: Float[Array, "noise state"]
    push: Matrix
    covariance: Matrix

    def __init__(
        self,
        matrix: Matrix,
        offset: Vector,
        root: Float[Array, "state noise"],
        gain: Float[Array, "noise state"],
        push: Matrix,
        *,
        covariance: Matrix | None = None,
    ) -> None:
        """Find the covariance where it is not given."""
        self.matrix, self.offset, self.root = matrix, offset, root
        self.gain, self.push = gain, push
        self.covariance = root @ root.T if covariance is None else covariance


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
    flow, mean_weight, spread = exact_step(matrix, diffusion @ diffusion.T, dt)
    return from_spread(flow, dt * mean_weight @ force, mean_weight, spread, dt)


def from_spread(
    flow: Matrix, offset: Vector, mean_weight: Matrix, spread: Matrix, dt: Array
) -> Transition:
    """Return the step of `mean_weight = int Phi ds / dt`, noise `spread = S / dt`.

    `S` is factored as `D C C^T D`, `D` its standard deviations: units do not matter,
    and where noise drives few directions, components that it does not reach stay fixed.
    """
    scale = safe_sqrt(jnp.diagonal(spread))
    safe = jnp.where(scale > 0, scale, 1.0)
    correlation = spread / safe[:, None] / safe[None]
    root = semidefinite_root(_with_diagonal(correlation, jnp.ones_like(scale)))
    scaled = mean_weight / safe[:, None]
    gain = jax.scipy.linalg.solve_triangular(root, scaled, lower=True)
    root_dt = safe_sqrt(dt)
    root = root_dt * scale[:, None] * root
    gain = root_dt * gain
    covariance = dt * spread
    return Transition(flow, offset, root, gain, dt * mean_weight, covariance=covariance)


def covariance_root(covariance: Matrix) -> Matrix:
    """Return `C`, `C C^T` the covariance, which may be singular, in any units."""
    scale = safe_sqrt(jnp.maximum(jnp.diagonal(covariance), 0))
    safe = jnp.where(scale > 0, scale, 1)
    correlation = covariance / (safe[:, None] * safe[None])
    correlation = jnp.where(jnp.eye(len(scale), dtype=bool), 1, correlation)
    return scale[:, None] * semidefinite_root(correlation)


def semidefinite_root(correlation: Matrix) -> Matrix:
    """Return `C`, lower triangular, `C C^T` the matrix with a unit diagonal.

    A pivot below the rounding of the others is raised to it, which adds as much to that
    component's variance and nothing elsewhere; covariances are held to what variances
    allow, so that rounding does not grow. Small matrices are eliminated in operations
    that a batch shares.
    """
    size = correlation.shape[0]
    least = 4 * size * jnp.finfo(correlation.dtype).eps
    if size > MOST_ELIMINATED:
        ridge = least * jnp.eye(size, dtype=correlation.dtype)
        return jnp.linalg.cholesky(correlation + ridge)
    index = jnp.arange(size)

    def eliminate(rest: Matrix, i: Array) -> tuple[Matrix, Vector]:
        on = index == i
        column = jnp.where(index >= i, rest[:, i], 0.0)
        pivot = jnp.maximum(rest[i, i], least)
        column = jnp.where(on, pivot, column) * jax.lax.rsqrt(pivot)
        most = jnp.where(on, column, 1.001 * safe_sqrt(jnp.diagonal(rest)))
        column = jnp.clip(column, -most, most)
        return rest - column[:, None] * column[None], column

    # A loop: unrolled, it was a third of what a training step has to compile.
    return jax.lax.scan(eliminate, correlation, index)[1].T


def _with_diagonal(matrix: Matrix, diagonal: Vector) -> Matrix:
    on = jnp.eye(len(diagonal), dtype=bool)
    return jnp.where(on, jnp.diag(diagonal), matrix)


class _Steps(NamedTuple):
    """A step: `Phi - I`, the diagonal of `Phi`, `int Phi ds / dt`, and `S / dt`.

    Slow components are kept by `Phi - I`, fast ones by `Phi`: each would be lost in the
    rounding of the other.
    """

    change: Matrix
    diagonal: Vector
    mean_weight: Matrix
    spread: Matrix

    @property
    def flow(self) -> Matrix:
        """`Phi`."""
        return _with_diagonal(self.change, self.diagonal)

    def doubled(self) -> "_Steps":
        """Return two of these steps, one after the other."""
        change, flow = self.change, self.flow
        more = 2 * change + change @ change
        slow = jnp.abs(jnp.diagonal(more)) < 0.5
        squared = jnp.sum(flow * flow.T, axis=1)
        diagonal = jnp.where(slow, 1 + jnp.diagonal(more), squared)
        kept = jnp.where(slow, jnp.diagonal(more), squared - 1)
        spread = (flow @ self.spread @ flow.T + self.spread) / 2
        return _Steps(
            _with_diagonal(more, kept),
            diagonal,
            self.mean_weight + change @ self.mean_weight / 2,
            (spread + spread.T) / 2,
        )


def exact_step(
    matrix: Matrix, noise: Matrix, dt: Float[Array, ""]
) -> tuple[Matrix, Matrix, Matrix]:
    """Return `Phi`, `int Phi ds / dt` and `S / dt`, of noise `sigma sigma^T`.

    Taylor's series of a step short enough (norm of `A h` at most a half, in the units
    where it is least), then doubled.
    """
    size = _balanced_norm(jax.lax.stop_gradient(matrix * dt))
    count = jnp.ceil(jnp.log2(jnp.maximum(2 * size, 1.0)))
    start = _short(matrix * (dt / 2**count), noise)
    nothing = jax.tree.map(jnp.zeros_like, start)

    def double(steps: _Steps, i: Array) -> tuple[_Steps, None]:
        # Steps that are not doubled are kept out of it: they may be too large for it.
        pick = lambda a, b: jax.tree.map(lambda x, y: jnp.where(i < count, x, y), a, b)
        return pick(pick(steps, nothing).doubled(), steps), None

    steps, _ = jax.lax.scan(double, start, jnp.arange(_NUM_DOUBLINGS))
    return steps.flow, steps.mean_weight, steps.spread


def _balanced_norm(matrix: Matrix) -> Array:
    """Return the norm of `D^-1 matrix D`, `D` a diagonal that makes it small.

    Source:
        Osborne (1960), all rows at once.
    """
    sizes = jnp.abs(matrix)
    outer = sizes * (1 - jnp.eye(sizes.shape[0], dtype=sizes.dtype))
    present = outer > 0
    logs = jnp.where(present, jnp.log(jnp.where(present, outer, 1.0)), -1e30)
    both = present.any(0) & present.any(1)

    def balance(_: Array, units: Vector) -> Vector:
        scaled = logs - units[:, None] + units[None]
        ratio = scaled.max(1) - scaled.max(0)
        return units + jnp.where(both, ratio, 0.0) / 4

    start = jnp.zeros(sizes.shape[0], sizes.dtype)
    units = jax.lax.fori_loop(0, _NUM_BALANCINGS, balance, start)
    scaled = jnp.exp(logs - units[:, None] + units[None])
    balanced = scaled + jnp.diag(jnp.diagonal(sizes))
    return jnp.maximum(balanced.sum(0).max(), balanced.sum(1).max())


def _short(matrix: Matrix, noise: Matrix) -> _Steps:
    """Return the step of length one by Taylor's series.

        int exp(A s) ds = sum_k A^k / (k + 1)!,    S = sum_k T_k / (k + 1)!

    with `T_0 = Q` and `T_(k + 1) = A T_k + T_k A^T`.
    """

    def more(terms: tuple[Array, Array], k: Array) -> tuple[tuple, tuple]:
        half = matrix @ terms[1]
        return (matrix @ terms[0] / k, (half + half.T) / k), terms

    eye = jnp.eye(matrix.shape[0], dtype=matrix.dtype)
    counts = jnp.arange(2, _NUM_TERMS + 2, dtype=matrix.dtype)
    _, terms = jax.lax.scan(more, (eye, noise), counts)
    mean_weight, spread = (x[::-1].sum(0) for x in terms)
    change = matrix @ mean_weight
    return _Steps(change, 1 + jnp.diagonal(change), mean_weight, spread)
