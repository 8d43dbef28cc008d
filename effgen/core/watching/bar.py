"""A bar that shows how far a run is."""

import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax

from effgen.core.outcome.scalars import doubles, mean, scalars
from effgen.core.running.job import Chunk, Job
from effgen.core.running.reports import listening
from effgen.core.running.run import Run, check_run

from .sinks import warn


def progress(run: Run) -> Run:
    """Show a bar with the rate, the time left and the metrics worth watching.

    `tqdm` draws it between chunks of steps, in a terminal or a notebook. The device
    calls nothing back. The metrics are the trainer's `watched`, averaged over the
    chunk. A step that takes long on the host also reports its progress. Of several
    processes only the first draws. Without a standard error there is no bar.

    ```python
    for state, metrics in effgen.progress(effgen.train(...)): ...
    ```

    Arguments:
        run: What `train` or another wrapper returned, not yet started.

    Returns:
        The run with the bar around it.

    Raises:
        TypeError: If `run` is no run.
        RuntimeError: If `run` has started, or is wrapped already.

    Warns:
        RunWarning: Where the bar cannot be drawn; it ends and training goes on.
    """
    check_run(run)
    return run.through(_progress)


def _progress(chunks: Iterator[Chunk], job: Job) -> Iterator[Chunk]:
    bar = _Bar(job.num_steps)
    try:
        for chunk in _heard(chunks, bar):
            bar.advance(chunk.stop - chunk.start, _shown(chunk, job))
            yield chunk
    finally:
        bar.close()


class _Bar:
    """A bar of tqdm's whose first failure ends the bar, and not the run."""

    def __init__(self, total: int | None) -> None:
        from tqdm.auto import tqdm

        stream = sys.stderr  # None under pythonw
        nowhere = stream is None or getattr(stream, "closed", False)
        hidden = nowhere or jax.process_index() > 0
        # With a delay tqdm draws nothing, and so nothing can fail, before it is asked.
        self._bar = tqdm(
            total=total, unit="step", disable=hidden, file=stream, delay=1e-9
        )
        self._try(self._bar.refresh)

    def say(self, text: str) -> None:
        """Show `text` behind the bar."""
        self._try(lambda: self._bar.set_postfix_str(text))

    def advance(self, num: int, shown: dict[str, str]) -> None:
        """Go on by `num` steps."""

        def draw() -> None:
            self._bar.set_postfix(shown, refresh=False)
            self._bar.update(num)

        self._try(draw)

    def close(self) -> None:
        """Leave the bar as it stands."""
        self._try(self._bar.close)

    def _try(self, draw: Callable[[], Any]) -> None:
        if self._bar.disable:
            return
        try:
            draw()
        except Exception as error:
            self._bar.disable = True
            warn(
                f"the progress bar cannot be drawn ({type(error).__name__}: {error}): "
                "it is missing from here on. Training goes on."
            )


def _heard(chunks: Iterator[Chunk], bar: _Bar) -> Iterator[Chunk]:
    """Show on the bar what steps report, ten times a second at most."""
    shown = 0.0

    def show(text: str) -> None:
        nonlocal shown
        if time.perf_counter() - shown > 0.1:
            bar.say(text)
            shown = time.perf_counter()

    while True:
        with listening(show):  # not while the caller has control
            chunk = next(chunks, None)
        if chunk is None:
            return
        yield chunk


def _shown(chunk: Chunk, job: Job) -> dict[str, str]:
    found = scalars(chunk.metrics)
    watched = [name for name in job.trainer.watched if name in found]
    shown = {name: f"{mean(doubles(found[name])):.4g}" for name in watched}
    counts = {"skipped": job.num_skipped, "rollbacks": job.num_rollbacks}
    return shown | {name: str(count) for name, count in counts.items() if count}
