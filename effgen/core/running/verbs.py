"""`train` and `fit`: one engine under every trainer."""

import warnings
from numbers import Real
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray

from effgen.core.contract.keys import check_key
from effgen.core.contract.state import TrainState, check_kind
from effgen.core.contract.trainer import (
    AbstractHostTrainer,
    AbstractTrainer,
    check_trainer,
)
from effgen.core.data.batches import (
    AbstractBatches,
    AbstractHostEpochs,
    Drawn,
    as_source,
)
from effgen.core.data.purity import check_pure
from effgen.core.devices.sharding import mesh_of
from effgen.core.outcome.history import History
from effgen.core.outcome.results import RunWarning, TrainingError

from .guard import Stop
from .job import MOST_STEPS, Job
from .run import Run, check_run, history_of


def train(
    trainer: AbstractTrainer,
    state: TrainState,
    data: Any,
    *,
    key: PRNGKeyArray,
    num_steps: int | None = None,
    every: int | None = 1,
    patience: float = 3_600.0,
) -> Run:
    """Train: return a run that yields `(state, metrics)` after each `every` steps.

    Step `i` computes `state = trainer.step(state, batch_i, key=fold_in(noise_key, i))`
    with `i = state.step`. So a resumed run repeats, bit for bit, the run that never
    stopped. How the steps are cut into chunks changes nothing.

    ```python
    for state, metrics in effgen.progress(effgen.train(trainer, state, data, key=key,
                                                       num_steps=1_000, every=100)):
        print(int(state.step), metrics["loss"].mean())
    ```

    Arguments:
        trainer: Any `AbstractTrainer`.
        state: From `trainer.init`, a run, or a checkpoint; it stays usable.
        data: `Minibatches` and the like, a function `key -> batch`, a sequence
            (indexed by step) or any other iterable of batches.
        key: The run's randomness; pass the same one to resume.
        num_steps: How many steps to take from `state`; `None`: to the data's end.
        every: The run yields where the state's step is a multiple of it, and at the
            end; `None` yields about twice a second.
        patience: How many seconds to wait for a batch, or for another process, before
            the run stops and says so. Signals still act while it waits.

    Returns:
        A `Run`. Its metrics are numpy arrays with a leading axis of steps. Wrap it in
            `progress`, `logged`, `checkpointed` or `guarded` before the first step. In
            it, `TrainingError` is raised if a step or the data fail, with the last good
            state, and what `trainer.check` raises for a batch before the first step.

    Raises:
        TypeError: At once if `trainer`, `state`, `data`, `key` or a count is of the
            wrong kind.
        ValueError: At once if a count or `patience` is out of range, if an array of
            `state` was deleted, if data without an end are given without `num_steps`,
            if data are a function that draws otherwise than by its key, or as the
            trainer raises it for the data.

    Warns:
        RunWarning: In the run, if a signal or the data's end stops it before
            `num_steps`, or if the data have no batch; and at once in several processes,
            if each would train a state of its own on data of its own.
    """
    check_trainer(trainer)
    _check_state(state)
    data = trainer.batches(state, data)
    source = as_source(data)
    check_key(key)
    _check_count("num_steps", num_steps, 0)
    _check_count("every", every, 1)
    _check_room(state, num_steps)
    _check_patience(patience)
    if isinstance(source, Drawn):
        check_pure(source.draw)
    endless = isinstance(source, AbstractBatches | AbstractHostEpochs)
    if endless and num_steps is None:
        kind = type(data).__name__
        raise ValueError(f"`num_steps` is needed: `data`, a {kind}, have no end.")
    _warn_of_processes(trainer, state, source)
    trainer = trainer.for_data(state, data)
    rest = num_steps, every, Stop(), patience
    return Run(Job(trainer, state, source, data, key, *rest))


def fit(
    trainer: AbstractTrainer,
    state: TrainState,
    data: Any,
    *,
    key: PRNGKeyArray,
    num_steps: int | None = None,
    every: int | None = 1,
    patience: float = 3_600.0,
) -> tuple[TrainState, History]:
    """Train to the end; return the last state and the metrics of every step.

    Nothing is yielded, so the steps are cut into chunks of about half a second, for any
    `every`.

    Arguments:
        trainer: Any `AbstractTrainer`.
        state: From `trainer.init`, a run, or a checkpoint; it stays usable.
        data: Batches, a function `key -> batch`, a sequence (indexed by step) or any
            other iterable of batches, as for `train`.
        key: The run's randomness; pass the same one to resume.
        num_steps: How many steps to take from `state`; `None`: to the data's end.
        every: Checked as by `train`, and not used.
        patience: How many seconds to wait for a batch, or for another process, as for
            `train`.

    Returns:
        `(state, history)`. After Ctrl-C they are those of the last finished step, and
            `history.result` says so.

    Raises:
        TypeError: As `train`.
        ValueError: As `train`, or as `trainer.check` for the first batch.
        TrainingError: If a step or the data fail; it holds the last good state and the
            history.

    Warns:
        RunWarning: If a signal or the data's end stops it before `num_steps`.
    """
    _check_count("every", every, 1)
    run = train(
        trainer,
        state,
        data,
        key=key,
        num_steps=num_steps,
        every=None,
        patience=patience,
    )
    return drain(run)


def drain(run: Run) -> tuple[TrainState, History]:
    """Run `run`, wrapped as it may be, to its end; return the last state and history.

    ```python
    state, history = effgen.drain(effgen.progress(effgen.train(...)))
    ```

    Arguments:
        run: What `train` or a wrapper returned. Of a run that has begun, the rest.

    Returns:
        `(state, history)`, the metrics being those of the steps taken here.

    Raises:
        TrainingError: If a step, the data or a save fails; it holds the last good
            state and the history.
        TypeError: If `run` is no run.
        RuntimeError: If another run wraps this one.

    Warns:
        RunWarning: If a signal or the data's end stops it before its last step.
    """
    check_run(run)
    start, metrics = int(run.state.step), []
    try:
        metrics.extend(chunk.metrics for chunk in run.chunks())
    except TrainingError as error:
        error.history = history_of(run.job, metrics, start)
        raise
    return run.state, history_of(run.job, metrics, start)


def _check_state(state: Any) -> None:
    check_kind(state)
    if jnp.shape(state.step):
        raise ValueError(
            f"`state.step` has shape {jnp.shape(state.step)}, as of several states at "
            "once: pass one of them."
        )
    for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]:
        if isinstance(leaf, jax.Array) and leaf.is_deleted():
            raise ValueError(
                f"`state{jax.tree_util.keystr(path)}` was deleted: its memory was "
                "donated elsewhere. Pass a state whose arrays are alive."
            )


def _warn_of_processes(
    trainer: AbstractTrainer, state: TrainState, source: Any
) -> None:
    apart = jax.process_count() > 1 and mesh_of(state) is None
    own = not isinstance(source, AbstractBatches)  # others are the same everywhere
    if apart and own and not isinstance(trainer, AbstractHostTrainer):
        warnings.warn(
            f"`state` is on no mesh: each of {jax.process_count()} processes trains "
            "its own on its own data, and the first one's is saved. To train one: "
            "`effgen.shard(state, effgen.make_mesh())`.",
            RunWarning,
            stacklevel=3,
        )


def _check_room(state: TrainState, num_steps: int | None) -> None:
    step = int(state.step)
    if step < 0 or step + (num_steps or 0) > MOST_STEPS:
        raise ValueError(
            f"`num_steps` is {num_steps} from step {step}: steps are counted in 32 "
            f"bits, up to {MOST_STEPS}. Ask for fewer, or begin the count anew by "
            "`trainer.init(state.model, state.memory)`."
        )


def _check_patience(patience: Any) -> None:
    number = isinstance(patience, Real) and not isinstance(patience, bool)
    if not number or not float(patience) > 0:
        raise ValueError(
            f"`patience` is {patience!r}: pass a positive number of seconds."
        )


def _check_count(name: str, value: Any, least: int) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"`{name}` is {value!r}: pass an integer or None.")
    if value < least:
        raise ValueError(f"`{name}` is {value}: pass {least} or more.")
