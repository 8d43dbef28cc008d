"""A run's metrics as TensorBoard's scalars."""

import os
import socket
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

from effgen.core.outcome.extras import needed
from effgen.core.running.job import Chunk, Job
from effgen.core.running.run import Run, check_run

from .logs import windowed
from .sinks import Sink
from .window import Window


def tensorboard(run: Run, directory: str | os.PathLike[str]) -> Run:
    """Write each yield's mean metrics as TensorBoard scalars under `directory`.

    The means are those of `logged`, without those of which no value is finite. A
    resumed run hides what an earlier one wrote past its first step. What cannot be
    written is left out, and training goes on. Only the first of several processes
    writes. Needs the extra `tensorboard`.

    Arguments:
        run: What `train` or another wrapper returned, not yet started.
        directory: A local folder; it is made.

    Returns:
        The run with the writer around it.

    Raises:
        ImportError: Without `tensorboardX`, with the command to install it.
        OSError: At once if `directory` cannot be made.
        TypeError: If `run` is no run.
        RuntimeError: If `run` has started, or is wrapped already.

    Warns:
        RunWarning: Once, where a record cannot be written.
    """
    check_run(run)
    needed("tensorboardX", by="tensorboard", extra="tensorboard")
    folder = Path(directory).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    return run.through(lambda chunks, job: _tensorboard(chunks, job, folder))


def _tensorboard(chunks: Iterator[Chunk], job: Job, folder: Path) -> Iterator[Chunk]:
    if jax.process_index() > 0:
        yield from chunks
        return
    sink = Sink(folder / _file_name())
    _begin(sink, int(job.state.step))
    try:
        yield from windowed(chunks, job, _writer(sink))
    finally:
        sink.close()


def _writer(sink: Sink) -> Callable[[int, Window], None]:
    from tensorboardX.proto import event_pb2
    from tensorboardX.summary import scalar

    made: Any = event_pb2  # its classes are made while it is imported

    def write(step: int, window: Window) -> None:
        for name, value in window.means().items():
            if value is not None:
                summary = scalar(name, value)
                event = made.Event(wall_time=time.time(), step=step, summary=summary)
                sink.append(_framed(event), f"`{name}` of step {step}")

    return write


def _begin(sink: Sink, step: int) -> None:
    """Say what the file is, and hide what an earlier run wrote past `step`."""
    from tensorboardX.proto import event_pb2

    made: Any = event_pb2  # its classes are made while it is imported
    now = time.time()
    started = made.SessionLog(status=made.SessionLog.START)
    version = made.Event(wall_time=now, file_version="brain.Event:2")
    # All from the named step on is hidden: the state's own step is to stay.
    hidden = made.Event(wall_time=now, step=step + 1, session_log=started)
    sink.append(_framed(version) + _framed(hidden), "its first record")


def _framed(event: Any) -> bytes:
    """Return a record of TensorFlow's: length, contents, and a checksum of each.

    tensorboardX would write them from a thread, which ends at the first failure: the
    run would then wait for it without end.
    """
    from tensorboardX.record_writer import masked_crc32c

    contents = event.SerializeToString()
    length = struct.pack("<Q", len(contents))
    first, second = (
        struct.pack("<I", masked_crc32c(part)) for part in (length, contents)
    )
    return length + first + contents + second


def _file_name() -> str:
    return (
        f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{os.getpid()}"
    )
