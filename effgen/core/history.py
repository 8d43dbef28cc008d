"""What a run reported: every step's metrics, as a mapping, a table or a picture."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from .ledger import Ledger
from .results import RESULTS


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
        return self.metrics[name]

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names."""
        return iter(self.metrics)

    def __len__(self) -> int:
        """Return the number of metrics."""
        return len(self.metrics)

    @property
    def scalars(self) -> dict[str, np.ndarray]:
        """The metrics that are one number a step."""
        return {
            name: value
            for name, value in self.metrics.items()
            if isinstance(value, np.ndarray) and value.ndim == 1
        }

    def to_pandas(self) -> Any:
        """Return the scalar metrics as a `pandas.DataFrame`, indexed by step."""
        import pandas as pd

        return pd.DataFrame(self.scalars, index=pd.Index(self.steps, name="step"))

    def plot(self, *names: str) -> Any:
        """Draw the scalar metrics called `names` (all, without any) against the step.

        **Returns:** a `matplotlib` figure with one panel for each metric.

        **Raises:** `KeyError` for a name that is no scalar metric.
        """
        from matplotlib.figure import Figure

        scalars = self.scalars
        unknown = [name for name in names if name not in scalars]
        if unknown or not scalars:
            raise KeyError(f"{unknown} not among the scalar metrics {list(scalars)}.")
        names = names or tuple(scalars)
        figure = Figure(figsize=(4.0 * len(names), 3.0), layout="constrained")
        for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names):
            axes.plot(self.steps, scalars[name], linewidth=0.8)
            axes.set(xlabel="step", title=name)
        return figure
