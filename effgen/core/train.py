"""`train` and `fit`: one engine under every trainer."""

import dataclasses
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray

from .data import AbstractBatches, Indexed, as_source
from .engine import chunks_of
from .guard import Stop
from .history import History
from .job import Chunk, Job, joined
from .ledger import Ledger
from .state import Metrics, TrainState
from .trainer import AbstractTrainer


Wrapper = Callable[[Iterator[Chunk], Job], Iterator[Chunk]]


@dataclasses.dataclass
class Run:
    """A training run: an iterator of `(state, metrics)` that computes as it is drawn.

    Yielded states stay valid; each that is kept holds its memory. `len(run)` is the
    number of yields, where it is known.
    """

    job: Job
    wrappers: tuple[Wrapper, ...] = ()
    _chunks: Iterator[Chunk] | None = None
    _left: float = 0.0

    def through(self, wrapper: Wrapper, *, period: int | None = None) -> "Run":
        """Return the run with `wrapper` around its chunks.

        `wrapper(chunks, job)` is a generator that passes on each chunk it is given and
        may act between two of them. With a `period`, chunks end at its multiples.

        **Raises:** `RuntimeError` if the run has started.
        """
        self.check_unstarted()
        periods = self.job.periods + (() if period is None else (period,))
        job = dataclasses.replace(self.job, periods=periods)
        return Run(job, (*self.wrappers, wrapper))

    def check_unstarted(self) -> None:
        """Raise `RuntimeError` if the run has started."""
        if self._chunks is not None:
            raise RuntimeError(
                "this run has started: wrap it before its first step, as in "
                "`progress(train(...))`."
            )

    def __iter__(self) -> "Run":
        """Return the run itself."""
        return self

    def __next__(self) -> tuple[TrainState, Metrics]:
        """Compute to the next yield; return the state and the metrics of its steps."""
        held: list[Metrics] = []
        for chunk in self.chunks():
            held.append(chunk.metrics)
            if chunk.boundary:
                break
        if not held:
            raise StopIteration
        return self.job.state, joined(held)

    def __len__(self) -> int:
        """Return how many times the run yields if nothing stops it."""
        job = self.job
        num_steps = job.num_steps
        if num_steps is None and isinstance(job.source, Indexed):
            num_steps = max(0, len(job.source.sequence) - int(job.state.step))
        if num_steps is None or job.every is None:
            raise TypeError("the length of a run without `num_steps` is not known.")
        return -(-num_steps // job.every)

    def chunks(self) -> Iterator[Chunk]:
        """Yield the run's chunks, finer than its yields; what a wrapper sees."""
        if self._chunks is None:
            self._chunks = self._started()
            self._left = time.perf_counter()
        ledger, interrupts = self.job.ledger, self.job.interrupts
        while True:
            ledger.seconds["evaluation"] += time.perf_counter() - self._left
            interrupts.hold(signal.SIGINT, signal.SIGTERM)
            chunk = None
            try:
                with ledger.account("host"):
                    chunk = next(self._chunks, None)
            finally:
                interrupts.release(signal.SIGINT)
                self._left = time.perf_counter()
                if chunk is None or interrupts.result is not None:
                    interrupts.release(signal.SIGTERM)
            if chunk is None:
                return
            self.job.state = chunk.state
            yield chunk

    def _started(self) -> Iterator[Chunk]:
        chunks = chunks_of(self.job)
        for wrapper in self.wrappers:
            chunks = wrapper(chunks, self.job)
        return chunks

    def __del__(self) -> None:
        """Give SIGTERM back when a run is dropped before its end."""
        # What was wrapped shares its signals with the run around it, and never starts.
        if self._chunks is not None:
            self.job.interrupts.release(signal.SIGINT, signal.SIGTERM)

    @property
    def state(self) -> TrainState:
        """The state that the run has reached."""
        return self.job.state

    @property
    def result(self) -> Any:
        """How the run ended, an item of `RESULTS`; `successful` while it goes well."""
        return self.job.result

    @property
    def ledger(self) -> Ledger:
        """Where the run's time went."""
        return self.job.ledger

    @property
    def num_skipped(self) -> int:
        """How many failed steps were left out (`guarded(run, Skip())`)."""
        return self.job.num_skipped

    @property
    def num_rollbacks(self) -> int:
        """How many times the run went back (`guarded(run, Rollback())`)."""
        return self.job.num_rollbacks


def train(
    trainer: AbstractTrainer,
    state: TrainState,
    data: Any,
    *,
    key: PRNGKeyArray,
    num_steps: int | None = None,
    every: int | None = 1,
) -> Run:
    """Train: return a run that yields `(state, metrics)` after each `every` steps.

    Step `i` computes `state = trainer.step(state, batch_i, key=fold_in(noise_key, i))`
    with `i = state.step`, so a resumed run repeats, bit for bit, the one that never
    stopped; how the steps are cut into chunks changes nothing.

    ```python
    for state, metrics in effgen.progress(effgen.train(trainer, state, data, key=key,
                                                       num_steps=1_000, every=100)):
        print(int(state.step), metrics["loss"].mean())
    ```

    **Arguments:**

    - `trainer`: any `AbstractTrainer`.
    - `state`: from `trainer.init`, a run, or a checkpoint; it stays usable.
    - `data`: `Minibatches` and the like, a function `key -> batch`, a sequence
      (indexed by step) or any other iterable of batches.
    - `key`: the run's randomness; pass the same one to resume.
    - `num_steps`: how many steps to take from `state`; `None`: to the data's end.
    - `every`: how many steps make one yield; `None` yields about twice a second.

    **Returns:** a `Run`. Its metrics are numpy arrays with a leading axis of steps.
    Wrap it in `progress`, `logged`, `checkpointed` or `guarded` before the first step.

    **Raises:** `TypeError` or `ValueError` for bad arguments at once; `TrainingError`,
    which holds the last good state, if a step fails midway.
    """
    source = as_source(data)
    _check_state(state)
    _check_key(key)
    _check_count("num_steps", num_steps, 0)
    _check_count("every", every, 1)
    if isinstance(source, AbstractBatches) and num_steps is None:
        raise ValueError(
            "`num_steps` is needed: batches drawn on the device have no end."
        )
    trainer = trainer.for_data(state, data)
    job = Job(trainer, state, source, data, key, num_steps, every, Stop())
    return Run(job)


def fit(
    trainer: AbstractTrainer,
    state: TrainState,
    data: Any,
    *,
    key: PRNGKeyArray,
    num_steps: int | None = None,
    every: int | None = 1,
) -> tuple[TrainState, History]:
    """Train to the end; return the last state and the metrics of every step.

    The arguments are those of `train`. Nobody looks on, so the steps are cut into
    chunks of about half a second, whatever `every` is.

    **Returns:** `(state, history)`. After Ctrl-C they are those of the last finished
    step, with a warning and `history.result`.

    **Raises:** as `train`.
    """
    _check_count("every", every, 1)
    run = train(trainer, state, data, key=key, num_steps=num_steps, every=None)
    return drain(run)


def drain(run: Run) -> tuple[TrainState, History]:
    """Run `run`, wrapped as it may be, to its end; return the last state and history.

    ```python
    state, history = effgen.drain(effgen.progress(effgen.train(...)))
    ```
    """
    start = int(run.state.step)
    metrics = [chunk.metrics for chunk in run.chunks()]
    steps = np.arange(start + 1, int(run.state.step) + 1)
    merged = joined(metrics) if metrics else {}
    return run.state, History(merged, steps, run.result, run.ledger)


def _check_state(state: Any) -> None:
    if not isinstance(state, TrainState):
        raise TypeError(
            f"`state` is a {type(state).__name__}: pass what `trainer.init(...)` "
            "returned, or a restored `TrainState`."
        )
    for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]:
        if isinstance(leaf, jax.Array) and leaf.is_deleted():
            raise ValueError(
                f"`state{jax.tree_util.keystr(path)}` was deleted: its memory was "
                "donated elsewhere. Pass a state whose arrays are alive."
            )


def _check_key(key: Any) -> None:
    typed = isinstance(key, jax.Array) and jnp.issubdtype(
        key.dtype, jax.dtypes.prng_key
    )
    raw = isinstance(key, jax.Array) and key.dtype == np.uint32 and key.ndim == 1
    if not raw and not (typed and key.ndim == 0):
        raise TypeError(
            f"`key` is {key!r}: pass one random key, such as `jax.random.key(0)`."
        )


def _check_count(name: str, value: Any, least: int) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"`{name}` is {value!r}: pass an integer or None.")
    if value < least:
        raise ValueError(f"`{name}` is {value}: pass {least} or more.")
