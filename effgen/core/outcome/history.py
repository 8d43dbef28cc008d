"""What a run reported: every step's metrics, as a mapping, a table or a picture."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from .extras import needed
from .ledger import Ledger
from .results import RESULTS
from .scalars import doubles, scalars


@dataclasses.dataclass(frozen=True)
class History(Mapping[str, Any]):
    """The metrics of a run: `history["loss"]` has one entry for each step.

    A read-only mapping of names to arrays, as `fit` and `drain` return it.

    Attributes:
        metrics: Names to numpy arrays, shape `(steps, ...)`; a nested metric is a dict.
        steps: The step after which each was reported, shape `(steps,)`.
        result: How the run ended, an item of `RESULTS`.
        ledger: The run's time by what it was spent on, in seconds.
    """

    metrics: dict[str, Any]
    steps: np.ndarray
    result: Any = dataclasses.field(default_factory=lambda: RESULTS.successful)
    ledger: Ledger = dataclasses.field(default_factory=Ledger)

    def __getitem__(self, name: str) -> Any:
        """Return the metric called `name`, one row for each step."""
        if name not in self.metrics:
            raise KeyError(f"`{name}` is no metric: there are {list(self.metrics)}.")
        return self.metrics[name]

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names."""
        return iter(self.metrics)

    def __len__(self) -> int:
        """Return the number of metrics."""
        return len(self.metrics)

    @property
    def scalars(self) -> dict[str, np.ndarray]:
        """The metrics that are one real number a step; `parts/a` is a nested one."""
        return scalars(self.metrics)

    def to_pandas(self) -> Any:
        """Return the scalar metrics as a `pandas.DataFrame`.

        Returns:
            A frame with one row a step, indexed by `step`, and one column a metric.

        Raises:
            ImportError: Without pandas, with the command to install it.
        """
        pd = needed("pandas", by="history.to_pandas()", extra="plots")
        table = {name: _plain(value) for name, value in self.scalars.items()}
        return pd.DataFrame(table, index=pd.Index(self.steps, name="step"))

    def plot(self, *names: str) -> Any:
        """Draw scalar metrics against the step.

        Arguments:
            *names: The metrics to draw; without any, all.

        Returns:
            A `matplotlib` figure with one panel for each metric. A notebook shows it
                where it is a cell's last line; `figure.savefig(...)` keeps it.

        Raises:
            KeyError: For a name that is no scalar metric.
            ValueError: If no metric is a scalar, or without names if there are no
                steps.
            ImportError: Without matplotlib, with the command to install it.
        """
        needed("matplotlib", by="history.plot()", extra="plots")
        from .picture import curves

        if names and len(self.steps) == 0:  # as of a run resumed at its end
            return curves(self.steps, {name: self.steps for name in names})
        found = self._drawable()
        unknown = [name for name in names if name not in found]
        if unknown:
            raise KeyError(
                f"{unknown} not among the scalar metrics {list(found)}: name some of "
                "these, or none to draw all."
            )
        return curves(self.steps, {name: found[name] for name in names or found})

    def _drawable(self) -> dict[str, np.ndarray]:
        if len(self.steps) == 0:
            raise ValueError(
                "`history.plot()` has nothing to draw: the run took no steps. Plot a "
                "run that took some, as with `num_steps=100`."
            )
        found = self.scalars
        if not found:
            raise ValueError(
                "`history.plot()` has nothing to draw: none of the metrics "
                f"{list(self.metrics)} is one real number a step. Report one in the "
                "trainer's `step`, or draw `history[name]` by yourself."
            )
        return found


def _plain(values: np.ndarray) -> np.ndarray:
    """Return `values` in a dtype that NumPy has itself: pandas knows no bfloat16."""
    return doubles(values) if values.dtype.kind == "V" else values
