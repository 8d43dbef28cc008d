"""Energies: that start as a Gaussian, of vectors and images; tempered; your own."""

from collections.abc import Callable
from typing import Any, Literal, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from effgen.core.contract.counts import check_count
from effgen.core.contract.keys import check_key

from .arguments import check_channels, check_energy, check_positive, check_shape
from .coordinates import AbstractCoordinates, check_coordinates


Network = TypeVar("Network", bound=eqx.Module)


class ConfinedEnergy(eqx.Module):
    """A network on top of a quadratic well.

        energy(x) = |z|^2 / (2 scale^2) + network(z),  z = coordinates(x)

    The well keeps `Z` finite and the walkers near, for any network that grows more
    slowly than the square. While the network is zero the model is a Gaussian.
    Then `Walkers.from_gaussian` of the same scale are exact samples of known `log Z`.

    Arguments:
        network: A callable pytree from `z`, of an example's shape, to a scalar.
        scale: In units of `z`, fixed; about the data's largest `|z|` per coordinate.
        coordinates: Such as `Standardized.of(data)`, or `None` for `z = x`.

    Raises:
        TypeError: If `network` cannot be called, or `coordinates` are none.
        ValueError: If `scale` is not positive.
    """

    network: Callable[[Float[Array, "*shape"]], Float[Array, ""]]
    scale: float = eqx.field(static=True)
    coordinates: AbstractCoordinates | None = None

    def __check_init__(self) -> None:
        """Raise `TypeError` or `ValueError` for what makes no energy."""
        check_energy("network", self.network)
        check_positive("scale", self.scale)
        check_coordinates(self.coordinates)

    def __call__(self, x: Float[Array, "*shape"]) -> Float[Array, ""]:
        """Return the energy of one example, in nats.

        Arguments:
            x: An example, shape `(*shape,)`.
        """
        z = x if self.coordinates is None else self.coordinates(x)
        return 0.5 * jnp.sum((z / self.scale) ** 2) + self.network(z)


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


class TemperedEnergy(eqx.Module):
    """`energy(x) / temperature`: the model `exp(-energy / temperature) / Z`.

    Noise, weights and `log Z` are then at that temperature, and stay exact. With colder
    noise alone they would not be exact.

    Arguments:
        energy: A callable pytree from one example to its energy, or from a batch.
        temperature: Fixed, above 0.

    Raises:
        TypeError: If `energy` cannot be called.
        ValueError: If `temperature` is not positive.
    """

    energy: Callable[[Float[Array, "*shape"]], Float[Array, ""]]
    temperature: float = eqx.field(static=True)

    def __check_init__(self) -> None:
        """Raise `TypeError` or `ValueError` for what makes no energy."""
        check_energy("energy", self.energy)
        check_positive("temperature", self.temperature)

    def __call__(self, x: Float[Array, "*shape"]) -> Float[Array, ""]:
        """Return the energy, of one example or a batch, as `energy` does.

        Arguments:
            x: What `energy` takes.
        """
        return self.energy(x) / self.temperature


class FunctionEnergy(eqx.Module):
    """A function of parameters and examples, as flax and haiku have them.

        energy(x) = function(parameters, x)

    Arguments:
        function: From parameters and one example, or a batch, to the energy.
        parameters: A pytree, all of whose inexact arrays are trained.

    Raises:
        TypeError: If `function` cannot be called.
    """

    function: Callable[[Any, Float[Array, "*shape"]], Float[Array, ""]]
    parameters: Any

    def __check_init__(self) -> None:
        """Raise `TypeError` for what cannot be called."""
        check_energy("function", self.function)

    def __call__(self, x: Float[Array, "*shape"]) -> Float[Array, ""]:
        """Return the energy, of one example or a batch, as `function` does.

        Arguments:
            x: What `function` takes after the parameters.
        """
        return self.function(self.parameters, x)


def mlp_energy(
    shape: tuple[int, ...],
    *,
    key: PRNGKeyArray,
    width_size: int = 128,
    depth: int = 2,
    scale: float = 1.0,
    coordinates: AbstractCoordinates | None = None,
) -> ConfinedEnergy:
    """Return a multilayer perceptron as a `ConfinedEnergy`, at first a Gaussian.

    Arguments:
        shape: The shape of one example.
        key: The randomness of the initial weights.
        width_size: Units of each hidden layer (SiLU, for smooth energies).
        depth: The number of hidden layers.
        scale: Of the well; the network sees the example divided by it.
        coordinates: As for `ConfinedEnergy`.

    Raises:
        TypeError: If `shape` is no shape, `key` no key, or `coordinates` are none.
        ValueError: For sizes or a scale not positive, or coordinates of another size.
    """
    check_key(key)
    check_shape(shape)
    check_coordinates(coordinates, tuple(shape))
    check_sizes(width_size, depth, scale)
    network = vector_network(tuple(shape), "scalar", width_size, depth, scale, key)
    return ConfinedEnergy(network, scale, coordinates)


def check_sizes(width_size: Any, depth: Any, scale: Any) -> None:
    """Raise `ValueError` for sizes of a network, or a well, that are not positive."""
    check_count("width_size", width_size)
    check_count("depth", depth)
    check_positive("scale", scale)


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


def image_energy(
    shape: tuple[int, int, int],
    *,
    key: PRNGKeyArray,
    channels: tuple[int, ...] = (16, 32, 64, 64),
    scale: float = 1.0,
    coordinates: AbstractCoordinates | None = None,
) -> ConfinedEnergy:
    """Return a convolutional `ConfinedEnergy` for images, at first a Gaussian.

    Arguments:
        shape: `(channels, height, width)`.
        key: The randomness of the initial weights.
        channels: Those of the convolutions: each is 3 by 3, and all but the first halve
            the image.
        scale: Of the well; the network sees the image divided by it.
        coordinates: As for `ConfinedEnergy`.

    Raises:
        TypeError: If `shape` is no shape, `key` no key, or `coordinates` are none.
        ValueError: For a shape that is no image's, a scale not positive, or coordinates
            of another size.

    Source:
        After the image network of Carbone et al. (2023), section 4.2.
    """
    check_key(key)
    _check_image(shape, channels, coordinates, scale)
    network = _image_network((shape[0], shape[1], shape[2]), channels, scale, key)
    return ConfinedEnergy(network, scale, coordinates)


def _check_image(
    shape: Any, channels: Any, coordinates: AbstractCoordinates | None, scale: Any
) -> None:
    check_shape(shape)
    check_channels(channels)
    if len(shape) != 3:
        raise ValueError(
            f"`shape` is {tuple(shape)}: pass `(channels, height, width)`, as in "
            "`(1, 28, 28)` for images without colors, and data of that shape."
        )
    check_coordinates(coordinates, tuple(shape))
    check_positive("scale", scale)


@eqx.filter_jit
def _image_network(
    shape: tuple[int, int, int],
    channels: tuple[int, ...],
    unit: float,
    key: PRNGKeyArray,
) -> ImageNetwork:
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


def residual_energy(
    shape: tuple[int, int, int],
    *,
    key: PRNGKeyArray,
    channels: tuple[int, ...] = (32, 64, 128),
    num_blocks: int = 2,
    scale: float = 1.0,
    coordinates: AbstractCoordinates | None = None,
) -> ConfinedEnergy:
    """Return a residual convolutional `ConfinedEnergy`, at first a Gaussian.

    Arguments:
        shape: `(channels, height, width)`.
        key: The randomness of the initial weights.
        channels: Those of the stages, each at half the resolution of the one before.
        num_blocks: Residual blocks a stage.
        scale: Of the well; the network sees the image divided by it.
        coordinates: As for `ConfinedEnergy`.

    Raises:
        TypeError: If `shape` is no shape, `key` no key, or `coordinates` are none.
        ValueError: As `image_energy`, for an image too small for as many stages, or a
            `num_blocks` that is no integer of 1 or more.

    Source:
        After the residual energies of Du and Mordatch (2019).
    """
    check_key(key)
    _check_image(shape, channels, coordinates, scale)
    check_count("num_blocks", num_blocks)
    if min(shape[1:]) < 2 ** (len(channels) - 1):
        raise ValueError(
            f"`shape` {shape} is too small for {len(channels)} stages: pass fewer "
            "`channels`."
        )
    network = _residual_network(shape[0], channels, num_blocks, scale, key)
    return ConfinedEnergy(network, scale, coordinates)


@eqx.filter_jit
def _residual_network(
    num_channels: int,
    channels: tuple[int, ...],
    num_blocks: int,
    unit: float,
    key: PRNGKeyArray,
) -> ResidualNetwork:
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
