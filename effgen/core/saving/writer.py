"""Checkpoints written: in the background, atomically, by as many as hold the state."""

import json
import os
import random
import shutil
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np

from effgen.core.contract.counts import check_count
from effgen.core.contract.state import TrainState, named_arrays

from .checkpoint import MANIFEST, absolute, best_step, is_corrupt, saved_steps
from .manifest import Manifest, outline, parts_of, sealed
from .positions import encoded
from .tensors import Part, seal_of, synced, write_parts


_PARTIAL = ".partial-"
_DISCARDED = ".discarded-"

_PATIENCE = 300.0
"""How many seconds one process waits for another's part of a checkpoint."""


def save(
    directory: str | os.PathLike[str], state: TrainState, *, keep: int | None = None
) -> None:
    """Write `state` to `directory/<step>`, and wait until it is there.

    The arrays go to files in the format of safetensors. Each process writes the blocks
    that it holds. A manifest has the name, shape, dtype and SHA-256 of each array. All
    is written to another name, flushed to the disk, and renamed. So a checkpoint is
    whole or absent, whenever the process dies. Functions and other non-array leaves are
    not saved.

    Arguments:
        directory: The folder of one run; it is made.
        state: The state to save, under its step.
        keep: How many of the newest checkpoints to leave beside the best and this one;
            `None` for all.

    Raises:
        OSError: If `directory` cannot be written.
        FileExistsError: If `directory` holds this step already.
        ValueError: For a `keep` that is no integer of 1 or more.
        TypeError: If `state` is no `TrainState`, or `directory` no path.
    """
    path = absolute(directory)
    if not isinstance(state, TrainState):
        raise TypeError(f"`state` is a {type(state).__name__}: pass a `TrainState`.")
    if keep is not None:
        check_count("keep", keep)
    writer = CheckpointWriter(path, keep=keep)
    if int(state.step) in saved_steps(path):
        raise FileExistsError(
            f"`{path}` already holds step {int(state.step)}: choose another "
            "directory, or remove it."
        )
    writer.write(state)


class CheckpointWriter:
    """Writes checkpoints of one run in the background, one at a time.

    In several processes each must make the same calls.
    """

    def __init__(
        self, path: Path, *, keep: int | None = None, key: list[int] | None = None
    ) -> None:
        """Make `path`, or raise `OSError` now if it cannot be written.

        The words of the run's `key` are noted in what is saved.
        """
        self._path, self._keep, self._key = path, keep, key
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="effgen-checkpoint")
        self._pending: Future[None] | None = None
        self._given_up = threading.Event()
        self._name = _agreed(_tried(lambda: _prepare(path)))

    def clear(self, step: int) -> None:
        """Remove what a killed run left, and what is corrupt past `step`.

        Raises:
            ValueError: If a sound checkpoint is past `step`.
        """
        _agreed(_tried(lambda: _clear(self._path, step)))

    def save(self, state: TrainState, position: Any = None, score: Any = None) -> None:
        """Copy `state` to the host and write it in the background.

        Waits for the save before, if that is still going: no more than one state is on
        the host.
        """
        self.wait()
        about = outline(state, encoded(position), score) | {"key": self._key}
        parts = [part._replace(block=_copied(part.block)) for part in _parts(state)]
        try:
            self._pending = self._pool.submit(self._write, about, parts)
        except RuntimeError:  # the script is at its end: no thread may begin
            self._write(about, parts)

    def write(self, state: TrainState) -> None:
        """Write `state` now, from where it is, and end."""
        self._write(outline(state, None, None), _parts(state))
        self._pool.shutdown()

    def failure(self, *, wait: bool) -> BaseException | None:
        """Return what went wrong in the background, here or in another process.

        Where all processes save next, `wait` for what is in flight: all learn of it.
        """
        error = None
        if self._pending is not None and (wait or self._pending.done()):
            pending, self._pending = self._pending, None
            error = pending.exception()
        try:
            _agreed(error)
        except BaseException as agreed:
            self._given_up.set()
            self._pending = None
            return agreed
        return None

    def wait(self) -> None:
        """Wait for the save in flight, and raise what it raised."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.result()

    def close(self) -> None:
        """Wait, and end the thread."""
        try:
            self.wait()
        finally:
            self._pool.shutdown()

    def _write(self, about: Manifest, parts: list[Part]) -> None:
        path = self._path / str(about["step"])
        if path.exists():
            return  # the run's end fell on a step already saved
        partial = self._path / f"{_PARTIAL}{path.name}-{self._name}"
        me, num = jax.process_index(), jax.process_count()
        files = [partial / f"arrays-{i}-of-{num}.safetensors" for i in range(num)]
        try:
            partial.mkdir(exist_ok=True)
            write_parts(files[me].with_suffix(".new"), parts)
            files[me].with_suffix(".new").rename(files[me])
            if me > 0:
                self._await(path, 0)
                return
            for other in range(1, num):
                self._await(files[other], other)
            _commit(path, about, files)
        except BaseException:
            if me == 0:
                shutil.rmtree(partial, ignore_errors=True)
            raise
        self._prune(about["step"])

    def _await(self, path: Path, other: int) -> None:
        # Through the files that all must see anyhow: a collective in this thread could
        # cross those of the steps.
        last = time.monotonic() + _PATIENCE
        while not path.exists():
            if self._given_up.wait(0.02) or time.monotonic() > last:
                raise TimeoutError(
                    f"process {other} did not write `{path}` within {_PATIENCE:.0f} s: "
                    "look at its output; all processes must see the directory."
                )

    def _prune(self, written: int) -> None:
        steps = saved_steps(self._path)
        if self._keep is None or len(steps) <= self._keep:
            return
        stay = best_step(self._path), written
        for step in steps[: -self._keep]:
            if step not in stay:
                _discard(self._path / str(step))
        _remove(self._path, _DISCARDED)


def _agreed(error: BaseException | None) -> str:
    """Raise `error`, or word of another process's; return a name that all share."""
    number, others = random.SystemRandom().getrandbits(31), False
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        mine = np.array([number, error is not None], np.int32)
        everyone = multihost_utils.process_allgather(mine)
        number, others = int(everyone[0, 0]), bool(everyone[:, 1].any())
    if error is not None:
        raise error
    if others:
        raise OSError("another process could not do its part: look at its output")
    return f"{number:08x}"


def _tried(work: Callable[[], None]) -> Exception | None:
    """Do `work`, in the first process alone; return what it raised."""
    try:
        if jax.process_index() == 0:
            work()
    except Exception as error:
        return error
    return None


def _prepare(path: Path) -> None:
    path.mkdir(parents=True, exist_ok=True)
    probe = path / f".probe-{uuid.uuid4().hex}"
    probe.touch()
    probe.unlink()


def _clear(path: Path, step: int) -> None:
    later = [saved for saved in saved_steps(path) if saved > step]
    for saved in reversed(later):
        if not is_corrupt(path / str(saved)):
            raise ValueError(
                f"`{path}` already holds step {saved}, past this run's first, {step}: "
                "resume with `effgen.resume`, or choose another directory."
            )
    for saved in later:
        _discard(path / str(saved))
    for mark in (_PARTIAL, _DISCARDED, ".orbax-checkpoint-tmp"):
        _remove(path, mark)


def _commit(path: Path, about: Manifest, files: list[Path]) -> None:
    partial = files[0].parent
    manifest = about | {"files": {file.name: seal_of(file) for file in files}}
    with (partial / MANIFEST).open("wb") as file:
        file.write(json.dumps(sealed(manifest)).encode())
        synced(file)
    _sync_directory(partial)
    partial.rename(path)
    _sync_directory(path.parent)


def _parts(state: TrainState) -> list[Part]:
    leaves = named_arrays(state).items()
    return [part for name, leaf in leaves for part in parts_of(name, leaf)]


def _copied(block: Any) -> np.ndarray:
    """Return a copy on the host that nothing else writes to."""
    view = np.asarray(block)
    if isinstance(block, jax.Array) and not _on_host(block):
        return view
    # It is the array's own memory, which the next chunk reuses.
    return np.array(view, copy=True, order="C")


def _on_host(block: jax.Array) -> bool:
    (device,) = block.devices()
    return device.platform == "cpu" or "host" in str(block.sharding.memory_kind)


def _discard(path: Path) -> None:
    """Take `path` out of the list of checkpoints at once; its files go later."""
    path.rename(path.with_name(f"{_DISCARDED}{path.name}-{uuid.uuid4().hex}"))


def _remove(path: Path, mark: str) -> None:
    for entry in path.iterdir():
        if mark in entry.name:
            shutil.rmtree(entry, ignore_errors=True)


def _sync_directory(path: Path) -> None:
    """Wait until the names in a directory are on the disk, where systems allow it."""
    if hasattr(os, "O_DIRECTORY"):
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
