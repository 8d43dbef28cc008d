"""Checkpoints read: verified byte for byte, whole or in part."""

import dataclasses
import os
import re
import warnings
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from effgen.core.contract.state import TrainState, is_key, named_arrays
from effgen.core.data.batches import set_back
from effgen.core.outcome.results import RunWarning

from . import earlier
from .manifest import Manifest, check_fit, field_of, opened
from .positions import decoded
from .tensors import CorruptCheckpoint, Piece, pieces_of, read_array


MANIFEST = "manifest.json"

_FIELDS = tuple(TrainState.__dataclass_fields__)


def restore(
    directory: str | os.PathLike[str],
    like: TrainState,
    *,
    step: int | Literal["best"] | None = None,
    only: str | Collection[str] | None = None,
) -> TrainState:
    """Return the newest good checkpoint in `directory`, every byte verified.

    If the bytes of a checkpoint are not those written, the one before it is taken. Any
    other failure (permissions, the disk, memory) is raised. If the checkpoint has an
    average of the model and `like` has none, the average is restored too.

    ```python
    # The model and the count of steps of that run, with another optimizer:
    state = effgen.restore("runs/one", other.init(model), only=["model", "step"])
    ```

    Arguments:
        directory: The folder that a run was `checkpointed` to, or saved to.
        like: A state with the same structure, shapes and dtypes, such as
            `trainer.init(...)` gives. The arrays are placed as its are (also on a
            mesh).
        step: One step, and no other; or `"best"`, the one that
            `checkpointed(run, directory, best=...)` found best. `None` takes the
            newest good one.
        only: The fields of the state to take, such as `"model"`; the others stay as
            `like` has them. What is taken has `like`'s precision (an average that
            `like` has not, the checkpoint's). `None` takes all, and the dtypes must be
            the same.

    Returns:
        The state that was saved.

    Raises:
        FileNotFoundError: If there is no checkpoint, or none of `step`.
        ValueError: If the checkpoint is of another model or of a newer effgen, with
            the difference leaf by leaf and the call that takes what fits; or if
            `only` names no field of the state, or an average that was not kept.
        TypeError: If `like` is no `TrainState`, `directory` no path, or `only` neither
            a name nor several.
        CorruptCheckpoint: If no checkpoint is good.

    Warns:
        RunWarning: Where a checkpoint is passed over, with its step and its fault.
    """
    return _restored(directory, like, step, only)[0]


def restore_model(
    directory: str | os.PathLike[str],
    like: PyTree,
    *,
    step: int | Literal["best"] | None = None,
) -> PyTree:
    """Return the model alone of a checkpoint, in the precision of the model `like`.

    ```python
    model = effgen.restore_model("runs/one", model, step="best")
    ```

    Arguments:
        directory: The folder that a run was `checkpointed` to, or saved to.
        like: A model with the same structure and shapes.
        step: One step; `"best"`; or `None` for the newest good one, as in `restore`.

    Returns:
        The model that was saved.

    Raises:
        FileNotFoundError: If there is no checkpoint, or none of `step`.
        ValueError: If the checkpoint is of another model or of a newer effgen.
        TypeError: If `like` is a whole `TrainState`, or `directory` no path.
        CorruptCheckpoint: If no checkpoint is good.

    Warns:
        RunWarning: Where a checkpoint is passed over.
    """
    if isinstance(like, TrainState):
        raise TypeError("`like` is a whole state: pass its model, or call `restore`.")
    state = TrainState(like, None, None, jnp.zeros((), jnp.int32))
    return restore(directory, state, step=step, only="model").model


def resume(
    directory: str | os.PathLike[str], state: TrainState, *, data: Any = None
) -> TrainState:
    """Return the newest good checkpoint, or `state` itself where nothing is saved yet.

    This one line makes a script restartable.

    Arguments:
        directory: The folder that the run is `checkpointed` to.
        state: The state to begin with, such as `trainer.init(...)` gives; a
            checkpoint must fit it, as `like` of `restore`.
        data: What the run is given as data. It is set to where the checkpoint was.
            Data that are indexed by the step need no setting.

    Returns:
        The state to pass to `train`.

    Raises:
        ValueError: If `data` is taken in turn and cannot be set back (leave it out
            then, and advance it by hand), or as `restore` raises it.
        TypeError: If `data` is no source of batches, or as `restore` raises it.
        CorruptCheckpoint: If there are checkpoints and none is good.

    Warns:
        RunWarning: Where a checkpoint is passed over, or where it knows the position
            of data that are not given.
    """
    if not saved_steps(directory):
        return state
    restored, manifest = _restored(directory, state, None, None)
    position = manifest.get("position")
    if data is not None:
        set_back(data, decoded(position))
    elif position is not None:
        warnings.warn(
            f"the checkpoint at `{directory}` says where its data stood, and they are "
            "not set there: pass them, `effgen.resume(directory, state, data=data)`. "
            "Otherwise an iterator starts again from its first batch.",
            RunWarning,
            stacklevel=2,
        )
    return restored


def absolute(directory: str | os.PathLike[str]) -> Path:
    """Return `directory` as a path that holds wherever the process goes."""
    if not isinstance(directory, str | os.PathLike):
        raise TypeError(
            f"`directory` is a {type(directory).__name__}: pass the path of a run's "
            "checkpoints first."
        )
    return Path(directory).absolute()


def saved_steps(directory: str | os.PathLike[str]) -> list[int]:
    """Return the steps that `directory` holds, oldest first."""
    path = absolute(directory)
    entries = path.iterdir() if path.is_dir() else ()
    names = [entry.name for entry in entries if entry.is_dir()]
    return sorted(int(name) for name in names if re.fullmatch("0|[1-9][0-9]*", name))


def is_corrupt(path: Path) -> bool:
    """Return whether the checkpoint at `path` is provably not what was written."""
    try:
        manifest = read_manifest(path)
        read = _array_reader(path, manifest)
        for name in manifest["arrays"]:
            read(name)
    except CorruptCheckpoint:
        return True
    return False


def best_step(path: Path) -> int | None:
    """Return the step of the best mean; of the newest's metric, if there are several.

    The earliest of equals, and `None` where nothing was compared.
    """
    scores = list(_scores(path))
    if not scores:
        return None
    kind = scores[-1][1]
    sign = 1 if kind[1] == "min" else -1
    return min((sign * mean, step) for step, other, mean in scores if other == kind)[1]


def _scores(path: Path) -> Iterator[tuple[int, tuple[str, str], float]]:
    for step in saved_steps(path):
        try:
            score = read_manifest(path / str(step)).get("score")
        except CorruptCheckpoint:
            continue
        if score is not None and score["mean"] is not None:
            yield step, (score["metric"], score["mode"]), score["mean"]


def read_manifest(path: Path) -> Manifest:
    """Return the manifest of one checkpoint, of either format, its seal verified."""
    for file in (path / MANIFEST, earlier.manifest_path(path)):
        try:
            return opened(file.read_bytes(), str(path))
        except FileNotFoundError:
            continue
    raise CorruptCheckpoint("it has no manifest")


def _array_reader(path: Path, manifest: Manifest) -> Callable[[str], np.ndarray]:
    if "format" not in manifest:
        return earlier.array_reader(path, manifest)
    pieces: dict[str, list[Piece]] = {}
    for file, seal in manifest["files"].items():
        for name, piece in pieces_of(path / file, seal):
            pieces.setdefault(name, []).append(piece)
    return lambda name: read_array(name, manifest["arrays"][name], pieces[name])


def _restored(
    directory: str | os.PathLike[str],
    like: TrainState,
    step: int | Literal["best"] | None,
    only: str | Collection[str] | None,
) -> tuple[TrainState, Manifest]:
    path, fields = absolute(directory), _checked_fields(only)
    if not isinstance(like, TrainState):
        raise TypeError(
            f"`like` is a {type(like).__name__}: pass a state, such as "
            "`trainer.init(...)` returns; `restore_model` takes a model."
        )
    faults = []
    candidates = _candidates(path, step)
    for candidate in candidates:
        try:
            restored = _read(path / str(candidate), like, fields)
        except CorruptCheckpoint as error:
            faults.append(f"step {candidate}: {error}")
            continue
        if faults:
            text = f"`{path}`: fell back to step {candidate}; {'; '.join(faults)}."
            warnings.warn(text, RunWarning, stacklevel=3)
        return restored
    raise CorruptCheckpoint(
        f"`{path}` has no good checkpoint ({'; '.join(faults)}): restore its files "
        "from a copy, or start again."
    )


def _candidates(path: Path, step: int | Literal["best"] | None) -> list[int]:
    steps = saved_steps(path)
    wanted = best_step(path) if step == "best" else step
    if steps and step is None:
        return steps[::-1]
    if wanted in steps:
        return [wanted]
    asked = "no checkpoint" + ("" if step is None else f" of step {step}")
    if step == "best":
        asked = "no best checkpoint (`checkpointed(..., best=...)` marks them)"
    held = f"it holds steps {steps}" if steps else "it holds none"
    raise FileNotFoundError(f"`{path}` has {asked}: {held}.")


def _checked_fields(only: str | Collection[str] | None) -> frozenset[str] | None:
    if only is None:
        return None
    if not isinstance(only, Collection):
        raise TypeError(f"`only` is {only!r}: pass names of fields, or None for all.")
    fields = frozenset([only] if isinstance(only, str) else only)
    if not fields or fields - set(_FIELDS):
        raise ValueError(f"`only` is {only!r}: choose from {', '.join(_FIELDS)}.")
    return fields


def _read(
    path: Path, like: TrainState, only: frozenset[str] | None
) -> tuple[TrainState, Manifest]:
    """Return what one checkpoint holds, read and placed one array after another."""
    manifest = read_manifest(path)
    like = _averaging(like, manifest, only)
    if only is not None and "average" in only and like.average is None:
        raise ValueError(
            f"the checkpoint at `{path}` has no average of the model: leave it out of "
            "`only`. `effgen.averaged` keeps one."
        )
    check_fit(manifest, like, only, str(path))  # another model is not a broken file
    read = _array_reader(path, manifest)
    arrays, rest = eqx.partition(like, eqx.is_array)
    placed = [
        # Each waits until it is there: what was read for it is then free.
        jax.block_until_ready(_placed(read(name), leaf))
        if only is None or field_of(name) in only
        else leaf
        for name, leaf in named_arrays(like).items()
    ]
    state = eqx.combine(jax.tree.unflatten(jax.tree.structure(arrays), placed), rest)
    return state, manifest


def _averaging(
    like: TrainState, manifest: Manifest, only: frozenset[str] | None
) -> TrainState:
    """Give `like` the average of a model that the checkpoint has and it has not."""
    saved = manifest["arrays"]
    absent = like.average is None
    chosen = only is None or "average" in only
    if not (absent and chosen and any(field_of(name) == "average" for name in saved)):
        return like
    arrays, rest = eqx.partition(like.model, eqx.is_array)
    dtypes = [
        saved.get(f".average{name}", {}).get("dtype", str(leaf.dtype))
        for name, leaf in named_arrays(like.model).items()
    ]
    leaves, structure = jax.tree.flatten(arrays)
    cast = [
        x if is_key(x) else x.astype(t) for x, t in zip(leaves, dtypes, strict=True)
    ]
    average = eqx.combine(jax.tree.unflatten(structure, cast), rest)
    return dataclasses.replace(like, average=average)


def _placed(value: np.ndarray, like: Any) -> Any:
    if is_key(like):
        words = jax.random.key_data(like)
        impl = jax.random.key_impl(like)
        return jax.random.wrap_key_data(_placed(value, words), impl=impl)
    value = value.astype(like.dtype, copy=False)
    if not isinstance(like, jax.Array):
        return value
    # A CPU's array may share the memory of `value`: nothing else holds it, and JAX lets
    # no computation reuse it. Waited for, so that one array at a time is on the host.
    placed = jax.make_array_from_callback(like.shape, like.sharding, lambda i: value[i])
    return jax.block_until_ready(placed)
