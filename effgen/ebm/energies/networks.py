"""Networks on which energies are built: of vectors, of images, residual ones."""

from collections.abc import Callable
from typing import Any, Literal, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray


Network = TypeVar("Network", bound=eqx.Module)


class VectorNetwork(eqx.Module):
    """A multilayer perceptron of examples of any shape, to a scalar or to several.

    Attributes:
        layers: The perceptron.
        unit: What the example is divided by.
    """

    layers: eqx.nn.MLP
    unit: float = eqx.field(static=True, default=1.0)

    def __call__(self, x: Float[Array, "*shape"]) -> Float[Array, "*out"]:
        """Return the network's value, or values, at one example."""
        return self.layers(jnp.ravel(x) / self.unit)


class ImageNetwork(eqx.Module):
    """Strided convolutions and a linear head, from one image to a scalar."""

    convolutions: tuple[eqx.nn.Conv2d, ...]
    head: eqx.nn.Linear
    unit: float = eqx.field(static=True, default=1.0)

    def __call__(self, x: Float[Array, "channels height width"]) -> Float[Array, ""]:
        """Return the network's value at one image."""
        x = x / self.unit
        for convolution in self.convolutions:
            x = jax.nn.silu(convolution(x))
        return self.head(jnp.ravel(x))


class ResidualNetwork(eqx.Module):
    """Residual blocks of convolutions, average pooling between, and a linear head."""

    stem: eqx.nn.Conv2d
    stages: tuple[tuple["ResidualBlock", ...], ...]
    head: eqx.nn.Linear
    unit: float = eqx.field(static=True, default=1.0)

    def __call__(self, x: Float[Array, "channels height width"]) -> Float[Array, ""]:
        """Return the network's value at one image."""
        x = self.stem(x / self.unit)
        for i, stage in enumerate(self.stages):
            x = _halved(x) if i else x
            for block in stage:
                x = block(x)
        return self.head(jnp.mean(jax.nn.silu(x), axis=(1, 2)))


class ResidualBlock(eqx.Module):
    """`x + second(silu(first(silu(x))))`, without normalization.

    An energy of one image may not depend on the others, and one that is normalized over
    the image is no longer steered by its contrast; so blocks begin as small updates
    (the second convolution at a tenth) and need no normalization.
    """

    first: eqx.nn.Conv2d
    second: eqx.nn.Conv2d
    shortcut: eqx.nn.Conv2d | None

    def __call__(
        self, x: Float[Array, "channels height width"]
    ) -> Float[Array, "channels_out height width"]:
        """Return the features of one image."""
        update = self.second(jax.nn.silu(self.first(jax.nn.silu(x))))
        return update + (x if self.shortcut is None else self.shortcut(x))


@eqx.filter_jit
def vector_network(
    shape: tuple[int, ...],
    out_size: int | Literal["scalar"],
    width_size: int,
    depth: int,
    unit: float,
    key: PRNGKeyArray,
) -> VectorNetwork:
    """Return a perceptron of examples of `shape` that is zero at first.

    It returns `out_size` numbers, or a `"scalar"`; `unit` is as in `VectorNetwork`.
    """
    size = 1
    for axis in shape:
        size *= axis
    # No last bias: an offset of the energy changes no density, its gradient is zero,
    # and an optimizer that rescales gradients would walk it by their rounding errors.
    layers = eqx.nn.MLP(
        size,
        out_size,
        width_size,
        depth,
        activation=jax.nn.silu,
        use_final_bias=out_size != "scalar",
        key=key,
    )
    last = lambda network: jax.tree.leaves(network.layers.layers[-1])
    return _zeroed(VectorNetwork(layers, unit), last)


@eqx.filter_jit
def image_network(
    shape: tuple[int, int, int],
    channels: tuple[int, ...],
    unit: float,
    key: PRNGKeyArray,
) -> ImageNetwork:
    """Return convolutions, all but the first halving the image; zero at first."""
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
    return _zeroed(ImageNetwork(convolutions, head, unit), lambda n: n.head.weight)


@eqx.filter_jit
def residual_network(
    num_channels: int,
    channels: tuple[int, ...],
    num_blocks: int,
    unit: float,
    key: PRNGKeyArray,
) -> ResidualNetwork:
    """Return stages of residual blocks that are zero at first."""
    keys = iter(jax.random.split(key, 2 + 3 * num_blocks * len(channels)))
    stem = eqx.nn.Conv2d(num_channels, channels[0], 3, padding=1, key=next(keys))
    stages, before = [], channels[0]
    for width in channels:
        stage = []
        for _ in range(num_blocks):
            stage.append(_residual_block(before, width, [next(keys) for _ in range(3)]))
            before = width
        stages.append(tuple(stage))
    head = eqx.nn.Linear(before, "scalar", use_bias=False, key=next(keys))
    network = ResidualNetwork(stem, tuple(stages), head, unit)
    return _zeroed(network, lambda n: n.head.weight)


def _residual_block(before: int, width: int, keys: list[PRNGKeyArray]) -> ResidualBlock:
    first = eqx.nn.Conv2d(before, width, 3, padding=1, key=keys[0])
    second = eqx.nn.Conv2d(width, width, 3, padding=1, key=keys[1])
    second = eqx.tree_at(lambda c: c.weight, second, 0.1 * second.weight)
    same = before == width
    shortcut = None if same else eqx.nn.Conv2d(before, width, 1, key=keys[2])
    return ResidualBlock(first, second, shortcut)


def _halved(x: Float[Array, "channels height width"]) -> Array:
    return eqx.nn.AvgPool2d(2, 2)(x)


def _zeroed(network: Network, where: Callable[[Network], Any]) -> Network:
    return eqx.tree_at(where, network, replace_fn=jnp.zeros_like)
