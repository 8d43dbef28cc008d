"""The steps between two yields of a run: the means of their metrics, and a count."""

import math

import numpy as np

from effgen.core.outcome.scalars import doubles, mean, scalars
from effgen.core.running.job import Chunk


class Window:
    """The steps since a run's last yield: means over the sound ones, and a count."""

    def __init__(self, num_skipped: int) -> None:
        """Begin where `num_skipped` steps of the run were skipped."""
        self.before = num_skipped
        self.clear()

    def clear(self) -> None:
        """Begin anew after the last step."""
        self.stop: int | None = None
        self.num_skipped = 0
        self.values: dict[str, list[np.ndarray]] = {}

    def add(self, chunk: Chunk, num_skipped: int) -> None:
        """Add a chunk, at whose end `num_skipped` steps of the run were skipped."""
        skipped, self.before = num_skipped - self.before, num_skipped
        self.num_skipped += skipped
        self.stop = chunk.stop
        # A skipped step is a chunk of its own: what it reported says nothing of the
        # training, finite or not.
        sound = skipped < chunk.stop - chunk.start
        for name, values in scalars(chunk.metrics).items():
            found = doubles(values if sound else values[:0])
            self.values.setdefault(name, []).append(found)

    def means(self) -> dict[str, float | None]:
        """Return each metric's mean over its finite values; `None` without any."""
        means = {n: mean(np.concatenate(parts)) for n, parts in self.values.items()}
        return {
            n: value if math.isfinite(value) else None for n, value in means.items()
        }
