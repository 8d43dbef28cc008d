"""What a rollback needs: the state at the last boundary, and the chunks since."""

import jax
import numpy as np

from .device_run import DeviceDriver
from .host_run import HostDriver
from .job import Chunk, joined


class Retry:
    """What is held of a run until it can no longer be undone."""

    def __init__(
        self, driver: DeviceDriver | HostDriver, num_retries: int, step: int
    ) -> None:
        """Mark where `driver` is, at `step`."""
        self.driver, self.num_retries = driver, num_retries
        self.noise_key = driver.noise_key
        self._mark(step)

    def held(self, chunk: Chunk, room: int) -> Chunk | None:
        """Hold `chunk` back until a boundary, where it can no longer be undone."""
        self.chunks.append(chunk)
        if chunk.stop - chunk.start < room:
            return None
        (whole,) = self.rest()
        return whole

    def rest(self, last: Chunk | None = None) -> list[Chunk]:
        """Return what is held back, as at most one chunk, and begin anew from here."""
        chunks = [*self.chunks, *([] if last is None else [last])]
        self.driver.set_noise(self.noise_key)
        self._mark(chunks[-1].stop if chunks else self.step)
        if not chunks:
            return []
        metrics = joined([chunk.metrics for chunk in chunks])
        return [chunks[-1]._replace(metrics=metrics, start=chunks[0].start)]

    def again(self) -> int | None:
        """Go back and take new noise; return the step, `None` if that was often enough.

        The noise of an attempt depends on its number alone.
        """
        if self.attempt == self.num_retries:
            return None
        self.attempt += 1
        self.chunks = []
        self.driver.back(self.mark)
        fresh = jax.random.fold_in(self.noise_key, np.iinfo(np.int32).max)
        self.driver.set_noise(jax.random.fold_in(fresh, self.attempt))
        return self.step

    def _mark(self, step: int) -> None:
        self.mark, self.step, self.attempt = self.driver.mark(), step, 0
        self.chunks: list[Chunk] = []
