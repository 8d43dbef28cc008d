"""The parts of a structural model apart: what each shows of the values, with bands."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from effgen.core.outcome.extras import needed
from effgen.neural_sde.data.frames import Labels
from effgen.neural_sde.modeling.dynamics import AbstractLatentSDE
from effgen.neural_sde.modeling.structure import Structure


class Components(NamedTuple):
    """The law of each part's share in the values, `reads . X` of the part.

    Attributes:
        ts: The times, shape `(times,)`, as they were asked for.
        names: The names of the parts.
        mean: Shape `(times, parts)`, in units of the data.
        scale: The standard deviation, shape `(times, parts)`.
        ess: The effective number of paths at each time, shape `(times,)`, infinite
            where mean and scale are exact.
        labels: The names of the record.
    """

    ts: Float[Array, " times"]
    names: tuple[str, ...]
    mean: Float[Array, "times parts"]
    scale: Float[Array, "times parts"]
    ess: Float[Array, " times"]
    labels: Labels = Labels()

    def to_pandas(self) -> Any:
        """Return mean and deviation of each part as a frame on the record's index.

        Returns:
            A `pandas.DataFrame`.

        Raises:
            ImportError: Without pandas, with the command to install it.
        """
        labels = Labels(
            self.names,
            self.labels.name,
            self.labels.zone,
            self.labels.unit,
            self.labels.period,
        )
        return labels.table(self.ts, {"mean": self.mean, "scale": self.scale})

    def plot(self) -> Any:
        """Draw each part with bands of 50 and 90 %, one panel below the other.

        Returns:
            A `matplotlib` figure.

        Raises:
            ImportError: Without matplotlib, with the command to install it.
            ValueError: For a batch, or more than 12 parts.
        """
        needed("matplotlib", by="Components.plot()", extra="plots")
        from effgen.neural_sde.data.pictures import components

        return components(self.ts, self.names, self.mean, self.scale)


def readings(
    model: AbstractLatentSDE,
) -> tuple[tuple[str, ...], Float[Array, "parts state"]]:
    """Return the parts' names, and the rows that read each from the state.

    Raises:
        ValueError: For a model that is no sum of parts.
    """
    linear = model.linear
    if not isinstance(linear, Structure):
        raise ValueError(
            f"the model's linear part is a {type(linear).__name__} and has no parts: "
            "components are of a sum such as `level() + season(1.0)`."
        )
    reads = linear.reads
    rows = np.zeros((len(linear.names), len(reads)))
    for i, part in enumerate(linear.slices.values()):
        rows[i, part] = 1
    return linear.names, jnp.asarray(rows, reads.dtype) * reads[None]


@jax.jit
def shares_of(
    rows: Float[Array, "parts state"],
    mean: Float[Array, "series times state"],
    covariance: Float[Array, "series times state state"],
) -> tuple[Array, Array]:
    """Return each part's mean and standard deviation from the law of the state."""
    variance = jnp.einsum("pi,stij,pj->stp", rows, covariance, rows)
    return mean @ rows.T, jnp.sqrt(jnp.maximum(variance, 0))
