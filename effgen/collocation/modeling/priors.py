"""Normal priors of functions of the parameters, and inputs that are parameters."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, PyTree


class Prior(NamedTuple):
    """A normal prior of a function of the parameters.

        objective + sum of ((function(p, nets) - values) / scale)^2 / (2 n)

    `n` is the number of measured values, over which the misfit is a mean. So each
    number of the function counts like one more measured value. `scale` is a standard
    deviation if the problem's `scale` is that of the noise.

    If each trajectory has a parameter of its own, `Prior(lambda p, nets: p["rate"] -
    p["mean"], 0.2)` gives them one prior with a mean that is fitted.

    Arguments:
        function: `(p, nets)` to a number or a vector.
        scale: The standard deviation, a number or one for each value, in its units.
        values: The means, a number or one for each value, in the same units.
        name: The name of the prior in messages.
    """

    function: Callable[..., Array]
    scale: ArrayLike
    values: ArrayLike = 0.0
    name: str = "prior"


def checked_priors(priors: Any) -> tuple[Prior, ...]:
    """Return the priors as a tuple, with arrays for scales and values.

    Raises:
        TypeError: For an object that is no `Prior`, or a prior without a function.
        ValueError: For scales that are not positive, or values that are not finite.
    """
    if isinstance(priors, Prior):
        priors = (priors,)
    return tuple(_checked(prior) for prior in priors)


def _checked(prior: Any) -> Prior:
    if not (isinstance(prior, Prior) and callable(prior.function)):
        raise TypeError(
            f"`priors` has {prior!r}: pass `Prior(lambda p, nets: ..., scale)`."
        )
    scale, values = (np.asarray(v, np.float64) for v in (prior.scale, prior.values))
    if not (np.all(scale > 0) and np.all(np.isfinite(scale))):
        raise ValueError(
            f"`scale` of {prior.name!r} is {prior.scale}: pass positive numbers."
        )
    if not np.all(np.isfinite(values)):
        raise ValueError(
            f"`values` of {prior.name!r} is {prior.values}: pass finite numbers."
        )
    return prior._replace(scale=scale, values=values)


def prior_loss(
    priors: Sequence[Prior], parameters: PyTree, networks: PyTree
) -> Float[Array, ""]:
    """Return half the sum of the priors' squared residuals, not divided by `n`.

    Raises:
        ValueError: For a function whose result is no vector, or scales of another
            shape.
    """
    return sum((_loss(p, parameters, networks) for p in priors), start=jnp.zeros(()))


def _loss(prior: Prior, parameters: PyTree, networks: PyTree) -> Float[Array, ""]:
    found = jnp.atleast_1d(jnp.asarray(prior.function(parameters, networks)))
    shapes = [np.shape(part) for part in (prior.scale, prior.values)]
    if found.ndim != 1 or not all(s in ((), (1,), found.shape) for s in shapes):
        raise ValueError(
            f"{prior.name!r} is of shape {found.shape}, its `scale` of {shapes[0]} and "
            f"its `values` of {shapes[1]}: pass a function to a vector, and numbers or "
            "a vector like it."
        )
    return 0.5 * jnp.sum(((found - prior.values) / prior.scale) ** 2)


class FreeInput(eqx.Module):
    """An unknown input: its values at knots are parameters.

    It is linear between knots, and constant outside of them. A law calls it, as in
    `p["w"](t)`. Without a prior, the data alone determine the values. A prior of
    `steps` makes it a random walk, and a prior of `bends` a smooth curve:

        priors=[Prior(lambda p, nets: p["w"].steps(), 0.3)]

    The slope changes at knots, so intervals of the mesh should end there. Place knots
    at samples, or pass those in the span as `Trajectory(jumps=)`. Each knot adds a
    parameter, and a column to the border of the program.

    Arguments:
        knots: Two or more increasing times, `(knots,)`.
        values: The first guess of the values there, a number or `(knots,)`.

    Raises:
        ValueError: For times that do not increase, or values of another shape.

    Source:
        Wahba (1978), on smoothing splines as estimates of random walks.
    """

    values: Float[Array, " knots"]
    knots: tuple[float, ...] = eqx.field(static=True)

    def __init__(self, knots: ArrayLike, values: ArrayLike = 0.0) -> None:
        """Check the knots."""
        times, first = np.asarray(knots, np.float64), np.asarray(values, np.float64)
        rise = times.ndim == 1 and len(times) > 1 and np.all(np.diff(times) > 0)
        if not (rise and np.all(np.isfinite(times))):
            raise ValueError(f"`knots` is {knots}: pass two or more times that rise.")
        if first.shape not in ((), times.shape) or not np.all(np.isfinite(first)):
            raise ValueError(
                f"`values` is {values}: pass finite numbers, ({len(times)},)."
            )
        self.values = jnp.asarray(np.broadcast_to(first, times.shape))
        self.knots = tuple(times.tolist())

    def __call__(self, t: Any) -> Float[Array, "..."]:
        """Return the input at `t`.

        Arguments:
            t: The time, a number or an array.

        Returns:
            The input, in the shape of `t`.
        """
        return jnp.interp(t, jnp.asarray(self.knots), self.values)

    def steps(self) -> Float[Array, " steps"]:
        """Return the steps between knots, divided by the root of the time between them.

        For a random walk they all have the same standard deviation, in units of the
        input per root of time.

        Returns:
            The steps, `(knots - 1,)`.
        """
        return jnp.diff(self.values) / jnp.sqrt(jnp.diff(jnp.asarray(self.knots)))

    def bends(self) -> Float[Array, " bends"]:
        """Return the changes of slope at inner knots, divided by the root of the time.

        The time is half of that between the two neighbors. If the slope is a random
        walk, all have about the same standard deviation.

        Returns:
            The bends, `(knots - 2,)`.
        """
        gaps = jnp.diff(jnp.asarray(self.knots))
        turns = jnp.diff(jnp.diff(self.values) / gaps)
        return turns / jnp.sqrt((gaps[1:] + gaps[:-1]) / 2)


def check_prior_shapes(priors: Sequence[Prior], given: tuple[Any, ...]) -> None:
    """Raise `ValueError` for priors of shapes that do not fit, before any compute."""
    for prior in priors:
        eqx.filter_eval_shape(lambda *given, one=prior: _loss(one, *given), *given)
