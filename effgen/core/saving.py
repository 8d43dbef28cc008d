"""`checkpointed`: a run that saves itself, and keeps its best beside its newest."""

import os
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import numpy as np

from .checkpoint import absolute, read_manifest, saved_steps
from .job import Chunk, Job
from .results import RESULTS, TrainingError
from .state import TrainState
from .train import Run
from .writer import CheckpointWriter


def checkpointed(
    run: Run,
    directory: str | os.PathLike[str],
    *,
    every: int = 1_000,
    keep: int = 3,
    best: str | None = None,
    mode: Literal["min", "max"] = "min",
) -> Run:
    """Save the state at each multiple of `every` steps, and when the run ends.

    Saves are asynchronous and atomic (see `save`); the newest `keep` stay. The end may
    be the last step, Ctrl-C, SIGTERM, a failure, `break` or an exception in the loop's
    body: the last good state is saved, with where its data stood. A save that failed in
    the background is raised before the next chunk. To resume:

    ```python
    state = effgen.resume(directory, state)
    run = effgen.train(..., num_steps=50_000 - int(state.step))
    for state, metrics in effgen.checkpointed(run, directory, every=5_000): ...
    ```

    **Arguments:**

    - `run`, `directory`: of this run alone.
    - `every`, `keep`: how many steps lie between two saves, and how many saves stay.
    - `best`: a metric, one number a step. At each multiple of `every` its mean over the
      `every` steps before is compared; the best checkpoint stays, beside the newest,
      and `restore(directory, like, step="best")` returns it. A mean that is not finite
      is never the best, nor is an end between two multiples. A run that was
      interrupted and resumed finds the same best as one that was not.
    - `mode`: whether the least (`"min"`) or the greatest (`"max"`) mean is best.

    **Raises:** `ValueError` if `directory` holds sound steps past the run's first: they
    would be mixed with this run's. `OSError` at once if it cannot be written. In the
    run, `TrainingError` with `checkpoint_failed`.
    """
    if every < 1 or keep < 1:
        raise ValueError(f"`every` and `keep` must be positive, not {every}, {keep}.")
    if mode not in ("min", "max"):
        raise ValueError(f'`mode` is {mode!r}: pass "min" or "max".')
    path, step = absolute(directory), int(run.state.step)
    writer = CheckpointWriter(path, keep=keep)
    writer.clear(step)
    score = None if best is None else _Score(best, mode).after(path, step)
    return run.through(
        lambda chunks, job: _checkpointed(chunks, job, writer, every, score),
        period=every,
    )


class _Score(NamedTuple):
    """The sum of a metric over the steps since the last multiple of `every`."""

    metric: str
    mode: str
    total: float = 0.0
    count: int = 0

    def after(self, path: Any, step: int) -> "_Score":
        """Return the sum that a run had reached when it was saved at `step`."""
        kept = (
            read_manifest(path / str(step)).get("score") if _has(path, step) else None
        )
        if kept is None or (kept["metric"], kept["mode"]) != (self.metric, self.mode):
            return self
        return self._replace(total=float(kept["total"]), count=kept["count"])

    def plus(self, chunk: Chunk) -> "_Score":
        """Return the sum with a chunk's steps."""
        values = np.asarray(chunk.metrics.get(self.metric))
        if values.ndim != 1 or values.dtype == object:
            names = [k for k, v in chunk.metrics.items() if np.ndim(v) == 1]
            raise ValueError(
                f"`best` is {self.metric!r}, which is not one number a step: choose "
                f"from {', '.join(sorted(names))}."
            )
        total = self.total + float(values.sum(dtype=np.float64))
        return self._replace(total=total, count=self.count + len(values))

    def record(self, *, complete: bool) -> dict[str, Any]:
        """Return the sum as JSON, and the mean where all steps are in."""
        mean = self.total / self.count if complete and self.count else None
        # As text: JSON knows no NaN, and a sum that met one is to stay one.
        record = self._asdict() | {"total": repr(self.total)}
        return record | {"mean": mean if mean is None or np.isfinite(mean) else None}


def _has(path: Any, step: int) -> bool:
    return step in saved_steps(path)


def _checkpointed(
    chunks: Iterator[Chunk],
    job: Job,
    writer: CheckpointWriter,
    every: int,
    score: _Score | None,
) -> Iterator[Chunk]:
    saved, end = int(job.state.step), None
    try:
        for chunk in chunks:
            end = chunk.state, chunk.position
            score = None if score is None else score.plus(chunk)
            with job.ledger.account("checkpoint"):
                _raise_failure(writer, chunk.state)
                if chunk.stop % every == 0:
                    saved = _save(writer, *end, score, complete=True)
                    score = (
                        None if score is None else score._replace(total=0.0, count=0)
                    )
            yield chunk
    except TrainingError as error:
        position = getattr(error, "position", None if end is None else end[1])
        failed = error.result == RESULTS.checkpoint_failed
        end = None if failed else (error.state, position)
        raise
    finally:
        with job.ledger.account("checkpoint"):
            if end is not None and int(end[0].step) > saved:
                _save(writer, *end, score, complete=False)
            _close(writer, job.state)


def _save(
    writer: CheckpointWriter,
    state: TrainState,
    position: Any,
    score: _Score | None,
    *,
    complete: bool,
) -> int:
    record = None if score is None else score.record(complete=complete)
    try:
        writer.save(state, position, record)
    except Exception as error:
        raise _not_saved(state, error) from error
    return int(state.step)


def _close(writer: CheckpointWriter, state: TrainState) -> None:
    try:
        writer.close()
    except Exception as error:
        raise _not_saved(state, error) from error


def _raise_failure(writer: CheckpointWriter, state: TrainState) -> None:
    error = writer.failure()
    if error is not None:
        raise _not_saved(state, error) from error


def _not_saved(state: TrainState, error: BaseException) -> TrainingError:
    result, step = RESULTS.checkpoint_failed, int(state.step)
    text = f"{type(error).__name__}: {error}"
    return TrainingError(
        f"by step {step} a checkpoint could not be written ({text}). {RESULTS[result]}",
        result=result,
        step=step,
        state=state,
        metrics={},
    )
