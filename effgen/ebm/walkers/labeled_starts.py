"""Where walkers with labels start."""

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from effgen.core.contract.counts import check_count
from effgen.ebm.contract.arguments import check_draw
from effgen.ebm.energies.coordinates import AbstractCoordinates
from effgen.ebm.energies.labels import with_labels

from .weighted_walkers import Walkers


def labeled_walkers(
    key: PRNGKeyArray,
    num: int,
    shape: tuple[int, ...],
    num_labels: int,
    *,
    scale: float = 1.0,
    coordinates: AbstractCoordinates | None = None,
) -> Walkers:
    """Return walkers from a Gaussian, each with a label, all labels as likely.

    Arguments:
        key: The randomness of the draw.
        num: How many walkers, 2 or more.
        shape: The shape of one example.
        num_labels: The number of labels.
        scale: The Gaussian's standard deviation, in `coordinates`, if there are any,
            else in units of the data.
        coordinates: As for `Walkers.from_gaussian`, of the example alone.

    Returns:
        Walkers of known density, whose positions are rows, shape `(num, size + 1)`.

    Raises:
        TypeError: If `shape` is no shape, `key` no key, or `coordinates` are none.
        ValueError: For fewer than 2 walkers, a scale or a number of labels not
            positive, or coordinates of another shape.
    """
    check_count("num_labels", num_labels)
    check_draw(key, num, shape)
    keys = jax.random.split(key)
    x = Walkers.from_gaussian(keys[0], num, shape, scale=scale, coordinates=coordinates)
    labels = jax.random.randint(keys[1], (num,), 0, num_labels)
    density = -x.energies - x.log_partition - jnp.log(num_labels)
    return Walkers.from_samples(with_labels(x.positions, labels), density)
