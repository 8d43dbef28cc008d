"""Linear SDEs, `dX = (A X + b + C u) dt + sigma dW`, and their exact transitions."""

import abc
import math
from typing import ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from .gaussian import Gaussian, all_positive, as_float, is_known


Matrix = Float[Array, "state state"]
Vector = Float[Array, " state"]
Inputs = Float[Array, " inputs"]

NUM_NODES = 8  # Gauss nodes of a step where noise drives fewer directions than `state`
_NUM_TERMS = 18
_NUM_DOUBLINGS = 12


class Transition(eqx.Module):
    """One step of length `dt`, `X' = matrix X + offset + root (gain g + noise)`.

    `noise` is standard normal. `g`, a drift beside the linear one that is held constant
    over the step, moves the mean by `root gain g = int Phi g ds`, and `|gain g|^2` is
    the control energy that this takes: nothing is ever divided by a variance that may
    be zero, and at `dt = 0` it is the identity.
    """

    matrix: Matrix
    offset: Vector
    root: Float[Array, "state noise"]
    gain: Float[Array, "noise state"]

    @property
    def covariance(self) -> Matrix:
        """`root root^T`."""
        return self.root @ self.root.T


class Coefficients(NamedTuple):
    """`A`, `b` and `sigma` of a linear SDE at one time."""

    matrix: Matrix
    bias: Vector
    diffusion: Float[Array, "state brownian"]


class AbstractLinearSDE(eqx.Module):
    """A linear SDE in the narrow sense: `sigma` depends on the time alone.

    **Attributes:** `initial`, the law of `X` at the first time; `input_matrix`, `C`, or
    `None` where there are no inputs.
    """

    initial: eqx.AbstractVar[Gaussian]
    input_matrix: eqx.AbstractVar[Float[Array, "state inputs"] | None]
    time_invariant: eqx.AbstractClassVar[bool]

    @abc.abstractmethod
    def coefficients(self, t: Float[Array, ""]) -> Coefficients:
        """Return `A`, `b` and `sigma` at `t`."""

    @abc.abstractmethod
    def transition(
        self,
        t: Float[Array, ""],
        dt: Float[Array, ""],
        inputs: Inputs | None = None,
    ) -> Transition:
        """Return the exact step from `t` to `t + dt`, `inputs` held constant."""


class LinearSDE(AbstractLinearSDE):
    """`dX = (matrix X + bias + input_matrix u) dt + diffusion dW`, all constant.

    `diffusion` with as many columns as rows must have full rank; it is kept as the
    Cholesky root of `diffusion diffusion^T`, which has the same law, by the logarithms
    of its diagonal, so that training never makes it singular. With fewer columns, the
    noise drives few directions and the drift carries it to others (positions by
    velocities, say): the covariance of a step is then a sum over `NUM_NODES` Gauss
    nodes, good to rounding where `dt` times the largest rate is below 2, and to 1e-7
    where it is 5.

    **Raises:** `ValueError` for shapes that do not agree or a square `diffusion` that
    is singular.

    **Source:** for the covariance, `S' = A S + S A^T + Q` by its Taylor series and
    doubling, `S(2h) = Phi S Phi^T + S`; no matrix is inverted.
    """

    time_invariant: ClassVar[bool] = True

    matrix: Matrix
    bias: Vector
    initial: Gaussian
    input_matrix: Float[Array, "state inputs"] | None
    lower: Float[Array, "state brownian"]
    log_diagonal: Float[Array, " brownian"] | None

    def __init__(
        self,
        matrix: ArrayLike,
        bias: ArrayLike,
        diffusion: ArrayLike,
        initial: Gaussian,
        *,
        input_matrix: ArrayLike | None = None,
    ) -> None:
        """Check the shapes and the rank."""
        self.matrix = as_float(matrix)
        self.bias = as_float(bias)
        self.initial = initial
        self.input_matrix = as_input_matrix(input_matrix)
        diffusion = as_float(diffusion)
        check_linear(self.matrix, self.bias, diffusion, initial, self.input_matrix)
        if diffusion.shape[0] == diffusion.shape[1]:
            self.lower, self.log_diagonal = split_root(diffusion)
        else:
            self.lower, self.log_diagonal = diffusion, None

    @property
    def diffusion(self) -> Float[Array, "state brownian"]:
        """`sigma`: lower triangular if it is square."""
        return joined_root(self.lower, self.log_diagonal)

    def coefficients(self, t: Float[Array, ""]) -> Coefficients:
        """Return `A`, `b` and `sigma`, which are constant."""
        return Coefficients(self.matrix, self.bias, self.diffusion)

    def transition(
        self, t: Float[Array, ""], dt: Float[Array, ""], inputs: Inputs | None = None
    ) -> Transition:
        """Return the exact step of length `dt`."""
        return constant_transition(
            self.coefficients(t), dt, forced(self.bias, self.input_matrix, inputs)
        )


class DiagonalSDE(AbstractLinearSDE):
    """Independent Ornstein-Uhlenbeck processes, or Brownian motions at rate zero.

    `dX_i = (-rates_i X_i + bias_i + (input_matrix u)_i) dt + scale_i dW_i`.

    `scale` is kept by its logarithm, so that training leaves it positive.

    **Raises:** `ValueError` for shapes that do not agree or a `scale` that is not
    positive.
    """

    time_invariant: ClassVar[bool] = True

    rates: Vector
    bias: Vector
    log_scale: Vector
    initial: Gaussian
    input_matrix: Float[Array, "state inputs"] | None

    def __init__(
        self,
        rates: ArrayLike,
        bias: ArrayLike,
        scale: ArrayLike,
        initial: Gaussian,
        *,
        input_matrix: ArrayLike | None = None,
    ) -> None:
        """Broadcast numbers to vectors and check them."""
        shape = initial.mean.shape
        self.rates, self.bias, scale = (
            as_vector(name, value, shape)
            for name, value in (("rates", rates), ("bias", bias), ("scale", scale))
        )
        if not all_positive(scale):
            raise ValueError(
                f"`scale` is {np.asarray(scale).tolist()}: pass positive numbers; for "
                "components without noise use `LinearSDE` with fewer columns."
            )
        self.log_scale = jnp.log(scale)
        self.initial = initial
        self.input_matrix = as_input_matrix(input_matrix)

    @property
    def scale(self) -> Vector:
        """The diagonal of `sigma`."""
        return jnp.exp(self.log_scale)

    def coefficients(self, t: Float[Array, ""]) -> Coefficients:
        """Return `A`, `b` and `sigma`, which are constant."""
        return Coefficients(jnp.diag(-self.rates), self.bias, jnp.diag(self.scale))

    def transition(
        self, t: Float[Array, ""], dt: Float[Array, ""], inputs: Inputs | None = None
    ) -> Transition:
        """Return the exact step, `Phi = exp(-rates dt)`, by `expm1`."""
        force = forced(self.bias, self.input_matrix, inputs)
        mean_weight = relative_growth(-self.rates * dt)  # int Phi ds / dt
        spread = self.scale * jnp.sqrt(relative_growth(-2 * self.rates * dt))
        root_dt = safe_sqrt(dt)
        return Transition(
            jnp.diag(jnp.exp(-self.rates * dt)),
            dt * mean_weight * force,
            jnp.diag(root_dt * spread),
            jnp.diag(root_dt * mean_weight / spread),
        )


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


def forced(
    bias: Vector,
    input_matrix: Float[Array, "state inputs"] | None,
    inputs: Array | None,
) -> Vector:
    """Return `b + C u`."""
    if inputs is None or input_matrix is None:
        return bias
    return bias + input_matrix.astype(bias.dtype) @ inputs.astype(bias.dtype)


def constant_transition(
    coefficients: Coefficients, dt: Float[Array, ""], force: Vector
) -> Transition:
    """Return the exact step for coefficients that are constant over `dt`."""
    matrix, _, diffusion = coefficients
    if diffusion.shape[0] == diffusion.shape[1]:
        flow, mean_weight, spread = _doubled(matrix, diffusion @ diffusion.T, dt)
        root = jnp.linalg.cholesky(spread)
        gain = jax.scipy.linalg.solve_triangular(root, mean_weight, lower=True)
        root_dt = safe_sqrt(dt)
        offset = dt * mean_weight @ force
        return Transition(flow, offset, root_dt * root, root_dt * gain)
    nodes, weights = gauss_nodes(matrix.dtype)
    nothing = jnp.zeros_like(matrix)
    flows = jax.vmap(lambda s: _doubled(matrix, nothing, s * dt)[0])(1 - nodes)
    flow, mean_weight, _ = _doubled(matrix, nothing, dt)
    diffusions = jnp.broadcast_to(diffusion, (len(nodes), *diffusion.shape))
    return from_nodes(flow, dt * mean_weight @ force, flows, diffusions, weights, dt)


def from_nodes(
    flow: Matrix,
    offset: Vector,
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
    return Transition(flow, offset, root, gains.reshape(-1, state))


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


def split_root(diffusion: Array) -> tuple[Array, Array]:
    """Return the Cholesky root of `s s^T`: below the diagonal, and its logarithms."""
    if is_known(diffusion):
        values = np.linalg.svd(np.asarray(diffusion, np.float64), compute_uv=False)
        if not values[-1] > 1e-6 * values[0]:
            raise ValueError(
                f"`diffusion` is square and singular (singular values {values}): pass "
                "only as many columns as directions that the noise drives."
            )
    root = jnp.linalg.qr(diffusion.T, mode="r").T
    root = root * jnp.sign(jnp.diagonal(root))[None]
    return jnp.tril(root, -1), jnp.log(jnp.diagonal(root))


def joined_root(lower: Array, log_diagonal: Array | None) -> Array:
    """Return the root that `split_root` split."""
    if log_diagonal is None:
        return lower
    return jnp.tril(lower, -1) + jnp.diag(jnp.exp(log_diagonal))


def as_vector(name: str, value: ArrayLike, shape: tuple[int, ...]) -> Array:
    """Return `value` broadcast to `shape`."""
    array = as_float(value)
    if array.shape not in ((), shape):
        raise ValueError(
            f"`{name}` has shape {array.shape}: pass a number or shape {shape}."
        )
    return jnp.broadcast_to(array, shape)


def as_input_matrix(value: ArrayLike | None) -> Array | None:
    """Return the input matrix as an array, if there is one."""
    return None if value is None else as_float(value)


def check_linear(
    matrix: Array,
    bias: Array,
    diffusion: Array,
    initial: Gaussian,
    input_matrix: Array | None,
) -> None:
    """Raise `ValueError` for shapes that do not agree."""
    size = initial.mean.shape[0]
    shapes = {"matrix": (matrix, (size, size)), "bias": (bias, (size,))}
    for name, (value, shape) in shapes.items():
        if value.shape != shape:
            raise ValueError(
                f"`{name}` has shape {value.shape}; `initial` has {size} components: "
                f"pass shape {shape}."
            )
    if diffusion.ndim != 2 or diffusion.shape[0] != size or diffusion.shape[1] > size:
        raise ValueError(
            f"`diffusion` has shape {diffusion.shape}: pass ({size}, noise) with at "
            f"most {size} columns."
        )
    if input_matrix is not None and input_matrix.shape[:1] != (size,):
        raise ValueError(
            f"`input_matrix` has shape {input_matrix.shape}: pass ({size}, inputs)."
        )
