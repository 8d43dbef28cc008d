"""Networks for drifts and residuals, zero at first: models begin linear and exact."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from .linear import AbstractLinearSDE, noise_size


def num_features(num_states: int, num_inputs: int = 0) -> int:
    """Return how many numbers the residual network sees: `2 + 2 state + inputs`."""
    return 2 + 2 * num_states + num_inputs


class DriftNetwork(eqx.Module):
    """A multilayer perceptron of `x`, zero at first, for `LatentSDE(drift=...)`.

    The last layer begins at zero, so that the model begins linear and its bound exact.
    It sees the state alone; `drift` may be any other function of `(t, x)`.
    """

    layers: eqx.nn.MLP

    def __init__(
        self,
        num_states: int,
        *,
        key: PRNGKeyArray,
        width_size: int = 64,
        depth: int = 2,
        num_inputs: int = 0,
    ) -> None:
        """Make the network."""
        self.layers = zero_at_first(
            num_states + num_inputs, num_states, width_size, depth, key=key
        )

    def __call__(
        self, t: Float[Array, ""], x: Float[Array, " state"], u: Array | None = None
    ) -> Float[Array, " state"]:
        """Return the drift beside the linear one."""
        return self.layers(x if u is None else jnp.concatenate([x, u]))


def zero_at_first(
    size: int, out: int, width_size: int, depth: int, *, key: PRNGKeyArray
) -> eqx.nn.MLP:
    """Return a multilayer perceptron whose last layer is zero."""
    layers = eqx.nn.MLP(size, out, width_size, depth, activation=jax.nn.tanh, key=key)
    last = lambda mlp: (mlp.layers[-1].weight, mlp.layers[-1].bias)
    return eqx.tree_at(last, layers, replace_fn=jnp.zeros_like)


class Residual(eqx.Module):
    """A multilayer perceptron whose last layer is zero at first."""

    layers: eqx.nn.MLP

    def __call__(self, features: Float[Array, " features"]) -> Float[Array, " noise"]:
        """Return the control beside the optimal linear one."""
        return self.layers(features)


def residual_network(
    linear: AbstractLinearSDE,
    *,
    key: PRNGKeyArray,
    width_size: int = 64,
    depth: int = 2,
    num_inputs: int = 0,
) -> Residual:
    """Return a network for `LatentSDE(residual=...)`, zero at first.

    Its features are `t` since the first time, the time to the next observation, `x`,
    `arcsinh` of the drift that the linear control makes (it grows like one over the
    noise of the observations), and the inputs; its values, the control `v` of each
    normal variable of a step.
    """
    size = linear.initial.mean.shape[0]
    seen = num_features(size, num_inputs)
    noise = noise_size(linear)
    return Residual(zero_at_first(seen, noise, width_size, depth, key=key))
