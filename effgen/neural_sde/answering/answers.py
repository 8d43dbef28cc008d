"""What a posterior answers: paths, laws of the state, and what would be observed."""

from typing import Any, NamedTuple

from jaxtyping import Array, Float

from effgen.core.outcome.extras import needed
from effgen.neural_sde.data.frames import Labels


class Draws(NamedTuple):
    """Paths at the times asked for. A batch has one more leading axis on each.

    Attributes:
        ts: The times, shape `(times,)`, as they were asked for.
        positions: States, shape `(paths, times, state)`. All paths count alike.
        log_weights: Shape `(paths,)`, equal for all paths: an estimate of `log p(y)`.
        ess: How many independent paths they are worth at each time, shape `(times,)`.
    """

    ts: Float[Array, " times"]
    positions: Float[Array, "paths times state"]
    log_weights: Float[Array, " paths"]
    ess: Float[Array, " times"]


class Marginals(NamedTuple):
    """The law of the state at each time, and how many paths it rests on.

    Attributes:
        mean: Shape `(times, state)`.
        scale: The standard deviation, shape `(times, state)`.
        ess: The effective number of paths at each time, shape `(times,)`, infinite
            where mean and scale are exact.
    """

    mean: Float[Array, "times state"]
    scale: Float[Array, "times state"]
    ess: Float[Array, " times"]


class Bands(NamedTuple):
    """Quantiles of what is observed. A batch has one more leading axis on each.

    Attributes:
        ts: The times, shape `(times,)`, as they were asked for.
        mean: Shape `(times, *shape)`, in units of the data.
        levels: The probabilities of the quantiles.
        quantiles: One row for each of `levels`, shape `(levels, times, *shape)`.
        samples: Whole records drawn, shape `(paths, times, *shape)`.
        ess: How many independent paths mean and quantiles rest on at each time, shape
            `(times,)`, infinite where they are exact.
        labels: The names of the record.
    """

    ts: Float[Array, " times"]
    mean: Float[Array, "times *shape"]
    levels: tuple[float, ...]
    quantiles: Float[Array, "levels times *shape"]
    samples: Float[Array, "paths times *shape"]
    ess: Float[Array, " times"]
    labels: Labels = Labels()

    def to_pandas(self) -> Any:
        """Return mean and quantiles as a frame on the record's own index.

        Columns are "mean", "5%", ...; of several sensors each has these, by two levels
        of names. Of a batch the index has the series' number before the time.

        Returns:
            A `pandas.DataFrame`.

        Raises:
            ImportError: Without pandas, with the command to install it.
            ValueError: For observations that are no columns of numbers.
        """
        batch = self.ess.ndim == 2
        rows = [
            self.quantiles[:, i] if batch else self.quantiles[i]
            for i in range(len(self.levels))
        ]
        names = [f"{100 * level:.6g}%" for level in self.levels]
        return self.labels.table(
            self.ts, {"mean": self.mean, **dict(zip(names, rows, strict=True))}
        )

    def plot(self) -> Any:
        """Draw the mean of each sensor, and bands, against time.

        Returns:
            A `matplotlib` figure, one panel a sensor.

        Raises:
            ImportError: Without matplotlib, with the command to install it.
            ValueError: For a batch, more than 12 sensors, or observations that are no
                columns of numbers.
        """
        needed("matplotlib", by="Bands.plot()", extra="plots")
        from effgen.neural_sde.data.pictures import bands

        columns = self.labels.columns
        return bands(self.ts, self.mean, self.levels, self.quantiles, columns)
