"""A Gaussian by its mean and a root of its covariance, which may be singular."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float

from .noise import standard_normal


class Gaussian(eqx.Module):
    """`N(mean, root root^T)`; `root` may have fewer columns than rows, or zeros.

    Arguments:
        mean: Shape `(state,)`.
        root: A root of the covariance, shape `(state, noise)`.

    Raises:
        ValueError: For shapes that do not agree, and values that are not finite.

    >>> import jax.numpy as jnp
    >>> Gaussian.independent(jnp.zeros(2), 3.0).covariance.tolist()
    [[9.0, 0.0], [0.0, 9.0]]
    """

    mean: Float[Array, " state"]
    root: Float[Array, "state noise"]

    def __init__(self, mean: ArrayLike, root: ArrayLike) -> None:
        """Check the shapes."""
        mean, root = as_float(mean), as_float(root)
        if mean.ndim != 1 or root.ndim != 2 or root.shape[0] != mean.shape[0]:
            raise ValueError(
                f"`mean` has shape {mean.shape} and `root` {root.shape}: pass "
                "(state,) and (state, noise); `Gaussian.independent` takes scales."
            )
        check_finite("mean", mean)
        check_finite("root", root)
        self.mean = mean
        self.root = root

    @classmethod
    def independent(cls, mean: ArrayLike, scale: ArrayLike) -> "Gaussian":
        """Return independent components of these standard deviations.

        Arguments:
            mean: Shape `(state,)`.
            scale: The standard deviations, shape `(state,)`, or one for all.

        Returns:
            The law, with a diagonal root.

        Raises:
            ValueError: For a negative `scale`, and values that are not finite.
        """
        mean = as_float(mean)
        if is_known(as_float(scale)) and bool(jnp.any(as_float(scale) < 0)):
            raise ValueError(f"`scale` is {scale}: no standard deviation is negative.")
        scale = jnp.broadcast_to(as_float(scale), mean.shape)
        return cls(mean, jnp.diag(scale))

    @property
    def covariance(self) -> Float[Array, "state state"]:
        """`root root^T`."""
        return self.root @ self.root.T

    @property
    def scale(self) -> Float[Array, " state"]:
        """The standard deviations, free of NaN gradients where they are zero."""
        variance = jnp.sum(self.root**2, axis=1)
        return jnp.where(
            variance > 0, jnp.sqrt(jnp.where(variance > 0, variance, 1.0)), 0.0
        )

    def sample(self, num: int, *, key: Array) -> Float[Array, "num state"]:
        """Draw independent points.

        Arguments:
            num: How many.
            key: A random key.

        Returns:
            The points, shape `(num, state)`.
        """
        noise = standard_normal(key, (num, self.root.shape[1]), self.mean.dtype)
        return self.mean[None] + noise @ self.root.T


def is_known(value: Array) -> bool:
    """Return whether `value` has numbers, and is not being traced."""
    return not isinstance(value, Tracer)


def check_finite(name: str, value: Array) -> None:
    """Raise `ValueError` for values that are not finite, as far as they are known."""
    if is_known(value) and not bool(np.all(np.isfinite(np.asarray(value)))):
        raise ValueError(f"`{name}` is not finite: {np.asarray(value).tolist()}.")


def all_positive(value: Array) -> bool:
    """Return whether all are positive, as far as that is known."""
    return not is_known(value) or bool(jnp.all(value > 0))


def as_float(value: ArrayLike) -> Array:
    """Return `value` as an array of floating point numbers, of its own precision."""
    array = jnp.asarray(value)
    return array if jnp.issubdtype(array.dtype, jnp.floating) else array.astype(float)
