"""Steps of paths by the normal variables that make them, with a guide's density."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from effgen.neural_sde.bounds.paths import (
    Step,
    control_of,
    drift_difference,
    relative_law,
)
from effgen.neural_sde.modeling.dynamics import AbstractLatentSDE


class Innovation(NamedTuple):
    """A step of paths as `X' = mean + root T z`, and how a guide draws `z`.

    The prior's `z` is `N(0, I)`; a guide's has `factor^T z - center ~ N(0, I)`.

    Attributes:
        mean: Where the step leads where `z` is zero.
        factor: Lower triangular, of one path or of each.
        center: Of each path.
        spread: `T`, the noise of each path relative to the linear one, or `None` where
            they are equal.
        root: The linear noise's root.
    """

    mean: Float[Array, "paths state"]
    factor: Float[Array, "noise noise"] | Float[Array, "paths noise noise"]
    center: Float[Array, "paths noise"]
    spread: Float[Array, "paths noise noise"] | None
    root: Float[Array, "state noise"]

    def sample(self, noise: Float[Array, "paths noise"]) -> Float[Array, "paths noise"]:
        """Return the guide's `z` from standard normal noise."""
        whole = self.center + noise
        factor = jnp.broadcast_to(self.factor, (len(whole), *self.factor.shape[-2:]))
        back = lambda c, z: jax.scipy.linalg.solve_triangular(c, z, lower=True, trans=1)
        return jax.vmap(back)(factor, whole)

    def log_prob(self, z: Float[Array, "paths noise"]) -> Float[Array, " paths"]:
        """Return the guide's log-density, up to the constant of a standard normal."""
        error = jnp.einsum("...ji,...j->...i", self.factor, z) - self.center
        diagonal = jnp.diagonal(self.factor, axis1=-2, axis2=-1)
        return jnp.sum(jnp.log(diagonal), axis=-1) - 0.5 * jnp.sum(error**2, axis=-1)

    def shift(self, z: Float[Array, "paths noise"]) -> Float[Array, "paths state"]:
        """Return `root T z`."""
        if self.spread is not None:
            z = jnp.einsum("pij,pj->pi", self.spread, z)
        return z @ self.root.T


def innovation(
    model: AbstractLatentSDE, step: Step, x: Float[Array, "paths state"]
) -> Innovation:
    """Return a step's law of paths under a guide: `stepped`, with its density."""
    guide = step.guide
    linear_control = x @ guide.control.T + guide.control_offset[None]
    control = control_of(model, step, x, linear_control)
    mean = x @ guide.matrix.T + guide.offset[None]
    drift = drift_difference(model, step, x)
    if drift is not None:
        move = drift @ guide.push.T
        mean = mean + move @ guide.reduction.T
        linear_control = linear_control - move @ guide.feedback.T
    mean = mean - linear_control @ guide.prior_root.T
    if model.diffusion is None:
        factor, spread = jnp.linalg.cholesky(guide.square), None
        center = linear_control @ factor
    else:
        _, center, factor, spread = relative_law(model, step, x, linear_control)
    center = center if control is None else center + control
    return Innovation(mean, factor, center, spread, guide.prior_root)
