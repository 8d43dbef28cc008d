"""What a rollback needs: the state at the last boundary, and what came since."""

from typing import Any

import jax
import numpy as np

from effgen.core.data.stream import Read

from .device_run import DeviceDriver
from .host_run import HostDriver
from .job import Chunk, joined


class Retry:
    """What is held of a run until it can no longer be undone.

    Attributes:
        step: The step of the last boundary.
        position: The data's state there.
        reads: The batches taken since, on the host.
        chunks: The steps taken since.
    """

    step: int
    position: Any
    reads: tuple[Read, ...]
    chunks: list[Chunk]

    def __init__(self, driver: DeviceDriver | HostDriver, num_retries: int) -> None:
        """Hold nothing yet."""
        self.driver, self.num_retries = driver, num_retries
        self.noise_key = driver.noise_key

    def mark(self, step: int, position: Any, reads: tuple[Read, ...] | None) -> None:
        """Note that nothing before `step` is undone; `reads` are taken, not used."""
        self.step, self.position, self.reads = step, position, reads or ()
        self.marked, self.attempt = self.driver.mark(), 0
        self.chunks = []

    def took(self, reads: tuple[Read, ...] | None) -> None:
        """Note that further batches were taken."""
        self.reads += reads or ()

    def rest(self, last: Chunk | None = None) -> list[Chunk]:
        """Return what is held back, as at most one chunk, and take the usual noise."""
        chunks = [*self.chunks, *([] if last is None else [last])]
        self.driver.set_noise(self.noise_key)
        if not chunks:
            return []
        metrics = joined([chunk.metrics for chunk in chunks])
        return [chunks[-1]._replace(metrics=metrics, start=chunks[0].start)]

    def again(self) -> bool:
        """Go back and take new noise, unless that was done often enough.

        The noise of an attempt depends on its number alone.
        """
        if self.attempt == self.num_retries:
            return False
        self.attempt += 1
        self.chunks = []
        self.driver.back(self.marked)
        fresh = jax.random.fold_in(self.noise_key, np.iinfo(np.int32).max)
        self.driver.set_noise(jax.random.fold_in(fresh, self.attempt))
        return True
