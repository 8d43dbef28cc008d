"""Energies that start as a Gaussian: a network in a well, of vectors and images."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from effgen.core.contract.counts import check_count
from effgen.core.contract.keys import check_key
from effgen.ebm.contract.arguments import (
    check_channels,
    check_energy,
    check_positive,
    check_shape,
)

from .coordinates import AbstractCoordinates, check_coordinates
from .networks import image_network, residual_network, vector_network


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
    network = image_network((shape[0], shape[1], shape[2]), channels, scale, key)
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
    network = residual_network(shape[0], channels, num_blocks, scale, key)
    return ConfinedEnergy(network, scale, coordinates)
