"""What a run is to do, and what passes between its parts."""

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray

from effgen.core.contract.state import Metrics, TrainState
from effgen.core.contract.trainer import AbstractTrainer
from effgen.core.data.batches import Source
from effgen.core.devices.interrupts import Interrupts
from effgen.core.outcome.ledger import Ledger
from effgen.core.outcome.results import RESULTS

from .guard import AbstractGuard
from .program import Program


# How far a rollback may reach where the run itself sets no boundary; a count of steps
# and not of seconds, so that what is done again never depends on the clock.
_RETRY_STEPS = 100

MOST_STEPS = int(np.iinfo(np.int32).max)  # the state counts in 32 bits


class Chunk(NamedTuple):
    """Consecutive steps as the wrappers of a run see them.

    Attributes:
        state: The state after the last step.
        metrics: Numpy arrays with a leading axis of steps.
        start: The count of steps before them.
        stop: The count of steps after them.
        boundary: Whether the run yields here.
        position: The data's state.
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

    A run and all that it is wrapped in share one. `every` and `periods` say where
    chunks must end: at their multiples, in the steps of the state. `decay` is that of
    the model's average, `patience` the longest wait for data or another process.
    `first` is the step of the run's first state, and `claimed` what wrappers write to.
    """

    trainer: AbstractTrainer
    state: TrainState
    source: Source
    data: Any
    key: PRNGKeyArray
    num_steps: int | None
    every: int | None
    guard: AbstractGuard
    patience: float
    decay: float | None = None
    periods: tuple[int, ...] = ()
    claimed: tuple[Path, ...] = ()
    result: Any = dataclasses.field(default_factory=lambda: RESULTS.successful)
    program: Program | None = None
    num_skipped: int = 0
    num_rollbacks: int = 0
    ledger: Ledger = dataclasses.field(default_factory=Ledger)
    interrupts: Interrupts = dataclasses.field(default_factory=Interrupts)
    first: int = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        self.first = int(self.state.step)

    def check_average(self) -> None:
        """Raise where the state keeps an average that this run would not go on with."""
        if self.decay is None and self.state.average is not None:
            raise ValueError(
                "`state` keeps an average of its model, which this run would not go on "
                "with: wrap it, `effgen.averaged(train(...), decay)`, or begin without "
                "by `dataclasses.replace(state, average=None)`."
            )

    def claim(self, name: str, path: Path) -> None:
        """Note that a wrapper writes to `path`, which is its argument `name`.

        Raises:
            ValueError: If another wrapper of the run does.
        """
        path = path.resolve()
        if path in self.claimed:
            raise ValueError(
                f"`{name}` is `{path}`, which this run is written to already: wrap it "
                "once, or pass another path."
            )
        self.claimed += (path,)

    def room(self, start: int, step: int) -> int:
        """Return how many steps may be taken at `step` before a chunk must end."""
        rooms = [period - step % period for period in self.periods]
        if self.every is not None:
            rooms.append(self.every - step % self.every)
        elif self.guard.num_retries:
            rooms.append(_RETRY_STEPS - step % _RETRY_STEPS)
        if self.num_steps is not None:
            rooms.append(start + self.num_steps - step)
        return min(*rooms, MOST_STEPS - step, MOST_STEPS)

    def yields_at(self, start: int, step: int) -> bool:
        """Return whether the run yields after `step`."""
        last = self.num_steps is not None and step == start + self.num_steps
        return self.every is None or step % self.every == 0 or last


def joined(metrics: Iterable[Metrics]) -> Metrics:
    """Return consecutive chunks' metrics as one, along their axis of steps.

    A metric whose shape changes with the batch becomes an array of arrays, one a step;
    where a chunk has not all names, the missing are `None`.
    """
    parts = list(metrics)
    try:
        return jax.tree.map(lambda *rows: _concatenated(rows), *parts)
    except ValueError:  # other trees, of batches of another kind
        return _merged(parts)


def _merged(parts: list[Metrics]) -> Metrics:
    names = dict.fromkeys(name for part in parts for name in part)
    counts = [len(jax.tree.leaves(part)[0]) for part in parts]
    return {
        name: _concatenated(
            [
                _rows(part.get(name), num)
                for part, num in zip(parts, counts, strict=True)
            ]
        )
        for name in names
    }


def _rows(value: Any, num: int) -> np.ndarray:
    if isinstance(value, np.ndarray):
        return value
    rows = np.empty(num, object)
    rows[:] = [jax.tree.map(lambda x, i=i: x[i], value) for i in range(num)]
    return rows


def _concatenated(parts: Any) -> np.ndarray:
    kinds = {(part.shape[1:], part.dtype == object) for part in parts}
    if len(kinds) == 1:
        return np.concatenate(parts)
    rows = [row for part in parts for row in part]
    ragged = np.empty(len(rows), object)
    ragged[:] = rows
    return ragged


def run_keys(key: PRNGKeyArray) -> tuple[PRNGKeyArray, PRNGKeyArray]:
    """Return the keys of a run's data and of its noise; step `i` folds in `i`."""
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.wrap_key_data(key)
    data_key, noise_key = jax.random.split(key)
    return data_key, noise_key
