"""A latent SDE as the rest of the package sees it: its law, and how it is observed.

Anchors, bounds, filters and answers are written against this; `LatentSDE`, which holds
an anchor and a control of its own, is the one that users make.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from effgen.neural_sde.linear_sdes.linear import AbstractLinearSDE, forced, noise_size
from effgen.neural_sde.observing.decoders import AbstractDecoder


Drift = Callable[..., Float[Array, " state"]]
Diffusion = Callable[[Float[Array, ""], Float[Array, " state"]], Array]


class AbstractLatentSDE(eqx.Module):
    """A latent SDE as anchors, bounds, filters and answers see it.

        dX = (A X + b + C u + drift(t, X)) dt + sigma dW

    `LatentSDE` describes its attributes.
    """

    linear: eqx.AbstractVar[AbstractLinearSDE]
    decoder: eqx.AbstractVar[AbstractDecoder]
    drift: eqx.AbstractVar[Drift | None]
    residual: eqx.AbstractVar[Callable[[Float[Array, " features"]], Array] | None]
    diffusion: eqx.AbstractVar[Diffusion | None]
    control: eqx.AbstractVar[Any]
    anchor: eqx.AbstractVar[Any]
    t0: eqx.AbstractVar[float | None]
    message_dtype: eqx.AbstractVar[Any]
    dt: eqx.AbstractVar[float]

    @property
    def num_states(self) -> int:
        """The number of components of the state."""
        return self.linear.initial.mean.shape[0]

    @property
    def noise_size(self) -> int:
        """The number of normal variables of one step."""
        return noise_size(self.linear)

    def prior_drift(
        self, t: Float[Array, ""], x: Float[Array, " state"], u: Array | None = None
    ) -> Float[Array, " state"]:
        """Return the whole drift of the prior.

        Arguments:
            t: The time, a scalar.
            x: A state, shape `(state,)`.
            u: The inputs, shape `(inputs,)`, or `None`.

        Returns:
            Shape `(state,)`, units of the state over the unit of time.
        """
        matrix, bias, _ = self.linear.coefficients(t)
        linear = matrix @ x + forced(bias, self.linear.input_matrix, u)
        return linear if self.drift is None else linear + self.nonlinear_drift(t, x, u)

    def nonlinear_drift(
        self, t: Float[Array, ""], x: Float[Array, " state"], u: Array | None
    ) -> Float[Array, " state"]:
        """Return the drift beside the linear one, zero where there is none.

        Arguments:
            t: The time, a scalar.
            x: A state, shape `(state,)`.
            u: The inputs, shape `(inputs,)`, or `None`.

        Returns:
            Shape `(state,)`, units of the state over the unit of time.

        Raises:
            ValueError: For a `drift` of another shape.
        """
        if self.drift is None:
            return jnp.zeros_like(x)
        found = self.drift(t, x) if u is None else self.drift(t, x, u)
        if jnp.shape(found) != x.shape:
            raise ValueError(
                f"`drift` returns shape {jnp.shape(found)}: pass a function to "
                f"{x.shape}."
            )
        return found

    def prior_diffusion(
        self, t: Float[Array, ""], x: Float[Array, " state"]
    ) -> Float[Array, "state brownian"]:
        """Return `sigma(t, x)`, zero where it is not a number.

        A root of a state that a step has taken below zero is cut off there: Lord,
        Koekkoek and van Dijk's (2010) full truncation.

        Arguments:
            t: The time, a scalar.
            x: A state, shape `(state,)`.

        Returns:
            Shape `(state, brownian)`, units of the state over the root of that of time.

        Raises:
            ValueError: For a `diffusion` of another shape.
        """
        if self.diffusion is None:
            return self.linear.coefficients(t).diffusion
        sigma = self.diffusion(t, x)
        if sigma.shape not in (x.shape, x.shape * 2):
            raise ValueError(
                f"`diffusion` returns shape {sigma.shape}: pass a function to "
                f"{x.shape} or {x.shape * 2}."
            )
        sigma = jnp.where(jnp.isnan(sigma), 0, sigma)
        return jnp.diag(sigma) if sigma.ndim == 1 else sigma
