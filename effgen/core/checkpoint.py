"""Checkpoints: written by orbax, atomic and asynchronous; verified, leaf by leaf."""

import os
import shutil
import uuid
import warnings
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np

from .data import Stream
from .manifest import (
    CorruptCheckpoint,
    Manifest,
    check_fit,
    decoded,
    host_leaves,
    outline,
    packed,
    rebuilt,
    sealed,
    unpacked,
    verify_leaves,
    verify_manifest,
)
from .results import RunWarning
from .state import TrainState


_DISCARDED = ".discarded-"


def save(
    directory: str | os.PathLike[str], state: TrainState, *, keep: int | None = None
) -> None:
    """Write `state` to `directory/<step>`, and wait until it is there.

    Orbax writes aside and renames, so a checkpoint is whole or absent, whenever the
    process dies. With the arrays goes a manifest: the name, shape, dtype and SHA-256 of
    each. Functions and other non-array leaves are not saved.

    **Arguments:** `directory`, of one run; `state`; `keep`, how many of the newest
    checkpoints to leave (`None`: all).

    **Raises:** `OSError` if `directory` cannot be written; `FileExistsError` if it
    holds this step already.
    """
    writer = CheckpointWriter(directory, keep=keep)
    step = int(state.step)
    if step in saved_steps(directory):
        raise FileExistsError(
            f"`{os.fspath(directory)}` already holds step {step}: choose another "
            "directory, or remove it."
        )
    writer.save(state)
    writer.close()


def restore(
    directory: str | os.PathLike[str], like: TrainState, *, step: int | None = None
) -> TrainState:
    """Return the newest good checkpoint in `directory`, every byte verified.

    A checkpoint that cannot be read, or whose bytes are not those written, is passed
    over with a `RunWarning` that names it, for the one before it.

    **Arguments:**

    - `directory`: that a run was `checkpointed` to.
    - `like`: a state with the same structure, shapes and dtypes, such as
      `trainer.init(...)` gives; the arrays are placed as its are (also on a mesh).
    - `step`: one step, and no other.

    **Raises:** `FileNotFoundError` if there is none; `ValueError`, with the difference
    leaf by leaf, if it is of another model; `CorruptCheckpoint` if none is good.
    """
    return _restored(directory, like, step)[0]


def resume(
    directory: str | os.PathLike[str], state: TrainState, *, data: Any = None
) -> TrainState:
    """Return the newest good checkpoint, or `state` itself where nothing is saved yet.

    The one line that makes a script restartable. `data`, if it is a `Stream` whose
    iterator can be set, is set to where the checkpoint was.

    **Raises:** as `restore`, but for an empty directory.
    """
    if not saved_steps(directory):
        return state
    restored, manifest = _restored(directory, state, None)
    if isinstance(data, Stream):
        data.set_state(decoded(manifest["position"]))
    return restored


def saved_steps(directory: str | os.PathLike[str]) -> list[int]:
    """Return the steps that `directory` holds, oldest first."""
    path = Path(directory)
    names = [entry.name for entry in path.iterdir()] if path.is_dir() else []
    return sorted(int(name) for name in names if name.isdigit())


def later_steps(directory: str | os.PathLike[str], step: int) -> list[int]:
    """Return the good checkpoints past `step`; corrupt ones are moved aside."""
    later = [saved for saved in saved_steps(directory) if saved > step]
    for saved in list(later):
        try:
            _read(Path(directory) / str(saved))
        except CorruptCheckpoint:
            _discard(Path(directory) / str(saved))
            later.remove(saved)
    return later


class CheckpointWriter:
    """Writes checkpoints of one run in the background, one at a time."""

    def __init__(
        self, directory: str | os.PathLike[str], *, keep: int | None = None
    ) -> None:
        """Make `directory`, or raise `OSError` now if it cannot be written."""
        self._path = Path(directory).absolute()
        self._keep = keep
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="effgen-checkpoint")
        self._pending: Future[None] | None = None
        if jax.process_index() == 0:
            self._path.mkdir(parents=True, exist_ok=True)
            probe = self._path / f".probe-{uuid.uuid4().hex}"
            probe.touch()
            probe.unlink()
            _clean(self._path)

    def save(self, state: TrainState, position: Any = None) -> None:
        """Copy `state` to the host and write it in the background.

        Waits for the save before, if that is still going. Every process must call it.
        """
        leaves = host_leaves(state)
        self.wait()
        if jax.process_index() == 0:
            self._pending = self._pool.submit(
                self._write, outline(state, position), leaves
            )

    def failure(self) -> BaseException | None:
        """Return what went wrong in the background since last asked, if anything."""
        if self._pending is None or not self._pending.done():
            return None
        pending, self._pending = self._pending, None
        return pending.exception()

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

    def _write(self, outline: Manifest, leaves: dict[str, np.ndarray]) -> None:
        path = self._path / str(outline["step"])
        if path.exists():
            return  # the run's end fell on a step already saved
        _orbax_save(path, sealed(outline, leaves), leaves)
        if self._keep is not None:
            for step in saved_steps(self._path)[: -self._keep]:
                _discard(self._path / str(step))
            _clean(self._path, abandoned=False)


def _restored(
    directory: str | os.PathLike[str], like: TrainState, step: int | None
) -> tuple[TrainState, Manifest]:
    steps = saved_steps(directory)
    where = os.fspath(directory)
    if not steps or (step is not None and step not in steps):
        held = f"it holds steps {steps}" if steps else "it holds none"
        asked = "no checkpoint" if step is None else f"no checkpoint of step {step}"
        raise FileNotFoundError(f"`{where}` has {asked}: {held}.")
    faults = []
    for candidate in reversed(steps) if step is None else [step]:
        path = Path(directory) / str(candidate)
        try:
            manifest, leaves = _read(path, like)
        except CorruptCheckpoint as error:
            faults.append(f"step {candidate}: {error}")
            continue
        if faults:
            text = f"`{where}`: fell back to step {candidate}; {'; '.join(faults)}."
            warnings.warn(text, RunWarning, stacklevel=3)
        return rebuilt(leaves, like), manifest
    raise CorruptCheckpoint(
        f"`{where}` has no good checkpoint ({'; '.join(faults)}): restore its files "
        "from a copy, or start again."
    )


def _read(
    path: Path, like: TrainState | None = None
) -> tuple[Manifest, dict[str, np.ndarray]]:
    """Read and verify one checkpoint; any trouble in its files is corruption."""
    try:
        manifest = _orbax_manifest(path)
        verify_manifest(manifest)
    except Exception as error:
        raise CorruptCheckpoint(_brief(error)) from error
    if like is not None:
        check_fit(manifest, like, str(path))  # another model is not a broken file
    try:
        leaves = _orbax_leaves(path, manifest)
        verify_leaves(leaves, manifest)
    except Exception as error:
        raise CorruptCheckpoint(_brief(error)) from error
    return manifest, leaves


def _brief(error: Exception) -> str:
    if isinstance(error, CorruptCheckpoint):
        return str(error)
    text = " ".join(str(error).split())
    return f"it cannot be read ({type(error).__name__}: {text[:200]})"


def _discard(path: Path) -> None:
    """Take `path` out of the list of checkpoints at once; its files go later."""
    path.rename(path.with_name(f"{_DISCARDED}{path.name}-{uuid.uuid4().hex}"))


def _clean(path: Path, *, abandoned: bool = True) -> None:
    """Remove discarded checkpoints and, before a run, what a killed one left behind."""
    for entry in path.iterdir():
        partial = abandoned and ".orbax-checkpoint-tmp" in entry.name
        if entry.name.startswith(_DISCARDED) or partial:
            shutil.rmtree(entry, ignore_errors=True)


def _orbax() -> Any:
    """Return orbax and a checkpointer that waits for no other process."""
    # Imported at first use: it takes as long as JAX itself.
    import orbax.checkpoint as ocp

    me = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"effgen-{me}"
    )
    options = alone if jax.process_count() > 1 else ocp.options.MultiprocessingOptions()
    handler = ocp.CompositeCheckpointHandler(
        composite_options=ocp.CompositeOptions(multiprocessing_options=options),
        arrays=ocp.PyTreeCheckpointHandler(multiprocessing_options=options),
        manifest=ocp.JsonCheckpointHandler(multiprocessing_options=options),
    )
    return ocp, ocp.Checkpointer(handler, multiprocessing_options=options)


def _orbax_save(path: Path, manifest: Manifest, leaves: dict[str, np.ndarray]) -> None:
    ocp, checkpointer = _orbax()
    # All arrays as one: orbax refuses empty ones, and a damaged file among many leaves
    # it with reads that outlive the error.
    arrays = ocp.args.PyTreeSave({"bytes": packed(leaves)})
    manifest_args = ocp.args.JsonSave(manifest)
    args = ocp.args.Composite(arrays=arrays, manifest=manifest_args)
    checkpointer.save(path, args=args)
    checkpointer.close()


def _orbax_manifest(path: Path) -> Manifest:
    ocp, checkpointer = _orbax()
    args = ocp.args.Composite(manifest=ocp.args.JsonRestore())
    return checkpointer.restore(path, args=args)["manifest"]


def _orbax_leaves(path: Path, manifest: Manifest) -> dict[str, np.ndarray]:
    ocp, checkpointer = _orbax()
    kinds = {"bytes": ocp.RestoreArgs(np.ndarray)}
    args = ocp.args.Composite(arrays=ocp.args.PyTreeRestore(restore_args=kinds))
    tree = checkpointer.restore(path, args=args)["arrays"]
    return unpacked(np.asarray(tree["bytes"]), manifest)
