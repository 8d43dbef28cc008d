"""Two towers: what embeds queries and documents, and the temperature between them."""

import inspect
import math
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from effgen.core.devices.sharding import constrain_batch, num_parts


Tower = Callable[..., Float[Array, "batch size"]]
Temperature = float | Callable[[Array], Any] | None  # a number, a schedule, the model's


class LearnedTemperature(eqx.Module):
    """A temperature that is trained, and never below `least` nor above `most`.

        scale = 1 / clip(exp(log_temperature), least, most)

    With a scale that grows without bound a few documents dominate the softmax. At a
    bound the gradient is cut where it points outward, and only there.

    Arguments:
        log_temperature: The logarithm of the temperature, a scalar; it is trained.
        least: The least temperature.
        most: The greatest temperature.

    Raises:
        ValueError: Unless `0 < least <= most`.
    """

    log_temperature: Float[Array, ""]
    least: float = eqx.field(default=0.01, static=True, converter=float)
    most: float = eqx.field(default=1.0, static=True, converter=float)

    def __check_init__(self) -> None:
        """Raise `ValueError` for bounds that are none."""
        if not 0 < self.least <= self.most < math.inf:
            raise ValueError(
                f"`least` is {self.least} and `most` {self.most}: pass positive "
                "bounds, the lesser first."
            )

    @classmethod
    def of(
        cls, temperature: float = 0.05, *, least: float = 0.01, most: float = 1.0
    ) -> "LearnedTemperature":
        """Return one that begins at a temperature.

        Arguments:
            temperature: Where it begins.
            least: The least temperature.
            most: The greatest temperature.

        Returns:
            The temperature.

        Raises:
            ValueError: Unless `0 < least <= temperature <= most`.
        """
        if not 0 < least <= temperature <= most:
            raise ValueError(
                f"`temperature` is {temperature}: pass one between `least`, {least}, "
                f"and `most`, {most}, both positive."
            )
        return cls(jnp.log(jnp.asarray(temperature)), least, most)

    @property
    def scale(self) -> Float[Array, ""]:
        """One over the temperature."""
        inside: Array = _bounded(self.log_temperature, self.least, self.most)
        return jnp.exp(-inside)


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _bounded(x: Array, least: float, most: float) -> Array:
    """Return `x` in bounds given as exponentials; outside, slopes that lead back."""
    return jnp.clip(x, math.log(least), math.log(most))


def _forward(x: Array, least: float, most: float) -> tuple[Array, Array]:
    return _bounded(x, least, most), x


def _backward(least: float, most: float, x: Array, slope: Array) -> tuple[Array]:
    # A descent moves against the slope.
    above, below = x >= math.log(most), x <= math.log(least)
    outward = (above & (slope < 0)) | (below & (slope > 0))
    return (jnp.where(outward, 0, slope),)


_bounded.defvjp(_forward, _backward)


class TwoTowers(eqx.Module):
    """A model of queries and one of documents; `TwoTowers.tied(encoder)` ties them.

    A tower maps a batch, a pytree of arrays, to embeddings `(batch, size)`. One that
    takes a keyword `key` is given one in training, for dropout, and `None` otherwise.

    Arguments:
        query: The tower of queries.
        document: The tower of documents.
        temperature: The temperature, if it is trained.
    """

    query: Tower
    document: Tower
    temperature: LearnedTemperature | None = None

    @classmethod
    def tied(
        cls, encoder: Tower, temperature: LearnedTemperature | None = None
    ) -> "Tied":
        """Return one encoder as both towers, with its parameters once.

        Arguments:
            encoder: The tower of queries and documents.
            temperature: The temperature, if it is trained.

        Returns:
            The model.
        """
        return Tied(encoder, temperature)


class Tied(eqx.Module):
    """One encoder for queries and documents.

    Arguments:
        encoder: The tower of both.
        temperature: The temperature, if it is trained.
    """

    hands_key_on: ClassVar[bool] = True

    encoder: Tower
    temperature: LearnedTemperature | None = None

    def query(
        self, items: PyTree, *, key: PRNGKeyArray | None = None
    ) -> Float[Array, "batch size"]:
        """Return the embeddings of a batch of queries.

        Arguments:
            items: A pytree of arrays that share their leading axis.
            key: A key for dropout; without one there is none.

        Returns:
            The embeddings, `(batch, size)`.
        """
        return embed(self.encoder, items, key=key)

    def document(
        self, items: PyTree, *, key: PRNGKeyArray | None = None
    ) -> Float[Array, "batch size"]:
        """Return the embeddings of a batch of documents.

        Arguments:
            items: A pytree of arrays that share their leading axis.
            key: A key for dropout; without one there is none.

        Returns:
            The embeddings, `(batch, size)`.
        """
        return embed(self.encoder, items, key=key)


def embed(
    tower: Tower, items: PyTree, *, key: PRNGKeyArray | None = None
) -> Float[Array, "batch size"]:
    """Return a tower's embeddings, with a key if it takes one."""
    return tower(items, key=key) if _takes_key(tower) else tower(items)


def in_chunks(
    tower: Tower, items: PyTree, num_chunks: int, *, key: PRNGKeyArray
) -> Float[Array, "batch size"]:
    """Return embeddings, made a chunk at a time and once more when differentiated."""
    if num_chunks == 1:
        return embed(tower, items, key=key)
    one = eqx.filter_checkpoint(lambda part: embed(tower, part[0], key=part[1]))
    cut = jax.tree.map(lambda x: _dealt(x, num_chunks), items)
    found = jax.lax.map(one, (cut, jax.random.split(key, num_chunks)))
    return _gathered(found)


def in_parts(
    tower: Tower, items: PyTree, size: int, mesh: Mesh | None = None
) -> Float[Array, "batch size"]:
    """Return embeddings without gradient or key, made of `size` items at a time.

    Over a mesh, each device embeds equally many of these.
    """
    num = jax.tree.leaves(items)[0].shape[0]
    even = 1 if mesh is None else num_parts(mesh)
    size = -(-min(size, num) // even) * even
    parts = -(-num // size)
    filled = jax.tree.map(lambda x: _filled_up(x, parts * size), items)

    def plain(part: PyTree) -> Array:
        return jax.lax.stop_gradient(embed(tower, constrain_batch(part, mesh)))

    if parts == 1:
        return plain(filled)[:num]
    found = jax.lax.map(plain, jax.tree.map(lambda x: _dealt(x, parts), filled))
    return _gathered(found)[:num]


def _dealt(x: Array, parts: int) -> Array:
    """Return rows in parts, each of which has every `parts`-th row.

    If rows are split over devices, each part has rows of every device. So all devices
    have work in each part.
    """
    return jnp.swapaxes(x.reshape(-1, parts, *x.shape[1:]), 0, 1)


def _gathered(found: Float[Array, "parts each size"]) -> Float[Array, "batch size"]:
    """Return the rows of `_dealt` in their original order."""
    return jnp.swapaxes(found, 0, 1).reshape(-1, found.shape[2])


def _filled_up(x: Array, num: int) -> Array:
    """Return `num` rows, padded with copies of the last one."""
    missing = num - x.shape[0]
    if not missing:
        return x
    return jnp.pad(x, ((0, missing),) + ((0, 0),) * (x.ndim - 1), mode="edge")


def is_random(model: Any, tower: Tower) -> bool:
    """Return whether a tower's embeddings in training differ from those without a key.

    It takes a key, and what dropout the model has is at work.
    """
    encoder = _within(tower)
    if not _takes_key(encoder):
        return False
    own = getattr(encoder, "is_random", None)
    if isinstance(own, bool):  # as a `HashedBag` says it
        return own
    kind = eqx.nn.Dropout
    found = jax.tree.leaves(model, is_leaf=lambda x: isinstance(x, kind))
    drops = [x for x in found if isinstance(x, kind)]
    return not drops or any(x.p > 0 and not x.inference for x in drops)


def _within(tower: Tower) -> Tower:
    """Return the encoder in what takes a key only to hand it on."""
    owner = getattr(tower, "__self__", tower)
    if not getattr(owner, "hands_key_on", False):
        return tower
    return _within(owner.encoder)


def _takes_key(tower: Tower) -> bool:
    try:
        return "key" in inspect.signature(tower).parameters
    except ValueError:
        return False


def normalized(x: Float[Array, "*batch size"]) -> Float[Array, "*batch size"]:
    """Return vectors of length one.

    Arguments:
        x: Vectors, `(..., size)`.

    Returns:
        `(..., size)`; of length zero, with no gradient, where `x` is zero.
    """
    squares = jnp.sum(x.astype(_at_least_single(x)) ** 2, axis=-1, keepdims=True)
    there = squares > 0
    inverse = jnp.where(there, jax.lax.rsqrt(jnp.where(there, squares, 1)), 0)
    return x * inverse


def _at_least_single(x: Array) -> Any:
    return jnp.promote_types(x.dtype, jnp.float32)
