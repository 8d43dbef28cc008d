"""Linear SDEs, `dX = (A X + b + C u) dt + sigma dW`, and their exact transitions."""

import abc
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from .gaussian import Gaussian, all_positive, as_float, check_finite, is_known
from .transitions import (
    Coefficients,
    Matrix,
    Transition,
    Vector,
    constant_transition,
    relative_growth,
    safe_sqrt,
)


Inputs = Float[Array, " inputs"]


class AbstractLinearSDE(eqx.Module):
    """A linear SDE whose `sigma` does not depend on the state.

        dX = (A(t) X + b(t) + C u) dt + sigma(t) dW

    Attributes:
        initial: The law of `X` at the first time.
        input_matrix: `C`, shape `(state, inputs)`, or `None` where there are no inputs.
        time_invariant: Whether `A`, `b` and `sigma` are constant.
    """

    initial: eqx.AbstractVar[Gaussian]
    input_matrix: eqx.AbstractVar[Float[Array, "state inputs"] | None]
    time_invariant: eqx.AbstractClassVar[bool]

    @abc.abstractmethod
    def coefficients(self, t: Float[Array, ""]) -> Coefficients:
        """Return `A`, `b` and `sigma` at `t`.

        Arguments:
            t: The time, a scalar.

        Returns:
            `matrix`, shape `(state, state)`, `bias`, shape `(state,)`, and `diffusion`,
                shape `(state, brownian)`.
        """

    @abc.abstractmethod
    def transition(
        self,
        t: Float[Array, ""],
        dt: Float[Array, ""],
        inputs: Inputs | None = None,
    ) -> Transition:
        """Return the exact step from `t` to `t + dt`.

        Arguments:
            t: The time at which the step starts, a scalar.
            dt: The length of the step, not negative, in the unit of time.
            inputs: `u`, shape `(inputs,)`, held constant over the step, or `None`.

        Returns:
            The law of `X(t + dt)` given `X(t)`.
        """


class LinearSDE(AbstractLinearSDE):
    """A linear SDE with constant coefficients.

        dX = (matrix X + bias + input_matrix u) dt + diffusion dW

    A `diffusion` with as many columns as rows must have full rank. It is kept as the
    Cholesky root of `diffusion diffusion^T`, which has the same law. The diagonal is
    kept by its logarithms, so training never makes it singular. With fewer columns the
    noise drives few directions, and the drift carries it to others.

    A step is exact to rounding for rates times `dt` up to 3e10, fast components beside
    slow ones, and units of any size. In float32 a slow component that is mixed with a
    fast one is good to 1e-7 times the ratio of their rates.

    Arguments:
        matrix: `A`, shape `(state, state)`, one over the unit of time.
        bias: `b`, shape `(state,)`, units of the state over the unit of time.
        diffusion: `sigma`, shape `(state, brownian)`, at most `state` columns, units of
            the state over the root of the unit of time.
        initial: The law of `X` at the first time.
        input_matrix: `C`, shape `(state, inputs)`, or `None` for no inputs.

    Raises:
        ValueError: For shapes that do not agree, values that are not finite, or a
            square `diffusion` that is singular.

    Source:
        `Phi - I`, `int Phi ds` and the covariance, `S' = A S + S A^T + Q`, by Taylor's
        series of a short step, and doubling: `S(2h) = Phi S Phi^T + S`.
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
        diffusion = as_float(diffusion)
        check_linear(self.matrix, self.bias, diffusion, initial)
        self.input_matrix = as_input_matrix(input_matrix, len(self.bias))
        if diffusion.shape[0] == diffusion.shape[1]:
            self.lower, self.log_diagonal = split_root(diffusion)
        else:
            self.lower, self.log_diagonal = diffusion, None

    @property
    def diffusion(self) -> Float[Array, "state brownian"]:
        """`sigma`: lower triangular if it is square."""
        return joined_root(self.lower, self.log_diagonal)

    def coefficients(self, t: Float[Array, ""]) -> Coefficients:
        """Return `A`, `b` and `sigma`, which are constant.

        Arguments:
            t: The time, which is not used.

        Returns:
            `matrix`, `bias` and `diffusion`.
        """
        return Coefficients(self.matrix, self.bias, self.diffusion)

    def transition(
        self, t: Float[Array, ""], dt: Float[Array, ""], inputs: Inputs | None = None
    ) -> Transition:
        """Return the exact step of length `dt`.

        Arguments:
            t: The time at which the step starts, which is not used.
            dt: The length of the step, not negative.
            inputs: `u`, shape `(inputs,)`, held constant over the step, or `None`.

        Returns:
            The law of `X(t + dt)` given `X(t)`.
        """
        return constant_transition(
            self.coefficients(t), dt, forced(self.bias, self.input_matrix, inputs)
        )


class DiagonalSDE(AbstractLinearSDE):
    """Independent Ornstein-Uhlenbeck processes, or Brownian motions at rate zero.

        dX_i = (-rates_i X_i + bias_i + (input_matrix u)_i) dt + scale_i dW_i

    `scale` is kept by its logarithm, so that training leaves it positive.

    Arguments:
        rates: Shape `(state,)` or one number for all, one over the unit of time.
        bias: Shape `(state,)` or one number, units of the state over the unit of time.
        scale: Shape `(state,)` or one number, positive, units of the state over the
            root of the unit of time.
        initial: The law of `X` at the first time, which gives the number of components.
        input_matrix: `C`, shape `(state, inputs)`, or `None` for no inputs.

    Raises:
        ValueError: For shapes that do not agree, values that are not finite, or a
            `scale` that is not positive.
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
        self.input_matrix = as_input_matrix(input_matrix, shape[0])

    @property
    def scale(self) -> Vector:
        """The diagonal of `sigma`."""
        return jnp.exp(self.log_scale)

    def coefficients(self, t: Float[Array, ""]) -> Coefficients:
        """Return `A`, `b` and `sigma`, which are constant.

        Arguments:
            t: The time, which is not used.

        Returns:
            `-diag(rates)`, `bias` and `diag(scale)`.
        """
        return Coefficients(jnp.diag(-self.rates), self.bias, jnp.diag(self.scale))

    def transition(
        self, t: Float[Array, ""], dt: Float[Array, ""], inputs: Inputs | None = None
    ) -> Transition:
        """Return the exact step, `Phi = exp(-rates dt)`, by `expm1`.

        Arguments:
            t: The time at which the step starts, which is not used.
            dt: The length of the step, not negative.
            inputs: `u`, shape `(inputs,)`, held constant over the step, or `None`.

        Returns:
            The law of `X(t + dt)` given `X(t)`.
        """
        force = forced(self.bias, self.input_matrix, inputs)
        mean_weight = relative_growth(-self.rates * dt)  # int Phi ds / dt
        spread = self.scale * jnp.sqrt(relative_growth(-2 * self.rates * dt))
        root_dt = safe_sqrt(dt)
        return Transition(
            jnp.diag(jnp.exp(-self.rates * dt)),
            dt * mean_weight * force,
            jnp.diag(root_dt * spread),
            jnp.diag(root_dt * mean_weight / spread),
            jnp.diag(dt * mean_weight),
        )


def noise_size(linear: AbstractLinearSDE) -> int:
    """Return the number of normal variables of one step."""
    zero = jnp.zeros(())
    return eqx.filter_eval_shape(linear.transition, zero, zero).root.shape[1]


def num_brownian(linear: AbstractLinearSDE) -> int:
    """Return the number of columns of `sigma`."""
    return eqx.filter_eval_shape(linear.coefficients, jnp.zeros(())).diffusion.shape[1]


def driven_fully(linear: AbstractLinearSDE) -> bool:
    """Return whether there are as many Brownian motions as components."""
    sigma = eqx.filter_eval_shape(linear.coefficients, jnp.zeros(())).diffusion
    return sigma.shape[0] == sigma.shape[1]


def forced(
    bias: Vector,
    input_matrix: Float[Array, "state inputs"] | None,
    inputs: Array | None,
) -> Vector:
    """Return `b + C u`."""
    if inputs is None or input_matrix is None:
        return bias
    return bias + input_matrix.astype(bias.dtype) @ inputs.astype(bias.dtype)


def is_regular(diffusion: np.ndarray) -> bool:
    """Return whether noise drives all directions, of one matrix or of each of some."""
    sizes = _singular_values(diffusion)
    return bool(np.all(sizes[..., -1] > 1e-6 * sizes[..., 0]))


def _singular_values(diffusion: np.ndarray) -> np.ndarray:
    return np.linalg.svd(diffusion.astype(np.float64), compute_uv=False)


def split_root(diffusion: Array) -> tuple[Array, Array]:
    """Return the Cholesky root of `s s^T`: below the diagonal, and its logarithms."""
    if is_known(diffusion):
        if not is_regular(np.asarray(diffusion)):
            values = _singular_values(np.asarray(diffusion))
            raise ValueError(
                f"`diffusion` is square and singular (singular values {values}): pass "
                "only as many columns as directions that the noise drives."
            )
    return _split(diffusion)


@jax.jit
def _split(diffusion: Array) -> tuple[Array, Array]:
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
    check_finite(name, array)
    if array.shape not in ((), shape):
        raise ValueError(
            f"`{name}` has shape {array.shape}: pass a number or shape {shape}."
        )
    return jnp.broadcast_to(array, shape)


def as_input_matrix(value: ArrayLike | None, num_states: int) -> Array | None:
    """Return the input matrix as an array of a row a component, if there is one.

    Raises:
        ValueError: For another shape, or values that are not finite.
    """
    if value is None:
        return None
    matrix = as_float(value)
    if matrix.ndim != 2 or len(matrix) != num_states:
        raise ValueError(
            f"`input_matrix` has shape {matrix.shape}: pass ({num_states}, inputs)."
        )
    check_finite("input_matrix", matrix)
    return matrix


def check_linear(
    matrix: Array,
    bias: Array,
    diffusion: Array,
    initial: Gaussian,
) -> None:
    """Raise `ValueError` for shapes that do not agree."""
    size = initial.mean.shape[0]
    shapes = {"matrix": (matrix, (size, size)), "bias": (bias, (size,))}
    for name, (value, shape) in shapes.items():
        check_finite(name, value)
        if value.shape != shape:
            raise ValueError(
                f"`{name}` has shape {value.shape}; `initial` has {size} components: "
                f"pass shape {shape}."
            )
    check_finite("diffusion", diffusion)
    if diffusion.ndim != 2 or diffusion.shape[0] != size or diffusion.shape[1] > size:
        raise ValueError(
            f"`diffusion` has shape {diffusion.shape}: pass ({size}, noise) with at "
            f"most {size} columns."
        )
