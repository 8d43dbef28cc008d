"""`checkpointed`: a run that saves itself, and keeps its best beside its newest."""

import math
import os
import warnings
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray

from effgen.core.contract.counts import check_count
from effgen.core.contract.state import TrainState
from effgen.core.outcome.results import RESULTS, RunWarning, TrainingError
from effgen.core.outcome.scalars import doubles, scalars
from effgen.core.running.job import Chunk, Job
from effgen.core.running.run import Run, check_run

from .checkpoint import absolute, read_manifest, saved_steps
from .manifest import Manifest
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

    Saves are asynchronous and atomic (see `save`). The newest `keep` stay. At the end
    the last good state is saved, with the position of its data. The end may be the last
    step, Ctrl-C, SIGTERM, a failure, `break` or an exception in the loop's body. A save
    that failed in the background is raised before the next chunk. To resume:

    ```python
    state = effgen.resume(directory, state)
    run = effgen.train(..., num_steps=50_000 - int(state.step))
    for state, metrics in effgen.checkpointed(run, directory, every=5_000): ...
    ```

    Arguments:
        run: What `train` or another wrapper returned, not yet started.
        directory: The folder of this run alone; it is made.
        every: How many steps lie between two saves.
        keep: How many saves stay.
        best: A metric, one number a step, by the name that it has in `logged`. At each
            multiple of `every` its mean over the `every` steps before is compared; the
            best checkpoint stays, beside the newest, and `restore(directory, like,
            step="best")` returns it. A mean that is not finite is never the best, nor
            is an end between two multiples. A run that was interrupted and resumed
            finds the same best as one that was not.
        mode: Whether the least (`"min"`) or the greatest (`"max"`) mean is best.

    Returns:
        The run that saves itself. In it, `TrainingError` with `checkpoint_failed` is
            raised for a save that failed, `ValueError` if `best` is no such metric.

    Raises:
        ValueError: If `directory` holds sound steps past the run's first, which would
            be mixed with this run's, or takes the run's checkpoints already; or if
            `every`, `keep` or `mode` is out of range.
        OSError: At once if `directory` cannot be written.
        TypeError: If `run` is no run, `directory` no path, or `best` no name.
        RuntimeError: If `run` has started, or is wrapped already.

    Warns:
        RunWarning: If the run goes on from a checkpoint with another key.
    """
    check_run(run)
    run.check_unstarted()
    check_count("every", every)
    check_count("keep", keep)
    if best is not None and not isinstance(best, str):
        raise TypeError(f"`best` is {best!r}: pass the name of a metric, or None.")
    if mode not in ("min", "max"):
        raise ValueError(f'`mode` is {mode!r}: pass "min" or "max".')
    path, step = absolute(directory), int(run.state.step)
    run.job.claim("directory", path)
    key = _words(run.job.key)
    writer = CheckpointWriter(path, keep=keep, key=key)
    writer.clear(step)
    saved = read_manifest(path / str(step)) if step in saved_steps(path) else {}
    _check_key(saved, key)
    score = _Score(best, mode).after(saved)
    return run.through(
        lambda chunks, job: _checkpointed(chunks, job, writer, every, score),
        period=every,
    )


def _words(key: PRNGKeyArray) -> list[int]:
    typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    words = jax.random.key_data(key) if typed else key
    return np.ravel(words).tolist()


def _check_key(saved: Manifest, key: list[int]) -> None:
    if saved.get("key") not in (None, key):
        warnings.warn(
            f"the run goes on from step {saved['step']} with another `key` than that "
            "of the checkpoint: its noise and the order of its data differ from here "
            "on. With the same key it would repeat the run that never stopped.",
            RunWarning,
            stacklevel=3,
        )


class _Score(NamedTuple):
    """The sum of a metric over the steps since the last multiple of `every`."""

    metric: str | None
    mode: str
    total: float = 0.0
    num: int = 0

    def after(self, saved: Manifest) -> "_Score":
        """Return the sum that a run had reached when it was `saved`."""
        kept = saved.get("score")
        if kept is None or (kept["metric"], kept["mode"]) != (self.metric, self.mode):
            return self
        return self._replace(total=float(kept["total"]), num=kept["num"])

    def plus(self, chunk: Chunk) -> "_Score":
        """Return the sum with a chunk's steps."""
        if self.metric is None:
            return self
        found = scalars(chunk.metrics)
        if self.metric not in found:
            raise ValueError(
                f"`best` is {self.metric!r}, which is not one number a step: choose "
                f"from {', '.join(sorted(found))}."
            )
        values = doubles(found[self.metric])
        total = self.total + float(values.sum())
        return self._replace(total=total, num=self.num + len(values))

    def emptied(self) -> "_Score":
        """Return the sum over no steps."""
        return self._replace(total=0.0, num=0)

    def record(self, mean: float | None = None) -> dict[str, Any] | None:
        """Return as JSON what the steps since the last multiple, and a mean, say."""
        if self.metric is None:
            return None
        # As text: JSON knows no NaN, and a sum that met one is to stay one.
        return self._asdict() | {"total": repr(self.total), "mean": mean}

    def compared(self) -> dict[str, Any] | None:
        """Return the record of a save that competes for the best."""
        mean = self.total / max(self.num, 1)
        return self.emptied().record(mean if math.isfinite(mean) else None)


def _checkpointed(
    chunks: Iterator[Chunk],
    job: Job,
    writer: CheckpointWriter,
    every: int,
    score: _Score,
) -> Iterator[Chunk]:
    saved, end = int(job.state.step), None
    try:
        for chunk in chunks:
            end, score = (chunk.state, chunk.position), score.plus(chunk)
            with job.ledger.account("checkpoint"):
                due = chunk.stop % every == 0
                _raise_failure(writer, chunk.state, wait=due)
                if due:
                    _save(writer, *end, score.compared())
                    saved, score = chunk.stop, score.emptied()
            yield chunk
    except TrainingError as error:
        unsaved = RESULTS.checkpoint_failed, RESULTS.processes_apart
        failed = any(error.result == result for result in unsaved)
        end = None if failed else (error.state, error.position)
        raise
    finally:
        with job.ledger.account("checkpoint"):
            if end is not None and int(end[0].step) > saved:
                _save(writer, *end, score.record())
            _close(writer, job.state)


def _save(writer: CheckpointWriter, state: TrainState, *about: Any) -> None:
    try:
        writer.save(state, *about)
    except Exception as error:
        raise _not_saved(state, error) from error


def _close(writer: CheckpointWriter, state: TrainState) -> None:
    try:
        writer.close()
    except Exception as error:
        raise _not_saved(state, error) from error


def _raise_failure(writer: CheckpointWriter, state: TrainState, *, wait: bool) -> None:
    error = writer.failure(wait=wait)
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
