"""Costs of residuals: half the square, or less for a large residual."""

import abc

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


class AbstractMisfit(eqx.Module):
    """The cost of a residual: convex, and `residual^2 / 2` near zero."""

    @abc.abstractmethod
    def __call__(self, residual: Float[Array, "..."]) -> Float[Array, "..."]:
        """Return the cost of each residual.

        Arguments:
            residual: Residuals divided by the problem's `scale`.

        Returns:
            The costs, in the same shape.
        """


class Squares(AbstractMisfit):
    """Least squares, for normal noise.

        residual^2 / 2

    It has no arguments.
    """

    def __call__(self, residual: Float[Array, "..."]) -> Float[Array, "..."]:
        """Return half the squares.

        Arguments:
            residual: Residuals divided by the problem's `scale`.

        Returns:
            The costs, in the same shape.
        """
        return 0.5 * residual**2


class Huber(AbstractMisfit):
    """Huber's cost: a square up to a threshold, and linear beyond it.

        residual^2 / 2                                   |residual| <= threshold
        threshold |residual| - threshold^2 / 2           else

    The derivative of an outlier's cost is at most `threshold`.

    Arguments:
        threshold: In units of the problem's `scale`, the noise's standard deviation.
            With the default and normal noise, variances are about 5 % above those of
            least squares.

    Raises:
        ValueError: Unless `threshold` is positive.

    Source:
        Huber (1964).
    """

    threshold: float = 1.345

    def __check_init__(self) -> None:
        """Raise `ValueError` for a threshold that is not positive."""
        _check_threshold(self.threshold)

    def __call__(self, residual: Float[Array, "..."]) -> Float[Array, "..."]:
        """Return the costs.

        Arguments:
            residual: Residuals divided by the problem's `scale`.

        Returns:
            The costs, in the same shape.
        """
        size = jnp.abs(residual)
        line = self.threshold * size - 0.5 * self.threshold**2
        return jnp.where(size <= self.threshold, 0.5 * residual**2, line)


class SoftL1(AbstractMisfit):
    """A smooth form of `Huber`: a square near zero, and linear for large residuals.

        threshold^2 (sqrt(1 + (residual / threshold)^2) - 1)

    Arguments:
        threshold: In units of the problem's `scale`, the noise's standard deviation.

    Raises:
        ValueError: Unless `threshold` is positive.

    Source:
        Charbonnier, Blanc-Féraud, Aubert and Barlaud (1994); `soft_l1` of SciPy.
    """

    threshold: float = 1.0

    def __check_init__(self) -> None:
        """Raise `ValueError` for a threshold that is not positive."""
        _check_threshold(self.threshold)

    def __call__(self, residual: Float[Array, "..."]) -> Float[Array, "..."]:
        """Return the costs.

        Arguments:
            residual: Residuals divided by the problem's `scale`.

        Returns:
            The costs, in the same shape.
        """
        share = (residual / self.threshold) ** 2
        return self.threshold**2 * share / (jnp.sqrt(1 + share) + 1)


def _check_threshold(threshold: float) -> None:
    if not 0 < threshold < np.inf:
        raise ValueError(f"`threshold` is {threshold}: pass a positive number.")


def check_misfit(misfit: AbstractMisfit, *, scaled: bool) -> None:
    """Raise for an object that is no misfit, or a threshold without a unit.

    Raises:
        TypeError: If `misfit` is no misfit.
        ValueError: For a threshold without a `scale`. The default scale is the standard
            deviation of the data, and no residual is large relative to it.
    """
    if not isinstance(misfit, AbstractMisfit):
        raise TypeError(f"`misfit` is {misfit!r}: pass `Huber()`, `SoftL1()` or such.")
    if not (scaled or isinstance(misfit, Squares)):
        raise ValueError(
            f"`misfit` is {misfit}, and there is no `scale`: pass the noise's standard "
            "deviation, of which the threshold is a multiple."
        )


def influence(
    misfit: AbstractMisfit, residuals: Float[np.ndarray, "samples outputs"]
) -> tuple[Float[np.ndarray, "samples outputs"], Float[np.ndarray, "samples outputs"]]:
    """Return the first and the second derivative of the costs of residuals."""
    slope = jax.vmap(jax.vmap(jax.grad(misfit)))
    given = jnp.asarray(residuals)
    first, second = jax.jvp(slope, (given,), (jnp.ones_like(given),))
    return np.asarray(first), np.asarray(second)
