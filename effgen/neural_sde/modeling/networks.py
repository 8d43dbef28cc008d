"""Networks for drifts and residuals, zero at first: models begin linear and exact."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from effgen.neural_sde.linear_sdes.linear import AbstractLinearSDE, noise_size


def num_features(num_states: int, num_inputs: int = 0) -> int:
    """Return how many numbers the residual network sees: `2 + 2 state + inputs`.

    Arguments:
        num_states: The number of components of the state.
        num_inputs: The number of inputs, 0 for none.

    Returns:
        The size of the network's input.
    """
    return 2 + 2 * num_states + num_inputs


class DriftNetwork(eqx.Module):
    """A multilayer perceptron of `x`, zero at first, for `LatentSDE(drift=...)`.

    The last layer begins at zero, so that the model begins linear and its bound exact.
    It sees the state, and the inputs where there are any, but not the time. `drift` may
    be any other function of `(t, x)` or `(t, x, u)`.

    Arguments:
        num_states: The number of components of the state.
        key: A random key.
        width_size: The width of each hidden layer.
        depth: The number of hidden layers.
        num_inputs: The number of inputs that it sees, 0 for none.
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
        """Return the drift beside the linear one.

        Arguments:
            t: The time, which is not used.
            x: A state, shape `(state,)`.
            u: The inputs, shape `(inputs,)`, or `None`.

        Returns:
            Shape `(state,)`, units of the state over the unit of time.
        """
        return self.layers(x if u is None else jnp.concatenate([x, u]))


def zero_at_first(
    size: int, out: int, width_size: int, depth: int, *, key: PRNGKeyArray
) -> eqx.nn.MLP:
    """Return a multilayer perceptron whose last layer is zero.

    Arguments:
        size: The size of its input.
        out: The size of its output.
        width_size: The width of each hidden layer.
        depth: The number of hidden layers.
        key: A random key.

    Returns:
        The network, with `tanh` between its layers.
    """
    layers = eqx.nn.MLP(size, out, width_size, depth, activation=jax.nn.tanh, key=key)
    last = lambda mlp: (mlp.layers[-1].weight, mlp.layers[-1].bias)
    return eqx.tree_at(last, layers, replace_fn=jnp.zeros_like)


class Residual(eqx.Module):
    """A network for `LatentSDE(residual=...)`: a multilayer perceptron.

    `residual_network` makes one that is zero at first.

    Arguments:
        layers: From the features that `residual_network` names to the control.
        gap: What the first two features, which are times, are divided by; its root
            divides the control.
    """

    layers: eqx.nn.MLP
    gap: float = eqx.field(static=True, default=1.0)

    def __call__(self, features: Float[Array, " features"]) -> Float[Array, " noise"]:
        """Return the control beside the optimal linear one.

        Arguments:
            features: What the network sees, shape `(features,)`.

        Returns:
            The control of each normal variable of a step, shape `(noise,)`.
        """
        times, rest = features[:2], features[2:]
        found = self.layers(jnp.concatenate([times / self.gap, rest]))
        return found / math.sqrt(self.gap)


def residual_network(
    linear: AbstractLinearSDE,
    *,
    key: PRNGKeyArray,
    width_size: int = 64,
    depth: int = 2,
    num_inputs: int = 0,
    gap: float = 1.0,
) -> Residual:
    """Return a network for `LatentSDE(residual=...)`, zero at first.

    It sees the time since the first, the time to the next observation, `x`, `arcsinh`
    of the drift that the linear control makes, and the inputs. That drift grows like
    one over the noise of the observations: hence `arcsinh`.

    Arguments:
        linear: The model's linear part, which gives the sizes.
        key: A random key.
        width_size: The width of each hidden layer.
        depth: The number of hidden layers.
        num_inputs: The number of inputs of the series, 0 for none.
        gap: The usual time between observations. Times are seen in it, and the control
            counts deviations of its noise.

    Returns:
        The network, from `num_features` numbers to the control `v` of each normal
            variable of a step.
    """
    size = linear.initial.mean.shape[0]
    seen = num_features(size, num_inputs)
    noise = noise_size(linear)
    return Residual(zero_at_first(seen, noise, width_size, depth, key=key), gap)
