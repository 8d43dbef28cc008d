"""Fractional Brownian motion as a sum of Ornstein-Uhlenbeck processes."""

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import gammainc, gammaincc, gammaln, logit
from jaxtyping import Array, ArrayLike, Float

from effgen.core.contract.counts import check_count

from .gaussian import Gaussian, all_positive, as_float, check_finite
from .linear import AbstractLinearSDE, Inputs, as_input_matrix, as_vector, forced
from .transitions import Coefficients, Transition, constant_transition


_NUM_QUADRATURE = 64


class FractionalSDE(AbstractLinearSDE):
    """A linear SDE driven by fractional Brownian motion, by Markov approximation.

        dX = (matrix X + bias + C u) dt + scale dB^H
        B^H_i = sum_k weights_k (Y_ik - Y_ik(0)),    dY_ik = -speeds_k Y_ik dt + dW_i

    The state is `(X, Y)`, `X` first and then each component's `Y`. One Brownian motion
    drives a component's `X` and all its `Y`. `weights` minimize the mean square error
    over `[0, horizon]`. `speeds` are a geometric sequence from `1 / largest_speed` to
    `largest_speed`. The Hurst index is learned with the rest, kept by its logit.

    Arguments:
        matrix: Shape `(x, x)`, one over the unit of time.
        bias: Shape `(x,)` or one number.
        scale: Shape `(x,)` or one number, positive. It is kept by its logarithm.
        initial: The law of `X` alone at the first time.
        hurst: The Hurst index at the start, in (0, 1).
        horizon: How long the approximation is to hold, in the unit of time.
        num_processes: How many `Y` each component has.
        largest_speed: The largest of `speeds`, one over the unit of time.
        stationary: Whether the `Y` begin in equilibrium (type I, Mandelbrot and Van
            Ness), or at zero (type II, Riemann and Liouville).
        input_matrix: `C`, shape `(x, inputs)`, or `None` for no inputs.

    Raises:
        ValueError: For shapes that do not agree, values that are not finite, a `scale`,
            `horizon` or `num_processes` that is not positive, a `largest_speed` of 1
            or less, or `hurst` outside (0, 1).

    Source:
        Daems, Opper, Crevecoeur and Birdal (2024), propositions 1 and 5.
    """

    time_invariant: ClassVar[bool] = True

    matrix: Float[Array, "x x"]
    bias: Float[Array, " x"]
    log_scale: Float[Array, " x"]
    hurst_logit: Float[Array, ""]
    start: Gaussian
    input_matrix: Float[Array, "state inputs"] | None
    num_processes: int = eqx.field(static=True)
    largest_speed: float = eqx.field(static=True)
    horizon: float = eqx.field(static=True)
    stationary: bool = eqx.field(static=True)

    def __init__(
        self,
        matrix: ArrayLike,
        bias: ArrayLike,
        scale: ArrayLike,
        initial: Gaussian,
        *,
        hurst: float,
        horizon: float,
        num_processes: int = 5,
        largest_speed: float = 20.0,
        stationary: bool = True,
        input_matrix: ArrayLike | None = None,
    ) -> None:
        """Check the arguments."""
        if not 0 < hurst < 1:
            raise ValueError(f"`hurst` is {hurst}: pass a number in (0, 1).")
        shape = initial.mean.shape
        self.matrix = as_float(matrix)
        if self.matrix.shape != shape * 2:
            raise ValueError(
                f"`matrix` has shape {self.matrix.shape}: pass {shape * 2}."
            )
        check_finite("matrix", self.matrix)
        self.bias = as_vector("bias", bias, shape)
        scale = as_vector("scale", scale, shape)
        if not all_positive(scale):
            raise ValueError(
                f"`scale` is {np.asarray(scale).tolist()}: pass positive numbers."
            )
        _check_processes(horizon, num_processes, largest_speed)
        self.log_scale = jnp.log(scale)
        self.hurst_logit = logit(as_float(hurst))
        self.start = initial
        given = as_input_matrix(input_matrix, shape[0])
        self.input_matrix = None if given is None else _padded(given, num_processes)
        self.num_processes = num_processes
        self.largest_speed = largest_speed
        self.horizon = horizon
        self.stationary = stationary

    @property
    def hurst(self) -> Float[Array, ""]:
        """The Hurst index."""
        return jax.nn.sigmoid(self.hurst_logit)

    @property
    def speeds(self) -> np.ndarray:
        """The rates of the `Y`, largest last."""
        exponents = np.linspace(-1, 1, self.num_processes)
        return self.largest_speed**exponents

    @property
    def weights(self) -> Float[Array, " processes"]:
        """The weights of the `Y` in the approximation of `B^H`."""
        dtype = self.hurst_logit.dtype
        speeds = jnp.asarray(self.speeds, dtype)
        return optimal_weights(
            self.hurst, speeds, self.horizon, stationary=self.stationary
        )

    @property
    def initial(self) -> Gaussian:
        """The law of `(X, Y)` at the first time."""
        size, dtype = self.start.mean.shape[0], self.start.mean.dtype
        rest = size * self.num_processes
        if self.stationary:
            speeds = self.speeds
            root = np.linalg.cholesky(1 / (speeds[:, None] + speeds[None]))
        else:
            root = np.zeros((self.num_processes, self.num_processes))
        root_of_y = jnp.asarray(np.kron(np.eye(size), root), dtype)
        mean = jnp.concatenate([self.start.mean, jnp.zeros(rest, dtype)])
        return Gaussian(mean, jax.scipy.linalg.block_diag(self.start.root, root_of_y))

    def coefficients(self, t: Float[Array, ""]) -> Coefficients:
        """Return `A`, `b` and `sigma` of `(X, Y)`.

        Arguments:
            t: The time, which is not used.

        Returns:
            `matrix`, `bias` and `diffusion` of all components, which are constant.
        """
        size, dtype = self.matrix.shape[0], self.matrix.dtype
        eye = jnp.eye(size, dtype=dtype)
        speeds = jnp.asarray(self.speeds, dtype)
        scale, weights = jnp.exp(self.log_scale), self.weights
        to_x = -jnp.kron(eye * scale[:, None], (weights * speeds)[None])
        rest = size * self.num_processes
        matrix = jnp.block(
            [
                [self.matrix, to_x],
                [jnp.zeros((rest, size), dtype), -jnp.kron(eye, jnp.diag(speeds))],
            ]
        )
        ones = jnp.ones((self.num_processes, 1), dtype)
        noise = jnp.concatenate(
            [jnp.diag(scale * weights.sum()), jnp.kron(eye, ones)], axis=0
        )
        return Coefficients(matrix, _padded(self.bias, self.num_processes), noise)

    def transition(
        self, t: Float[Array, ""], dt: Float[Array, ""], inputs: Inputs | None = None
    ) -> Transition:
        """Return the exact step of length `dt`.

        Arguments:
            t: The time at which the step starts, which is not used.
            dt: The length of the step, not negative.
            inputs: `u`, shape `(inputs,)`, held constant over the step, or `None`.

        Returns:
            The law of `(X, Y)` at `t + dt` given that at `t`.
        """
        coefficients = self.coefficients(t)
        force = forced(coefficients.bias, self.input_matrix, inputs)
        return constant_transition(coefficients, dt, force)


def _check_processes(horizon: float, num: int, largest_speed: float) -> None:
    """Raise `ValueError` for what makes no sum of processes."""
    if not (np.isfinite(horizon) and horizon > 0):
        raise ValueError(f"`horizon` is {horizon}: pass a positive length of time.")
    check_count("num_processes", num)
    if not (np.isfinite(largest_speed) and largest_speed > 1):
        raise ValueError(f"`largest_speed` is {largest_speed}: pass a number above 1.")


def _padded(rows: Array, num_processes: int) -> Array:
    """Return `rows` of `X` with rows of zeros for the `Y`."""
    zeros = jnp.zeros((rows.shape[0] * num_processes, *rows.shape[1:]), rows.dtype)
    return jnp.concatenate([rows, zeros])


def optimal_weights(
    hurst: Float[Array, ""],
    speeds: Float[Array, " processes"],
    horizon: float,
    *,
    stationary: bool,
) -> Float[Array, " processes"]:
    """Return the weights that minimize `E int (B^H - sum_k w_k Y_k)^2 dt`.

    They solve `A w = b`, `A_ij = E int Y_i Y_j dt` and `b_i = E int B^H Y_i dt`, whose
    integrals over time are Gauss sums in `sqrt(t)`.

    Source:
        Daems et al. (2024), proposition 5.
    """
    nodes, quadrature = np.polynomial.legendre.leggauss(_NUM_QUADRATURE)
    root = jnp.asarray((nodes + 1) / 2, speeds.dtype)
    t = (horizon * root**2)[:, None]
    quadrature = jnp.asarray(quadrature, speeds.dtype) * root * horizon
    order = hurst + 0.5
    decay = jnp.exp(-speeds[None] * t)
    recent = gammainc(order, speeds[None] * t)
    sums = speeds[:, None] + speeds[None]
    if stationary:
        # The past, s < 0: ((t + v)^(H - 1/2) - v^(H - 1/2)) (e^(-g t) - 1) e^(-g v).
        past = (decay - 1) * (_scaled_tail(order, speeds[None] * t) - 1)
        both = (2 - decay[:, :, None] - decay[:, None, :]) / sums[None]
    else:
        past = jnp.zeros_like(recent)
        both = -jnp.expm1(-sums[None] * t[:, :, None]) / sums[None]
    b = quadrature @ ((speeds**-order)[None] * (recent + past))
    matrix = jnp.tensordot(quadrature, both, 1)
    scale = 1 / jnp.sqrt(jnp.diagonal(matrix))
    normalized = matrix * scale[:, None] * scale[None]
    return scale * jnp.linalg.solve(normalized, scale * b)


def _scaled_tail(order: Float[Array, ""], x: Array) -> Array:
    """Return `exp(x) Q(order, x)`, `Q` the upper incomplete gamma function.

    By its asymptotic series where `x > 30`, where `Q` may underflow.
    """
    far = x > 30
    near_x, far_x = jnp.where(far, 1.0, x), jnp.where(far, x, 30.0)
    term, series = jnp.ones_like(x), jnp.ones_like(x)
    for k in range(1, 8):
        term = term * (order - k) / far_x
        series = series + term
    power = jnp.exp((order - 1) * jnp.log(far_x) - gammaln(order))
    return jnp.where(far, power * series, jnp.exp(near_x) * gammaincc(order, near_x))


def fractional_variance(hurst: ArrayLike, t: ArrayLike, *, stationary: bool) -> Array:
    """Return the exact variance of `B^H(t)`, in the normalization of `FractionalSDE`.

        type II:  t^(2H) / (2 H Gamma(H + 1/2)^2)
        type I:   t^(2H) Gamma(2 - 2H) cos(pi H) / (pi H (1 - 2H))

    Arguments:
        hurst: The Hurst index, in (0, 1), any shape that broadcasts with `t`.
        t: Times since the start, not negative.
        stationary: Whether the motion has a past (type I) or begins at zero (type II).

    Returns:
        The variances, of the broadcast shape.

    Source:
        Mandelbrot and Van Ness (1968), section 3 and equation 6.1.
    """
    hurst, t = as_float(hurst), as_float(t)
    if not stationary:
        log_gamma = gammaln(hurst + 0.5)
        return t ** (2 * hurst) / (2 * hurst) * jnp.exp(-2 * log_gamma)
    # cos(pi H) / (1 - 2H) without its removable singularity at one half.
    ratio = jnp.pi / 2 * jnp.sinc(0.5 - hurst)
    constant = jnp.exp(gammaln(2 - 2 * hurst)) * ratio / (jnp.pi * hurst)
    return t ** (2 * hurst) * constant
