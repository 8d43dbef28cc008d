"""A loss of one array, minimized on the host by its compiled gradient.

One program, the loss with its gradient, serves the units of the first step, the
minimum, and the curvature there. To compile it is most of what a fit of a linear model
costs. A minimizer that is compiled as a whole, and second derivatives beside it, take
several times as long to compile.
"""

import warnings
from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


Loss = Callable[..., Array]
Slope = Float[np.ndarray, " parameters"]

# Of central differences, in units of the curvature: the error is the square of it.
_STEP = 1e-4
_MOST_TRIES = 8
# What the minimum may still be below, in the loss's unit, where rounding ends a search.
_NEAR = 1e-6
# A loss that is not finite counts as so much above the first.
_FAR = 1e3


class Minimum(NamedTuple):
    """Where a loss is least.

    Attributes:
        x: The parameters.
        loss: The least loss.
        num_steps: How many steps were taken.
        converged: Whether they converged.
    """

    x: Array
    loss: float
    num_steps: int
    converged: bool


@eqx.filter_jit
def _sloped(loss: Loss, x: Array) -> tuple[Array, Array]:
    return jax.value_and_grad(loss)(x)


def sloped(loss: Loss, x: Slope) -> tuple[float, Slope]:
    """Return a loss and its gradient, as numbers of the host."""
    value, slope = _sloped(loss, jnp.asarray(x))
    return float(value), np.asarray(slope)


def minimized(
    loss: Loss, start: Array, units: Array, max_steps: int, tol: float
) -> Minimum:
    """Return where a loss is least, by BFGS.

    Arguments:
        loss: A function of the parameters, a module whose arrays are traced.
        start: Where the parameters start.
        units: The size of each parameter's first step.
        max_steps: The most steps.
        tol: The largest slope, in these units, of a minimum.

    Returns:
        The minimum. It has also converged where rounding ends the search and the
            curvature that was found says that the loss is least to one in a million.
    """
    from scipy.optimize import minimize

    scale = np.asarray(units)
    first, slope = sloped(loss, np.asarray(start))
    begins = np.isfinite(first) and np.all(np.isfinite(slope))
    wall = first + _FAR * (1 + abs(first))

    def told(z: Slope) -> tuple[float, Slope]:
        value, slope = sloped(loss, scale * z)
        if np.isfinite(value) and np.all(np.isfinite(slope)):
            return value, scale * slope
        return wall, np.zeros_like(z)

    options = {"maxiter": max_steps, "gtol": tol}
    z = np.asarray(start) / scale
    with warnings.catch_warnings():
        # Of searches that rounding ends. Whether they have converged is told below.
        warnings.simplefilter("ignore")
        found = minimize(told, z, jac=True, method="BFGS", options=options)
    # Of a loss near 1e4 the tolerance may be below the rounding of its slope.
    left = 0.5 * found.jac @ found.hess_inv @ found.jac
    converged = found.success or (found.nit < max_steps and 0 <= left < _NEAR)
    x = jnp.asarray(scale * found.x)
    # A search that cannot begin ends at once, with the slope of zero that it was told.
    return Minimum(x, float(found.fun), int(found.nit), bool(begins and converged))


def units_of(loss: Loss, is_log: Array, start: Array) -> Array:
    """Return the size of each parameter's first step: one for logarithms.

    For the others it is that of the curvature: an offset of a million would not move by
    steps of one, and a fit would seem to have converged.

    Arguments:
        loss: A function of the parameters, a module whose arrays are traced.
        is_log: One where a parameter is kept by its logarithm.
        start: Where the parameters start.

    Returns:
        Of the shape of `start`.
    """
    units, x = np.ones(start.shape), np.asarray(start)
    for i in np.flatnonzero(np.asarray(is_log) == 0):
        units[i] = _unit(loss, x, int(i))
    return jnp.asarray(units)


def _unit(loss: Loss, x: Slope, i: int) -> float:
    """Return the deviation of the normal law with the curvature along a parameter.

    The step of the differences is made to fit what it finds; of a loss that is flat
    there, the unit is one.
    """
    unit = max(abs(float(x[i])), 1.0)
    for _ in range(_MOST_TRIES):
        bend = abs(_bent(loss, x, i, _STEP * unit)[i])
        if not np.isfinite(bend):
            unit = unit / 100
            continue
        if bend == 0:
            return 1.0
        found = 1 / np.sqrt(bend)
        if 0.3 < found / unit < 3:
            return float(found)
        unit = float(found)
    return unit if np.isfinite(bend) else 1.0


def _bent(loss: Loss, x: Slope, i: int, step: float) -> Slope:
    """Return how the gradient changes along a parameter, by central differences."""
    ahead, behind = x.copy(), x.copy()
    ahead[i], behind[i] = x[i] + step, x[i] - step
    (_, right), (_, left) = sloped(loss, ahead), sloped(loss, behind)
    return (right - left) / (ahead[i] - behind[i])


def hessian(loss: Loss, is_log: Array, x: Array) -> np.ndarray:
    """Return a loss's second derivatives, by central differences of its gradient.

    In float64 they are right to some seven digits.

    Arguments:
        loss: A function of the parameters, a module whose arrays are traced.
        is_log: One where a parameter is kept by its logarithm.
        x: Where.

    Returns:
        Shape `(parameters, parameters)`, symmetric.
    """
    steps = _STEP * np.asarray(units_of(loss, is_log, x))
    rows = [_bent(loss, np.asarray(x), i, step) for i, step in enumerate(steps)]
    found = np.stack(rows) if rows else np.zeros((0, 0))
    return (found + found.T) / 2
