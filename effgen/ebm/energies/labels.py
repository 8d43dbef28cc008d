"""Models of examples with labels: energies, and rows."""

import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Float, Int, PRNGKeyArray

from effgen.core.contract.counts import check_count
from effgen.core.contract.keys import check_key
from effgen.ebm.contract.arguments import as_rows, as_shape, check_energy

from .confined import check_sizes
from .coordinates import AbstractCoordinates, check_coordinates
from .networks import VectorNetwork, vector_network


class LabeledEnergy(eqx.Module):
    """The energy of an example and its label, together in one row.

        p(x, label) = exp(-energy(x, label)) / Z
        p(label | x) = softmax(-energy(x, :))[label]

    A row is the example, flat, and then the label, as `with_labels` makes it. So one
    model is a density of examples, a density of the examples of each label, and a
    classifier.

    Arguments:
        energy: A callable pytree from an example and an integer label to a scalar.
        shape: The shape of one example.
        num_labels: The number of labels, which are 0 to `num_labels - 1`.

    Raises:
        TypeError: If `energy` cannot be called, or `shape` is no shape.
        ValueError: If `num_labels` is not positive.
    """

    energy: Callable[[Float[Array, "*shape"], Int[Array, ""]], Float[Array, ""]]
    shape: tuple[int, ...] = eqx.field(static=True, converter=as_shape)
    num_labels: int = eqx.field(static=True)

    def __check_init__(self) -> None:
        """Raise `TypeError` or `ValueError` unless there are an energy and labels."""
        check_energy("energy", self.energy)
        check_count("num_labels", self.num_labels)

    @property
    def size(self) -> int:
        """How many numbers an example has."""
        return math.prod(self.shape)

    def check_rows(self, name: str, rows: Float[Array, "rows size_and_label"]) -> None:
        """Raise `ValueError` for rows whose labels are none of the model's.

        Arguments:
            name: How the message calls them.
            rows: Examples with labels, shape `(rows, size + 1)`.
        """
        check_labels(name, rows[:, -1], self.num_labels)

    def __call__(self, row: Float[Array, " size_and_label"]) -> Float[Array, ""]:
        """Return the energy of one row; infinite, if its label is none of them.

        Arguments:
            row: An example, flat, and its label, shape `(size + 1,)`.

        Returns:
            The energy, one number.
        """
        known = are_labels(row[-1], self.num_labels)
        label = jnp.where(known, row[-1], 0).astype(jnp.int32)
        energy = self.energy(row[:-1].reshape(self.shape), label)
        return jnp.where(known, energy, jnp.inf)

    def of_all(self, row: Float[Array, " size_and_label"]) -> Float[Array, " labels"]:
        """Return the energies of a row's example with each label.

        Arguments:
            row: An example, flat, and any label, shape `(size + 1,)`.

        Returns:
            Energies, shape `(num_labels,)`.
        """
        x, labels = row[:-1].reshape(self.shape), jnp.arange(self.num_labels)
        return jax.vmap(self.energy, (None, 0))(x, labels)

    def log_posterior(
        self, x: Float[Array, "examples *shape"]
    ) -> Float[Array, "examples labels"]:
        """Return `log p(label | x)`, which needs no `Z`.

        Arguments:
            x: Examples, shape `(examples, *shape)`.

        Returns:
            Log-probabilities in nats, shape `(examples, num_labels)`.

        Raises:
            ValueError: For examples of another shape.
            TypeError: For values that are not numbers.
        """
        x = as_rows("x", x)
        if x.shape[1:] != self.shape:
            raise ValueError(
                f"`x` has shape {x.shape}: pass examples, `(examples, *{self.shape})`."
            )
        rows = with_labels(x, jnp.zeros(len(x), jnp.int32))
        return jax.nn.log_softmax(-jax.vmap(self.of_all)(rows), axis=1)


class LogitsEnergy(eqx.Module):
    """`energy(x, label) = |z|^2 / (2 scale^2) - logits(z)[label]`.

    Arguments:
        logits: From `z` to one number a label.
        scale: Of the well, in units of `z`, fixed.
        coordinates: From `x` to `z`, or `None` for `z = x`.
    """

    logits: VectorNetwork
    scale: float = eqx.field(static=True)
    coordinates: AbstractCoordinates | None = None

    def __call__(
        self, x: Float[Array, "*shape"], label: Int[Array, ""]
    ) -> Float[Array, ""]:
        """Return the energy of an example and its label."""
        z = x if self.coordinates is None else self.coordinates(x)
        return 0.5 * jnp.sum((z / self.scale) ** 2) - self.logits(z)[label]


def labeled_mlp_energy(
    shape: tuple[int, ...],
    num_labels: int,
    *,
    key: PRNGKeyArray,
    width_size: int = 128,
    depth: int = 2,
    scale: float = 1.0,
    coordinates: AbstractCoordinates | None = None,
) -> LabeledEnergy:
    """Return a `LabeledEnergy` that is a Gaussian at first, whatever the label.

        energy(x, label) = |z|^2 / (2 scale^2) - logits(z)[label],  z = coordinates(x)

    Arguments:
        shape: The shape of one example.
        num_labels: The number of labels.
        key: The randomness of the initial weights.
        width_size: Units of each hidden layer (SiLU).
        depth: The number of hidden layers.
        scale: Of the well, in units of `z`; the network sees `z` divided by it.
        coordinates: As for `ConfinedEnergy`, of the example alone.

    Returns:
        The energy; its logits are a multilayer perceptron, zero at first.

    Raises:
        TypeError: If `shape` is no shape, `key` no key, or `coordinates` are none.
        ValueError: For sizes, a scale or a number of labels not positive, or
            coordinates of another shape.
    """
    check_key(key)
    shape = as_shape(shape)
    check_count("num_labels", num_labels)
    check_sizes(width_size, depth, scale)
    check_coordinates(coordinates, shape)
    logits = vector_network(shape, num_labels, width_size, depth, scale, key)
    return LabeledEnergy(LogitsEnergy(logits, scale, coordinates), shape, num_labels)


def with_labels(
    x: Float[Array, "examples *shape"], labels: Int[Array, " examples"]
) -> Float[Array, "examples size_and_label"]:
    """Return rows: each example, flat, and then its label.

    Arguments:
        x: Examples, shape `(examples, *shape)`.
        labels: Integers from 0, shape `(examples,)`.

    Returns:
        Rows of floats, shape `(examples, size + 1)`.

    Raises:
        ValueError: If there are not as many labels as examples, or they are no
            integers from 0.
        TypeError: For values that are not numbers.
    """
    x, labels = as_rows("x", x), as_rows("labels", labels)
    if labels.shape != x.shape[:1]:
        raise ValueError(
            f"`labels` have shape {labels.shape}: pass one for each of the {len(x)} "
            "examples."
        )
    check_labels("labels", labels, None, "")
    flat = x.reshape(len(x), -1)
    return jnp.concatenate([flat, labels[:, None].astype(flat.dtype)], axis=1)


def check_labels(
    name: str, labels: Any, num: int | None, place: str = " in its last column"
) -> None:
    """Raise `ValueError` for labels that are no integers from 0, up to a number."""
    if isinstance(labels, Tracer):
        return
    with jax.ensure_compile_time_eval():  # constants may be met under a trace
        labels = jnp.asarray(labels)
        if bool(are_labels(labels, num)):
            return
        least, largest = float(labels.min()), float(labels.max())
    most = "`num_labels - 1`" if num is None else f"{num - 1}, `num_labels` - 1"
    raise ValueError(
        f"`{name}` has labels from {least:.3g} to {largest:.3g}{place}: pass integers "
        f"from 0 to {most}; `ebm.with_labels(x, labels)` puts them beside the examples."
    )


def are_labels(labels: Array, num: int | None) -> Array:
    """Return whether all are integers from 0 to `num - 1`, one bool."""
    most = jnp.inf if num is None else num - 1
    whole = labels == jnp.round(labels)
    return jnp.all(whole & (labels >= 0) & (labels <= most))
