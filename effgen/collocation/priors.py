"""What is known of parameters beforehand: normal priors of any function of them."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, PyTree


class Prior(NamedTuple):
    """Knowledge of parameters that counts like more measured values.

        objective + sum of ((function(p, nets) - values) / scale)^2 / (2 n)

    `n` is the number of measured values, of which the misfit is the mean. So `scale` is
    a standard deviation where the problem's `scale` is the noise's. Parameters of all
    trajectories share one by `Prior(lambda p, nets: p["rate"] - p["mean"], 0.2)`.

    Arguments:
        function: `(p, nets)` to a number or a vector.
        scale: The standard deviation, a number or one of each value, in its units.
        values: What the values are thought to be, likewise.
        name: What messages call it.
    """

    function: Callable[..., Array]
    scale: ArrayLike
    values: ArrayLike = 0.0
    name: str = "prior"


def checked_priors(priors: Any) -> tuple[Prior, ...]:
    """Return priors of positive scales.

    Raises:
        TypeError: For what is no `Prior`, or has no function.
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
    """Return half the squares of what priors know, not divided by the count.

    Raises:
        ValueError: For a function that is no vector, or scales of another shape.
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
    """An input that is not known: parameters at knots, linear between, constant past.

    A law calls it, `p["w"](t)`. Without a prior the data alone tell the values: `steps`
    are what a random walk makes, `bends` what a smooth curve has.

        priors=[Prior(lambda p, nets: p["w"].steps(), 0.3)]

    Intervals should end at knots, where it bends: have knots at samples, or
    `Trajectory(jumps=knots)`. Each knot is a parameter, with a column of its own.

    Arguments:
        knots: Two or more times that rise, `(knots,)`.
        values: The first guess at these, a number or `(knots,)`.

    Raises:
        ValueError: For times that do not rise, or values of another shape.

    Source:
        Wahba (1978), of splines as what random walks are smoothed to.
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
        """Return the steps between knots, by the root of the time between.

        Of a random walk all have one standard deviation, in units by root time.

        Returns:
            The steps, `(knots - 1,)`.
        """
        return jnp.diff(self.values) / jnp.sqrt(jnp.diff(jnp.asarray(self.knots)))

    def bends(self) -> Float[Array, " bends"]:
        """Return the changes of slope at inner knots, by the root of the time there.

        Of a slope that is a random walk all have about one standard deviation.

        Returns:
            The bends, `(knots - 2,)`.
        """
        gaps = jnp.diff(jnp.asarray(self.knots))
        turns = jnp.diff(jnp.diff(self.values) / gaps)
        return turns / jnp.sqrt((gaps[1:] + gaps[:-1]) / 2)


def check_prior_shapes(priors: Sequence[Prior], given: tuple[Any, ...]) -> None:
    """Raise `ValueError` for priors of shapes that do not fit, without compute."""
    for prior in priors:
        eqx.filter_eval_shape(lambda *given, one=prior: _loss(one, *given), *given)
