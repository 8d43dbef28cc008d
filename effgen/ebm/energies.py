"""Energies that start as a Gaussian, for vectors and for images."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray


class ConfinedEnergy(eqx.Module):
    """A network on top of a quadratic well.

        energy(x) = |x|^2 / (2 scale^2) + network(x)

    The well keeps `Z` finite and walkers near whatever the network says. While the
    network is zero the model is a Gaussian: `Walkers.from_gaussian` of the same scale
    are exact samples, of known `log Z`.

    **Attributes:** `network`, a callable pytree from an example to a scalar; `scale`,
    in units of `x`, fixed; about the data's largest distance from zero, per coordinate.
    """

    network: Callable[[Float[Array, "*shape"]], Float[Array, ""]]
    scale: float = eqx.field(static=True)

    def __call__(self, x: Float[Array, "*shape"]) -> Float[Array, ""]:
        """Return the energy of one example."""
        return 0.5 * jnp.sum((x / self.scale) ** 2) + self.network(x)


class VectorNetwork(eqx.Module):
    """A multilayer perceptron from an example of any shape to a scalar."""

    layers: eqx.nn.MLP

    def __call__(self, x: Float[Array, "*shape"]) -> Float[Array, ""]:
        """Return the network's value at one example."""
        return self.layers(jnp.ravel(x))


class ImageNetwork(eqx.Module):
    """Strided convolutions and a linear head, from one image to a scalar."""

    convolutions: tuple[eqx.nn.Conv2d, ...]
    head: eqx.nn.Linear

    def __call__(self, x: Float[Array, "channels height width"]) -> Float[Array, ""]:
        """Return the network's value at one image."""
        for convolution in self.convolutions:
            x = jax.nn.silu(convolution(x))
        return self.head(jnp.ravel(x))


def mlp_energy(
    shape: tuple[int, ...],
    *,
    key: PRNGKeyArray,
    width_size: int = 128,
    depth: int = 2,
    scale: float = 1.0,
) -> ConfinedEnergy:
    """Return a `ConfinedEnergy` for examples of `shape`, at first a Gaussian.

    **Arguments:** `width_size` and `depth`, of the hidden layers (SiLU, for smooth
    energies); `scale`, of the well.
    """
    size = 1
    for axis in shape:
        size *= axis
    # No last bias: an offset of the energy changes no density, its gradient is zero,
    # and an optimizer that rescales gradients would walk it by their rounding errors.
    layers = eqx.nn.MLP(
        size,
        "scalar",
        width_size,
        depth,
        activation=jax.nn.silu,
        use_final_bias=False,
        key=key,
    )
    last = lambda network: network.layers.layers[-1].weight
    return ConfinedEnergy(_zeroed(VectorNetwork(layers), last), scale)


def image_energy(
    shape: tuple[int, int, int],
    *,
    key: PRNGKeyArray,
    channels: tuple[int, ...] = (16, 32, 64, 64),
    scale: float = 1.0,
) -> ConfinedEnergy:
    """Return a convolutional `ConfinedEnergy` for images, at first a Gaussian.

    **Arguments:** `shape`, `(channels, height, width)`; `channels`, of the
    convolutions: each is 3 by 3, and all but the first halve the image; `scale`, of the
    well.

    **Source:** after the image network of Carbone et al. (2023), section 4.2.
    """
    keys = jax.random.split(key, len(channels) + 1)
    sizes = zip((shape[0], *channels[:-1]), channels, keys[:-1], strict=True)
    convolutions = tuple(
        eqx.nn.Conv2d(a, b, 3, stride=1 if i == 0 else 2, padding=1, key=k)
        for i, (a, b, k) in enumerate(sizes)
    )
    image = jax.ShapeDtypeStruct(shape, jnp.float32)
    for convolution in convolutions:
        image = eqx.filter_eval_shape(convolution, image)
    head = eqx.nn.Linear(image.size, "scalar", use_bias=False, key=keys[-1])
    network = ImageNetwork(convolutions, head)
    return ConfinedEnergy(_zeroed(network, lambda n: n.head.weight), scale)


def _zeroed(
    network: Callable[..., Array], where: Callable[..., Array]
) -> Callable[..., Array]:
    return eqx.tree_at(where, network, replace_fn=jnp.zeros_like)
