"""A run: an iterator of states and metrics that computes as it is drawn."""

import atexit
import signal
import time
import warnings
import weakref
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any

import numpy as np

from effgen.core.contract.state import Metrics, TrainState
from effgen.core.data.batches import Indexed
from effgen.core.outcome.history import History
from effgen.core.outcome.ledger import Ledger
from effgen.core.outcome.results import RESULTS, RunWarning, TrainingError

from .engine import Loop
from .job import Chunk, Job, joined


Wrapper = Callable[[Iterator[Chunk], Job], Iterator[Chunk]]


class Run:
    """A training run: an iterator of `(state, metrics)` that computes as it is drawn.

    Yielded states stay valid. Each state that is kept holds its memory. `len(run)` is
    the number of yields, where it is known. If the loop is left by `break` or an
    exception, the run ends as with its last step, and what is to be saved is saved.
    `close()` and the end of a `with` block do the same:

    ```python
    with effgen.checkpointed(effgen.train(...), "runs/first") as run:
        state, metrics = next(run)
    ```

    Attributes:
        state: The state that the run has reached.
        result: How the run ended, an item of `RESULTS`.
        ledger: The run's time by what it was spent on, in seconds.
        num_skipped: How many failed steps were left out.
        num_rollbacks: How many times the run went back.
        job: What the run is to do; a run and its wrappers share it.
        wrappers: The functions around the run's chunks, innermost first.
    """

    def __init__(self, job: Job, wrappers: tuple[Wrapper, ...] = ()) -> None:
        """Wrap `job`; nothing is computed yet."""
        self.job = job
        self.wrappers = wrappers
        self._loop: Loop | None = None
        self._layers: list[Any] = []  # the generators, innermost first
        self._left = 0.0
        self._outer: Run | None = None  # what this run was wrapped in
        self._ended = False

    def through(self, wrapper: Wrapper, *, period: int | None = None) -> "Run":
        """Return the run with `wrapper` around its chunks, in place of this one.

        Arguments:
            wrapper: `wrapper(chunks, job)` is a generator that passes on each chunk it
                is given and may act between two of them. Where the loop is left it is
                closed.
            period: Chunks end at the multiples of this many steps too; `None` for no
                such end.

        Returns:
            The run to go on with.

        Raises:
            RuntimeError: If the run has started, or is wrapped already.
        """
        self.check_unstarted()
        self.job.periods += () if period is None else (period,)
        self._outer = Run(self.job, (*self.wrappers, wrapper))
        return self._outer

    def check_unstarted(self) -> None:
        """Raise unless the run can still be wrapped.

        Raises:
            RuntimeError: If the run has started, or another one wraps it.
        """
        if self._outer is not None:
            raise RuntimeError(
                "this run was wrapped: go on with what the wrapper returned, as in "
                "`run = progress(run)`. Both have one state and one result."
            )
        if self._layers:
            raise RuntimeError(
                "this run has started: wrap it before its first step, as in "
                "`progress(train(...))`."
            )

    def __iter__(self) -> Iterator[tuple[TrainState, Metrics]]:
        """Yield `(state, metrics)` to the end; leaving the loop closes the run."""
        if self._outer is not None:
            self.check_unstarted()
        if self._ended and self.job.result == RESULTS.left:
            raise RuntimeError(
                f"this run was left at step {int(self.state.step)}: go on by `train` "
                "from `run.state`."
            )
        return self._drawn()

    def _drawn(self) -> Iterator[tuple[TrainState, Metrics]]:
        try:
            while (drawn := self._draw()) is not None:
                yield drawn
        finally:
            # Of a `break`, Python hears no error: one that comes of it is warned of.
            try:
                self.close()
            except TrainingError as error:
                warnings.warn(str(error), RunWarning, stacklevel=2)

    def __next__(self) -> tuple[TrainState, Metrics]:
        """Compute to the next yield; return the state and the metrics of its steps."""
        drawn = self._draw()
        if drawn is None:
            raise StopIteration
        return drawn

    def __len__(self) -> int:
        """Return how many times the run yields if nothing stops it."""
        job, start = self.job, self.job.first
        num_steps = job.num_steps
        if isinstance(job.source, Indexed):
            left = max(0, len(job.source.sequence) - start)
            num_steps = left if num_steps is None else min(num_steps, left)
        if num_steps is None or job.every is None:
            raise TypeError("the length of a run without `num_steps` is not known.")
        if num_steps == 0:
            return 0
        return -(-(start + num_steps) // job.every) - start // job.every

    def __enter__(self) -> "Run":
        """Return the run; the block's end closes it."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the run."""
        self.close()

    def close(self) -> None:
        """End the run where it is: what ran is saved, and signals are given back.

        The data stand at the batch after the last one used. A run that has ended stays
        as it is.

        Raises:
            TrainingError: If what ran could not be saved.
        """
        if self._outer is not None:
            self._outer.close()
        elif not self._ended and self._loop is not None:
            self._stop(RESULTS.left)
        self._ended = True

    def chunks(self) -> Iterator[Chunk]:
        """Compute to the end; yield the run's chunks, finer than its yields.

        Yields:
            Consecutive steps, as a wrapper sees them: state, metrics and range.

        Raises:
            TrainingError: If a step, the data or a save fails.
            RuntimeError: If another run wraps this one.
        """
        try:
            while (chunk := self._next_chunk()) is not None:
                yield chunk
        finally:
            self.close()

    def _draw(self) -> tuple[TrainState, Metrics] | None:
        held: list[Metrics] = []
        start = int(self.job.state.step)
        try:
            while (chunk := self._next_chunk()) is not None:
                held.append(chunk.metrics)
                if chunk.boundary:
                    break
        except TrainingError as error:
            error.history = history_of(self.job, held, start)
            raise
        return (self.job.state, joined(held)) if held else None

    def _next_chunk(self) -> Chunk | None:
        if self._ended:
            return None
        if not self._layers:
            self._start()
        ledger, interrupts = self.job.ledger, self.job.interrupts
        ledger.seconds["evaluation"] += time.perf_counter() - self._left
        interrupts.hold(signal.SIGINT, signal.SIGTERM)
        chunk = None
        try:
            with ledger.account("host"):
                chunk = next(self._layers[-1], None)
        finally:
            interrupts.release(signal.SIGINT)
            self._left = time.perf_counter()
            if chunk is None:
                self._stop(RESULTS.stopped_elsewhere)
            elif interrupts.result is not None:
                interrupts.release(signal.SIGTERM)
        if chunk is not None:
            self.job.state = chunk.state
        return chunk

    def _start(self) -> None:
        self.check_unstarted()
        self._loop = Loop(self.job)
        _open.add(self)
        self._layers = [self._loop.chunks()]
        for wrapper in self.wrappers:
            self._layers.append(wrapper(self._layers[-1], self.job))
        self._left = time.perf_counter()

    def _stop(self, result: Any) -> None:
        """End the run; where it has more to do, other processes hear of it first."""
        assert self._loop is not None
        self._ended = True
        _open.discard(self)
        try:
            self._loop.leave(result)
            for layer in self._layers:
                layer.close()
        finally:
            self.job.interrupts.release(signal.SIGINT, signal.SIGTERM)

    def __del__(self) -> None:
        """End a run that is dropped before its end; nothing is printed."""
        if self._outer is None:
            try:
                self.close()
            except Exception:
                return  # of a run that nobody asks of any more

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
        """The run's time by what it was spent on."""
        return self.job.ledger

    @property
    def num_skipped(self) -> int:
        """How many failed steps were left out (`guarded(run, Skip())`)."""
        return self.job.num_skipped

    @property
    def num_rollbacks(self) -> int:
        """How many times the run went back (`guarded(run, Rollback())`)."""
        return self.job.num_rollbacks


# Runs under way: those that the script's end finds open are closed before modules go.
_open: "weakref.WeakSet[Run]" = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    for run in list(_open):
        run.close()


def check_run(run: Any) -> None:
    """Raise `TypeError` if `run`, a wrapper's first argument, is no run."""
    if not isinstance(run, Run):
        raise TypeError(
            f"`run` is a {type(run).__name__}: pass what `effgen.train(...)` returned, "
            "or another wrapper around it."
        )


def history_of(job: Job, metrics: list[Metrics], start: int) -> History:
    """Return the history of the steps from `start` to where the run is."""
    steps = np.arange(start + 1, int(job.state.step) + 1)
    return History(joined(metrics) if metrics else {}, steps, job.result, job.ledger)
