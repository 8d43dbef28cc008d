"""Wrappers of a run: progress, a log, checkpoints, and what to do on failure."""

import json
import math
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from .checkpoint import CheckpointWriter, later_steps
from .guard import AbstractGuard
from .job import Chunk, Job, joined
from .reports import listening
from .results import RESULTS, TrainingError
from .run import Run
from .state import TrainState


def progress(run: Run) -> Run:
    """Show a bar with the rate, the time left and the metrics worth watching.

    `tqdm` draws it, in a terminal or a notebook, between chunks: nothing is called back
    from the device. The metrics are the trainer's `watched`, averaged over the chunk; a
    step that takes long on the host also says how it is getting on.
    In several processes only the first draws.

    ```python
    for state, metrics in effgen.progress(effgen.train(...)): ...
    ```
    """
    return run.through(_progress)


def _progress(chunks: Iterator[Chunk], job: Job) -> Iterator[Chunk]:
    from tqdm.auto import tqdm

    hidden = jax.process_index() > 0
    with tqdm(total=job.num_steps, unit="step", disable=hidden, file=sys.stderr) as bar:
        for chunk in _heard(chunks, bar):
            bar.set_postfix(_shown(chunk, job), refresh=False)
            bar.update(chunk.stop - chunk.start)
            yield chunk


def _heard(chunks: Iterator[Chunk], bar: Any) -> Iterator[Chunk]:
    """Show on the bar what steps report, ten times a second at most."""
    shown = 0.0

    def show(text: str) -> None:
        nonlocal shown
        if time.perf_counter() - shown > 0.1:
            bar.set_postfix_str(text)
            shown = time.perf_counter()

    while True:
        with listening(show):  # not while the caller has control
            chunk = next(chunks, None)
        if chunk is None:
            return
        yield chunk


def _shown(chunk: Chunk, job: Job) -> dict[str, str]:
    scalars = means(chunk.metrics)
    shown = {n: f"{scalars[n]:.4g}" for n in job.trainer.watched if n in scalars}
    counts = {"skipped": job.num_skipped, "rollbacks": job.num_rollbacks}
    return shown | {name: str(count) for name, count in counts.items() if count}


def means(metrics: dict[str, Any]) -> dict[str, float]:
    """Return the mean over the steps of each metric that is one number a step."""
    return {
        name: float(value.mean(dtype=np.float64))
        for name, value in metrics.items()
        if isinstance(value, np.ndarray) and value.ndim == 1
    }


def logged(run: Run, path: str | os.PathLike[str]) -> Run:
    """Append a line of JSON to `path` for each yield of `run`.

    A line holds `step`, `seconds` since the start, and the mean of each scalar metric
    over the yield's steps (`null` where it is not finite). Each is flushed as it is
    written. A run that resumes at step `s` first drops the lines past `s` and a line
    that a crash left half-written, so that no step stands twice. Only the first of
    several processes writes.

    **Raises:** `OSError` at once if `path` cannot be written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a"):
        pass  # fail now, not after the first yield
    return run.through(lambda chunks, job: _logged(chunks, job, path))


def _logged(chunks: Iterator[Chunk], job: Job, path: Path) -> Iterator[Chunk]:
    if jax.process_index() > 0:
        yield from chunks
        return
    _truncate(path, int(job.state.step))
    began = time.perf_counter()
    with path.open("a") as file:
        for chunk, record in _records(chunks):
            if record is not None:
                line = {"step": chunk.stop, "seconds": time.perf_counter() - began}
                print(json.dumps(line | record), file=file, flush=True)
            yield chunk


def tensorboard(run: Run, directory: str | os.PathLike[str]) -> Run:
    """Write each yield's mean metrics as TensorBoard scalars under `directory`.

    Needs the extra `effgen[tensorboard]`. A resumed run hides what an earlier one wrote
    past its first step.

    **Raises:** `ImportError`, with the command to install it, without `tensorboardX`.
    """
    try:
        import tensorboardX
    except ImportError as error:
        raise ImportError(
            "`tensorboard` needs tensorboardX: pip install 'effgen[tensorboard]'."
        ) from error

    def write(chunks: Iterator[Chunk], job: Job) -> Iterator[Chunk]:
        if jax.process_index() > 0:
            yield from chunks
            return
        step = int(job.state.step)
        with tensorboardX.SummaryWriter(str(directory), purge_step=step) as writer:
            for chunk, record in _records(chunks):
                for name, value in (record or {}).items():
                    writer.add_scalar(name, value, chunk.stop)
                yield chunk

    return run.through(write)


def _records(
    chunks: Iterator[Chunk],
) -> Iterator[tuple[Chunk, dict[str, float | None] | None]]:
    """Pair each chunk with its yield's means where the run yields, else with `None`."""
    held: list[dict[str, Any]] = []
    for chunk in chunks:
        held.append({k: v for k, v in chunk.metrics.items() if k != "result"})
        if not chunk.boundary:
            yield chunk, None
            continue
        scalars = means(joined(held))
        held = []
        yield chunk, {k: v if math.isfinite(v) else None for k, v in scalars.items()}


def _truncate(path: Path, step: int) -> None:
    kept = []
    for line in path.read_text().splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue  # half-written when the process died
        if record.get("step", 0) <= step:
            kept.append(line)
    partial = path.with_suffix(path.suffix + ".partial")
    partial.write_text("".join(line + "\n" for line in kept))
    partial.replace(path)


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
    if not isinstance(guard, AbstractGuard):
        raise TypeError(f"`guard` is {guard!r}: pass Stop(), Skip() or Rollback().")
    run = run.through(lambda chunks, job: chunks)
    run.job.guard = guard
    return run
