"""Coordinates in which data have unit scale, while all else stays in their units."""

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt

from effgen.ebm.contract.arguments import as_numbers


class Fixed(eqx.Module):
    """An array that no optimizer sees: it is kept as its bits, which are integers.

    Its gradient is zero; weight decay and momentum leave it alone.

    Arguments:
        array: The array, kept in JAX's default precision.

    Attributes:
        bits: The array's bits.
    """

    bits: UInt[Array, "..."]

    def __init__(self, array: Any) -> None:
        """Keep `array`, in JAX's default precision."""
        array = jnp.asarray(array, jnp.result_type(float))
        self.bits = jax.lax.bitcast_convert_type(array, f"uint{8 * array.itemsize}")

    @property
    def value(self) -> Float[Array, "..."]:
        """The array."""
        dtype = f"float{8 * self.bits.dtype.itemsize}"
        return jax.lax.bitcast_convert_type(self.bits, dtype)


class AbstractCoordinates(eqx.Module):
    """An affine map of an example, `z = W (x - mean)`, that is fixed.

    Give it to an energy's constructor and to `Walkers.from_gaussian`, and its factor to
    `ULA` or `MALA` as `scale=coordinates.factor`. The moves are then those of `z`.
    Data, samples and likelihoods stay in the user's own units.

    Attributes:
        mean: The mean, as its bits, which no optimizer sees; `mean.value` in units of
            the data.
        log_determinant: `log |det W|`, in nats.
        factor: `W^-1`, as a kernel's `scale` takes it.
    """

    mean: eqx.AbstractVar[Fixed]

    @abc.abstractmethod
    def __call__(self, x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """Return `z` of one example.

        Arguments:
            x: An example, shape `(*shape,)`, in units of the data.

        Returns:
            `z`, of the same shape.
        """

    @abc.abstractmethod
    def inverse(self, z: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """Return the example at `z`.

        Arguments:
            z: Coordinates, shape `(*shape,)`.

        Returns:
            The example, of the same shape, in units of the data.
        """

    @property
    @abc.abstractmethod
    def log_determinant(self) -> Float[Array, ""]:
        """`log |det W|`: what a log-density of `x` has more than one of `z`."""

    @property
    @abc.abstractmethod
    def factor(self) -> Float[Array, "..."]:
        """`W^-1`, as a kernel's `scale` takes it."""


class Standardized(AbstractCoordinates):
    """Every entry less its mean, over its standard deviation.

        z = (x - mean) / deviation

    `Standardized.of(data)` makes them.

    Arguments:
        mean: Of each entry, of the shape of an example, as its bits.
        deviation: The standard deviation of each entry, of the same shape, as its bits.
    """

    mean: Fixed
    deviation: Fixed

    @classmethod
    def of(cls, data: Float[Array, "examples *shape"]) -> "Standardized":
        """Return the coordinates in which `data` have mean 0 and deviation 1.

        An entry that never changes keeps its own unit.

        Arguments:
            data: Examples, shape `(examples, *shape)`, 2 or more.

        Returns:
            The coordinates of one example.

        Raises:
            ValueError: For fewer than 2 examples, or values not finite.
            TypeError: For data that are no numbers.
        """
        rows = _checked(data)
        # By comparison: the deviation of a constant may be a rounding error.
        varies = (rows != rows[:1]).any(axis=0)
        deviation = np.where(varies, rows.std(axis=0), 1.0)
        return cls(Fixed(rows.mean(axis=0)), Fixed(deviation))

    def __call__(self, x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """Return `z` of one example.

        Arguments:
            x: An example, shape `(*shape,)`, in units of the data.

        Returns:
            `z`, of the same shape.
        """
        return (x - self.mean.value) / self.deviation.value

    def inverse(self, z: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """Return the example at `z`.

        Arguments:
            z: Coordinates, shape `(*shape,)`.

        Returns:
            The example, of the same shape, in units of the data.
        """
        return self.mean.value + self.deviation.value * z

    @property
    def log_determinant(self) -> Float[Array, ""]:
        """`-sum(log(deviation))`."""
        return -jnp.sum(jnp.log(self.deviation.value))

    @property
    def factor(self) -> Float[Array, "*shape"]:
        """The deviations."""
        return self.deviation.value


class Whitened(AbstractCoordinates):
    """Coordinates in which data have unit covariance, by principal components.

        z = matrix (x - mean)

    `Whitened.of(data)` makes them. Each array is kept as its bits.

    Arguments:
        mean: Of each entry, shape `(size,)`, where `size` counts an example's entries.
        matrix: `W`, shape `(size, size)`.
        unwhitening: `W^-1`, shape `(size, size)`.
        logarithm: `log |det W|`, one number.
    """

    mean: Fixed
    matrix: Fixed
    unwhitening: Fixed
    logarithm: Fixed

    @classmethod
    def of(
        cls, data: Float[Array, "examples *shape"], *, noise: float = 0.0
    ) -> "Whitened":
        """Return the coordinates in which `data` have unit covariance.

        Arguments:
            data: Examples, shape `(examples, *shape)`, 2 or more.
            noise: The standard deviation of noise that the data will have besides, in
                their units.

        Returns:
            The coordinates of one example.

        Raises:
            ValueError: For fewer than 2 examples, values not finite, noise below 0, or
                a covariance that is singular to working precision.
            TypeError: For data that are no numbers.
        """
        rows = _checked(data)
        if not 0 <= noise < np.inf:
            raise ValueError(f"`noise` is {noise}: pass a number of 0 or more.")
        flat = rows.reshape(len(rows), -1)
        covariance = np.atleast_2d(np.cov(flat.T)) + noise**2 * np.eye(flat.shape[1])
        # Of standard columns, so that their units do not matter.
        units = np.sqrt(np.diag(covariance))
        units = np.where(units > 0, units, 1.0)
        values, vectors = np.linalg.eigh(covariance / np.outer(units, units))
        if not values[0] > 1e-6 * values[-1]:
            raise ValueError(
                "`data` have a covariance that is singular to working precision "
                f"(of standard columns, eigenvalues {values[0]:.1e} to "
                f"{values[-1]:.1e}): drop columns that "
                "others determine, pass `noise=...`, or use `ebm.Standardized`."
            )
        return cls(
            mean=Fixed(flat.mean(axis=0)),
            matrix=Fixed((vectors / np.sqrt(values)).T / units),
            unwhitening=Fixed(units[:, None] * vectors * np.sqrt(values)),
            logarithm=Fixed(-0.5 * np.log(values).sum() - np.log(units).sum()),
        )

    def __call__(self, x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """Return `z` of one example.

        Arguments:
            x: An example, shape `(*shape,)`, in units of the data.

        Returns:
            `z`, of the same shape.
        """
        return (self.matrix.value @ (x.reshape(-1) - self.mean.value)).reshape(x.shape)

    def inverse(self, z: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """Return the example at `z`.

        Arguments:
            z: Coordinates, shape `(*shape,)`.

        Returns:
            The example, of the same shape, in units of the data.
        """
        moved = self.unwhitening.value @ z.reshape(-1)
        return (self.mean.value + moved).reshape(z.shape)

    @property
    def log_determinant(self) -> Float[Array, ""]:
        """Minus half the logarithm of the covariance's determinant."""
        return self.logarithm.value

    @property
    def factor(self) -> Float[Array, "size size"]:
        """`W^-1`."""
        return self.unwhitening.value


def check_coordinates(coordinates: Any, shape: tuple[int, ...] | None = None) -> None:
    """Raise on what are no coordinates, or not those of an example of `shape`."""
    if coordinates is None:
        return
    if not isinstance(coordinates, AbstractCoordinates):
        raise TypeError(
            f"`coordinates` is a {type(coordinates).__name__}: pass "
            "`ebm.Standardized.of(data)`, or `ebm.Whitened.of(data)`."
        )
    size, own = coordinates.mean.bits.size, coordinates.mean.bits.shape
    if shape is not None and size != int(np.prod(shape)):
        raise ValueError(
            f"`coordinates` are of {size} numbers, an example of `shape` {shape} has "
            f"{int(np.prod(shape))}: make them of the data that the model is of."
        )
    # Whitened ones are of any example with as many entries.
    if shape is not None and isinstance(coordinates, Standardized) and own != shape:
        raise ValueError(
            f"`coordinates` are of examples of shape {own}, not {shape}: make them of "
            "data whose rows have the `shape` of the model."
        )


def _checked(data: Any) -> np.ndarray:
    rows = as_numbers("data", data).astype(np.float64)
    if rows.ndim < 1 or len(rows) < 2:
        raise ValueError(f"`data` has shape {rows.shape}: pass at least 2 examples.")
    if not np.isfinite(rows).all():
        raise ValueError("`data` has values that are not finite: drop or fill them.")
    return rows
