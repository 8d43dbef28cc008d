"""The picture that a history draws; importing this file imports matplotlib."""

import io

import numpy as np
from matplotlib.figure import Figure

from .scalars import doubles


class Picture(Figure):
    """A figure that notebooks show, whether or not pyplot was imported.

    Pyplot is not told of it: it would show it once more, and keep it until closed.
    """

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png")
        return buffer.getvalue()


def curves(steps: np.ndarray, metrics: dict[str, np.ndarray]) -> Picture:
    """Return a figure with one panel for each metric, drawn against `steps`."""
    figure = Picture(figsize=(4.0 * len(metrics), 3.0), layout="constrained")
    (row,) = figure.subplots(1, len(metrics), squeeze=False)
    for axes, (name, values) in zip(row, metrics.items()):
        axes.plot(steps, doubles(values), linewidth=0.8)
        axes.set(xlabel="step", title=name)
    return figure
