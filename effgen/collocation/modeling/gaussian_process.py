"""A function drawn from a Gaussian process, linear in its weights."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from effgen.core.contract.counts import check_count

from .unit_inputs import positive_of_each_input, unit_inputs


_LEAST_SHARE = 1e-8  # of the largest eigenvalue; smaller directions are dropped
_WIDE = 2.0  # lengthscale in standard deviations, where none is given


class GaussianProcess(eqx.Module):
    """A smooth function of a few inputs, linear in its weights, which begin at zero.

        features(x) @ weights,  features(x) = k(x, points) @ directions
        k(x, z) = exp(-|x - z|^2 / 2) + x @ z

    Inputs are less the points' mean and divided by `lengthscale`.

    `directions` diagonalize `k(points, points)`. If the weights have a normal prior of
    variance `1 / alpha`, as `weight_decay` and `choose` say, the function is drawn from
    the Gaussian process of covariance `k / alpha`, for which `points` are inducing
    points. It is zero where its weights are zero, as `Deviation` is. A law that is
    linear in its weights is fitted in few iterations. Use it for one to three inputs:
    points have to fill the region that the states visit. Outside of it the function
    goes over to a linear one.

    Arguments:
        points: Where the function is resolved, `(points, inputs)`, or `(points,)` for
            one input, in their units: such as the samples. Of more than `num_points`
            those that are farthest apart are taken.
        lengthscale: How far the function keeps its value, a number or `(inputs,)`, in
            the inputs' units. By default twice the points' standard deviation. `choose`
            compares several by the evidence.
        num_points: The most inducing points.

    Raises:
        TypeError: For `points` that are no numbers.
        ValueError: For `points` that are no finite matrix of two rows or more, inputs
            that do not vary, a `lengthscale` out of range, or no count `num_points`.

    Source:
        Rasmussen and Williams (2006), section 8.1.
    """

    weights: Float[Array, " weights"]
    points: tuple[tuple[float, ...], ...] = eqx.field(static=True, repr=False)
    center: tuple[float, ...] = eqx.field(static=True)
    lengthscale: tuple[float, ...] = eqx.field(static=True)
    directions: tuple[tuple[float, ...], ...] = eqx.field(static=True, repr=False)

    def __init__(
        self,
        points: Any,
        *,
        lengthscale: Any = None,
        num_points: int = 100,
    ) -> None:
        """Choose the inducing points and begin at zero."""
        check_count("num_points", num_points)
        rows = _checked_points(points)
        scale = _checked_lengthscale(lengthscale, rows)
        center = rows.mean(0)
        unit = _farthest(np.unique((rows - center) / scale, axis=0), num_points)
        directions = _directions(unit)
        self.weights = jnp.zeros(directions.shape[1], float)
        self.points = tuple(map(tuple, (center + unit * scale).tolist()))
        self.center = tuple(center.tolist())
        self.lengthscale = tuple(scale.tolist())
        self.directions = tuple(map(tuple, directions.tolist()))

    def __call__(self, x: Float[Array, " inputs"]) -> Float[Array, ""]:
        """Return the function at one input.

        Arguments:
            x: The input, `(inputs,)`, or a scalar for one input.

        Returns:
            A scalar, in the units of what it is added to.

        Raises:
            ValueError: For another number of inputs.
        """
        center, scale = self.center, self.lengthscale
        unit = unit_inputs("GaussianProcess", x, center, scale)
        points = (np.array(self.points) - np.array(center)) / np.array(scale)
        distances = jnp.sum((unit[None] - points) ** 2, axis=1)
        kernel = jnp.exp(-distances / 2) + points @ unit
        return kernel @ np.array(self.directions) @ self.weights


def _checked_points(points: Any) -> np.ndarray:
    try:
        rows = np.asarray(points, float)
    except (TypeError, ValueError):
        raise TypeError(
            f"`points` is a {type(points).__name__} that is no matrix of numbers: pass "
            "two or more rows, (points, inputs), such as the samples."
        ) from None
    rows = rows[:, None] if rows.ndim == 1 else rows
    if rows.ndim != 2 or len(rows) < 2 or not np.all(np.isfinite(rows)):
        raise ValueError(
            f"`points` has shape {np.shape(points)}: pass two or more finite rows, "
            "(points, inputs)."
        )
    return rows


def _checked_lengthscale(lengthscale: Any, rows: np.ndarray) -> np.ndarray:
    if lengthscale is None:
        spread = rows.std(0)
        if not np.all(spread > 1e-12 * np.abs(rows).max(0)):
            raise ValueError(
                "a column of `points` does not vary: leave it out, or pass a "
                "`lengthscale`."
            )
        return _WIDE * spread
    return np.array(positive_of_each_input("lengthscale", lengthscale, rows.shape[1]))


def _farthest(rows: np.ndarray, most: int) -> np.ndarray:
    """Return up to `most` rows, each the farthest from those before it."""
    if len(rows) <= most:
        return rows
    to = lambda row: np.sum((rows - row) ** 2, axis=1)
    chosen = [int(np.argmin(to(rows.mean(0))))]
    nearest = to(rows[chosen[0]])
    while len(chosen) < most:
        chosen.append(int(np.argmax(nearest)))
        nearest = np.minimum(nearest, to(rows[chosen[-1]]))
    return rows[chosen]


def _directions(unit: np.ndarray) -> np.ndarray:
    """Return `V / sqrt(s)` of `k(points, points) = V diag(s) V^T`, largest first."""
    squares = np.sum((unit[:, None] - unit[None]) ** 2, axis=-1)
    values, vectors = np.linalg.eigh(np.exp(-squares / 2) + unit @ unit.T)
    kept = values > _LEAST_SHARE * values.max()
    return (vectors[:, kept] / np.sqrt(values[kept]))[:, ::-1]
