"""Wrappers of a run: checkpoints, and what to do on failure."""

import dataclasses
import os
from collections.abc import Iterator
from typing import Any

from .checkpoint import CheckpointWriter, later_steps
from .guard import AbstractGuard
from .job import Chunk, Job
from .results import RESULTS, TrainingError
from .state import TrainState
from .train import Run


def check_run(run: Any) -> None:
    """Raise `TypeError` if `run`, a wrapper's first argument, is no run."""
    if not isinstance(run, Run):
        raise TypeError(
            f"`run` is a {type(run).__name__}: pass what `effgen.train(...)` returned, "
            "or another wrapper around it."
        )


def checkpointed(
    run: Run, directory: str | os.PathLike[str], *, every: int = 1_000, keep: int = 3
) -> Run:
    """Save the state at each multiple of `every` steps, and when the run ends.

    Saves are asynchronous and atomic (see `save`); the newest `keep` stay. The end may
    be the last step, Ctrl-C, SIGTERM or a failure: then the last good state is saved. A
    save that failed in the background is raised before the next chunk. The data's
    state, where it has one, is saved too. To resume:

    ```python
    state = effgen.resume(directory, state)
    run = effgen.train(..., num_steps=50_000 - int(state.step))
    for state, metrics in effgen.checkpointed(run, directory, every=5_000): ...
    ```

    **Raises:** `ValueError` if `directory` holds steps past the run's first: they would
    be mixed with this run's. `OSError` at once if it cannot be written.
    """
    if every < 1 or keep < 1:
        raise ValueError(f"`every` and `keep` must be positive, not {every}, {keep}.")
    writer = CheckpointWriter(directory, keep=keep)
    later = later_steps(directory, int(run.state.step))
    if later:
        raise ValueError(
            f"`{os.fspath(directory)}` already holds step {later[-1]}, past this run's "
            f"first, {int(run.state.step)}: resume with `effgen.resume`, or choose "
            "another directory."
        )
    return run.through(
        lambda chunks, job: _checkpointed(chunks, job, writer, every), period=every
    )


def _checkpointed(
    chunks: Iterator[Chunk], job: Job, writer: CheckpointWriter, every: int
) -> Iterator[Chunk]:
    saved, last = int(job.state.step), None
    try:
        for last in chunks:
            with job.ledger.account("checkpoint"):
                _raise_failure(writer, last.state)
                if last.stop % every == 0:
                    _save(writer, last.state, last.position)
                    saved = last.stop
            yield last
    except TrainingError as error:
        if error.result != RESULTS.checkpoint_failed:
            if int(error.state.step) > saved:
                _save(writer, error.state, None if last is None else last.position)
            writer.close()
        raise
    with job.ledger.account("checkpoint"):
        if last is not None and last.stop > saved:
            _save(writer, last.state, last.position)
        _close(writer, job.state)


def _save(writer: CheckpointWriter, state: TrainState, position: Any) -> None:
    try:
        writer.save(state, position)
    except Exception as error:
        raise _not_saved(state, error) from error


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


def guarded(run: Run, guard: AbstractGuard) -> Run:
    """Choose what happens when a step fails: `Stop()`, `Skip(...)` or `Rollback(...)`.

    A step fails if its loss, gradient or parameters are not finite or if it reports a
    `"result"` that is not successful; its state is never kept.
    """
    check_run(run)
    if not isinstance(guard, AbstractGuard):
        raise TypeError(f"`guard` is {guard!r}: pass Stop(), Skip() or Rollback().")
    run.check_unstarted()
    return Run(dataclasses.replace(run.job, guard=guard), run.wrappers)
