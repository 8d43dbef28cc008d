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

    **Attributes:** `metrics`, names to arrays `(steps, ...)`; `steps`, the step after
    which each was reported; `result`, how the run ended; `ledger`, where its time went.
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
        """Return the scalar metrics as a `pandas.DataFrame`, indexed by step.

        **Raises:** `ImportError`, with the command to install it, without pandas.
        """
        pd = needed("pandas", by="history.to_pandas()", extra="plots")
        table = {name: _plain(value) for name, value in self.scalars.items()}
        return pd.DataFrame(table, index=pd.Index(self.steps, name="step"))

    def plot(self, *names: str) -> Any:
        """Draw the scalar metrics called `names` (all, without any) against the step.

        **Returns:** a `matplotlib` figure with one panel for each metric. A notebook
        shows it where it is a cell's last line; `figure.savefig(...)` keeps it.

        **Raises:** `KeyError` for a name that is no scalar metric; `ValueError` where
        there is nothing to draw; `ImportError`, with the command to install it,
        without matplotlib.
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
