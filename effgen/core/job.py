"""What a run is to do, and what passes between its parts."""

import dataclasses
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray

from .data import Source
from .guard import AbstractGuard
from .interrupts import Interrupts
from .ledger import Ledger
from .program import Program
from .results import RESULTS
from .state import Metrics, TrainState
from .trainer import AbstractTrainer


# How far a rollback may reach where the run itself sets no boundary; a count of steps
# and not of seconds, so that what is done again never depends on the clock.
_RETRY_STEPS = 100


class Chunk(NamedTuple):
    """Consecutive steps as the wrappers of a run see them.

    **Attributes:** `state` after the last step; `metrics`, numpy arrays with a leading
    axis of steps; `start` and `stop`, the steps' range; `boundary`, whether the run
    yields here; `position`, the data's state.
    """

    state: TrainState
    metrics: Metrics
    start: int
    stop: int
    boundary: bool
    position: Any


@dataclasses.dataclass
class Job:
    """What one run is to do, and what is known of it while it goes.

    `every` and `periods` say where chunks must end: after each `every` steps of this
    run, and at each multiple of a period in the steps of the state.
    """

    trainer: AbstractTrainer
    state: TrainState
    source: Source
    data: Any
    key: PRNGKeyArray
    num_steps: int | None
    every: int | None
    guard: AbstractGuard
    periods: tuple[int, ...] = ()
    result: Any = dataclasses.field(default_factory=lambda: RESULTS.successful)
    program: Program | None = None
    num_skipped: int = 0
    num_rollbacks: int = 0
    ledger: Ledger = dataclasses.field(default_factory=Ledger)
    interrupts: Interrupts = dataclasses.field(default_factory=Interrupts)

    def room(self, start: int, step: int) -> int:
        """Return how many steps may be taken at `step` before a chunk must end."""
        rooms = [period - step % period for period in self.periods]
        if self.every is not None:
            rooms.append(self.every - (step - start) % self.every)
        elif self.guard.num_retries:
            rooms.append(_RETRY_STEPS - (step - start) % _RETRY_STEPS)
        if self.num_steps is not None:
            rooms.append(start + self.num_steps - step)
        return min(rooms, default=np.iinfo(np.int32).max)

    def yields_at(self, start: int, step: int) -> bool:
        """Return whether the run yields after `step`."""
        done = step - start
        return self.every is None or done % self.every == 0 or done == self.num_steps


def joined(metrics: Iterable[Metrics]) -> Metrics:
    """Return consecutive chunks' metrics as one, along their axis of steps."""
    return jax.tree.map(lambda *parts: np.concatenate(parts), *metrics)


def run_keys(key: PRNGKeyArray) -> tuple[PRNGKeyArray, PRNGKeyArray]:
    """Return the keys of a run's data and of its noise; step `i` folds in `i`."""
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.wrap_key_data(key)
    data_key, noise_key = jax.random.split(key)
    return data_key, noise_key
