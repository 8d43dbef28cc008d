"""What a posterior answers: paths, laws of the state, and what would be observed."""

from typing import Any, NamedTuple

from jaxtyping import Array, Float

from effgen.core.extras import needed

from .frames import Labels


class Draws(NamedTuple):
    """Paths at the times asked for. A batch has one more leading axis on each.

    **Attributes:** `ts`; `positions`; `log_weights`, equal for all paths: each is an
    estimate of `log p(y)`; `ess`, how many independent paths they are worth at each
    time.
    """

    ts: Float[Array, " times"]
    positions: Float[Array, "paths times state"]
    log_weights: Float[Array, " paths"]
    ess: Float[Array, " times"]


class Marginals(NamedTuple):
    """The law of the state at each time, and how many paths it rests on.

    **Attributes:** `mean`; `scale`, the standard deviation; `ess`, the effective number
    of paths at each time, infinite where both are exact.
    """

    mean: Float[Array, "times state"]
    scale: Float[Array, "times state"]
    ess: Float[Array, " times"]


class Bands(NamedTuple):
    """Quantiles of what is observed.

    **Attributes:** `ts`; `mean`; `quantiles`, one row for each of `levels`; `samples`,
    whole records drawn; `ess`, how many independent paths mean and quantiles rest on at
    each time, infinite where they are exact; `labels`, the names of the record.
    """

    ts: Float[Array, " times"]
    mean: Float[Array, "times *shape"]
    levels: tuple[float, ...]
    quantiles: Float[Array, "levels times *shape"]
    samples: Float[Array, "paths times *shape"]
    ess: Float[Array, " times"]
    labels: Labels = Labels()

    def to_pandas(self) -> Any:
        """Return mean and quantiles as a `pandas.DataFrame`, on the record's own index.

        Columns are "mean", "5%", ...; of several sensors each has these, by two levels
        of names. Of a batch the index has the series' number before the time.

        **Raises:** `ImportError`, with the command to install it, without pandas;
        `ValueError` for observations that are no columns of numbers.
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
        """Draw median or mean and bands of each sensor against time.

        **Returns:** a `matplotlib` figure, one panel a sensor.

        **Raises:** `ImportError`, with the command to install it, without matplotlib;
        `ValueError` for a batch, or more than 12 sensors.
        """
        needed("matplotlib", by="Bands.plot()", extra="plots")
        from .pictures import bands

        columns = self.labels.columns
        return bands(self.ts, self.mean, self.levels, self.quantiles, columns)
