"""Logs of a run: a line of JSON for each of its yields."""

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax

from effgen.core.running.job import Chunk, Job
from effgen.core.running.run import Run, check_run

from .sinks import Sink
from .window import Window


_HEAD = b'{"step": '
_OWN = {"step", "seconds", "skipped"}


def logged(run: Run, path: str | os.PathLike[str]) -> Run:
    """Append a line of JSON to `path` for each yield of `run`.

    A line holds `step`, `seconds` since the start, and the mean of each metric that is
    one real number a step. A nested metric is called `parts/a`. A metric that has a
    name of the line's own is called `metrics/seconds`. The means are over finite
    values; the mean of none is `null`. Steps that `Skip` left out are not in the means.
    The line says how many there were, as in `"skipped": 1`.

    Each line is written whole, at once. The steps since the last yield get a line too,
    however the run ends: by its last step, a signal, `break` or a failure. A run that
    resumes at step `s` first drops the lines past `s`, and a line that a crash left
    half-written. So no step occurs twice. A pipe or a device is only appended to. A log
    never stops a run: a line that cannot be written is left out. Of several processes
    only the first writes.

    Arguments:
        run: What `train` or another wrapper returned, not yet started.
        path: The file; its folder is made.

    Returns:
        The run with the log around it.

    Raises:
        TypeError: If `run` is no run.
        RuntimeError: If `run` has started, or is wrapped already.
        ValueError: If `path` takes the run's lines already.
        OSError: At once if `path` cannot be written.

    Warns:
        RunWarning: Once, where a line cannot be written during the run.
    """
    check_run(run)
    run.check_unstarted()
    sink = Sink(path)
    if not sink.path.exists() or sink.path.is_file():  # a device may be shared
        run.job.claim("path", sink.path)
    sink.check()  # fail now, not after the first yield
    return run.through(lambda chunks, job: _logged(chunks, job, sink))


def _logged(chunks: Iterator[Chunk], job: Job, sink: Sink) -> Iterator[Chunk]:
    if jax.process_index() > 0:
        yield from chunks
        return
    began = time.perf_counter()
    _resume(sink, int(job.state.step))

    def write(step: int, window: Window) -> None:
        seconds = time.perf_counter() - began
        sink.append(_line(step, seconds, window), f"the line of step {step}")

    try:
        yield from windowed(chunks, job, write)
    finally:
        sink.close()


def windowed(
    chunks: Iterator[Chunk], job: Job, write: Callable[[int, Window], None]
) -> Iterator[Chunk]:
    """Pass `chunks` on, and `write` what the steps of each yield reported.

    However the run ends, the steps since its last yield are written as well.
    """
    window = Window(job.num_skipped)
    try:
        for chunk in chunks:
            window.add(chunk, job.num_skipped)
            if chunk.boundary:
                write(chunk.stop, window)
                window.clear()
            yield chunk
    finally:
        if window.stop is not None:
            write(window.stop, window)


def _line(step: int, seconds: float, window: Window) -> bytes:
    line: dict[str, float | None] = {"step": step, "seconds": seconds}
    if window.num_skipped:
        line["skipped"] = window.num_skipped
    for name, value in window.means().items():
        line[f"metrics/{name}" if name in _OWN else name] = value
    return json.dumps(line).encode() + b"\n"


def _resume(sink: Sink, step: int) -> None:
    """Take the lines past `step` out of a regular file; warn where that fails."""
    try:
        if sink.path.is_file():
            _trim(sink.path, step)
    except OSError as error:
        sink.fail(error, f"the removal of what an earlier run wrote past step {step}")


def _trim(path: Path, step: int) -> None:
    """Drop lines in place, so that links and permissions stay what they are."""
    with path.open("r+b") as file:
        end, kept = 0, []
        for line in file:
            if not _stays(line, step):
                kept.append(b"")
            elif kept:
                kept.append(line)
            else:
                end += len(line)
        if kept:
            file.seek(end)
            file.write(b"".join(kept))
            file.truncate()


def _stays(line: bytes, step: int) -> bool:
    """Return whether to keep a line: what is not of a log is not ours to drop."""
    if not line.startswith(_HEAD):
        return line.endswith(b"\n")
    try:
        return line.endswith(b"\n") and json.loads(line)["step"] <= step
    except (ValueError, TypeError):
        return False  # half-written when the process died
