"""Run one step again, op by op, to find the operation that failed."""

from numbers import Integral
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray, PyTree

from effgen.core.contract.checks import watched_finite
from effgen.core.contract.state import Metrics, TrainState, check_kind
from effgen.core.contract.trainer import AbstractHostTrainer, AbstractTrainer
from effgen.core.data.batches import AbstractBatches, Source, Stream

from .host_run import unsound
from .job import run_keys
from .verbs import drain, train


def replay(
    trainer: AbstractTrainer,
    state: TrainState,
    data: Any,
    *,
    key: PRNGKeyArray,
    step: int | None = None,
) -> tuple[TrainState, Metrics]:
    """Take the step after `step` again, and find the operation that made it fail.

    A step whose loss, gradient and state are sound is returned. Any other is taken once
    more, eagerly: where a NaN first appears, it raises; where none does, the first
    infinity raises. An infinity may be intended, as in a mask: then look further.

    Batches and noise depend on `key` and the step alone, so this is the very step that
    failed, with a Python traceback to the operation. With a checkpoint from before the
    failure, the steps up to `step` are first trained as they were. JAX's caches of
    compiled programs are cleared if it fails again.

    ```python
    try:
        effgen.fit(trainer, state, data, key=key, num_steps=10_000)
    except effgen.TrainingError as error:
        effgen.replay(trainer, error.state, data, key=key)
    ```

    Arguments:
        trainer: The run's trainer.
        state: The state before the step: a `TrainingError`'s, or a restored one.
        data: The run's data.
        key: The run's key.
        step: The step to train to from `state` first; `None` for no training.

    Returns:
        The next state and the metrics of the step, if it does not fail.

    Raises:
        FloatingPointError: From the operation that made the NaN or infinity.
        TypeError: As `train`.
        ValueError: If `step` is before `state`'s, if `data` ends before it, or if they
            are taken in turn and are not known to stand at this step.
        TrainingError: If a step before `step` fails.
    """
    check_kind(state)
    if step is not None and not isinstance(step, Integral):
        raise TypeError(f"`step` is {step!r}: pass an integer or None.")
    ahead = 0 if step is None else int(step) - int(state.step)
    if ahead < 0:
        raise ValueError(
            f"`step` is {step}, before the state's {int(state.step)}: restore an "
            "earlier checkpoint."
        )
    run = train(trainer, state, data, key=key, num_steps=ahead, every=None)
    trainer, source = run.job.trainer, run.job.source  # told of the data, as in a run
    if ahead:
        state, _ = drain(run)
    data_key, noise_key = run_keys(key)
    batch = _batch(source, state, data_key)
    if not isinstance(trainer, AbstractHostTrainer):
        batch = jax.tree.map(jnp.asarray, batch)
    step_key = jax.random.fold_in(noise_key, state.step)
    new, metrics = _as_it_was(trainer, state, batch, step_key)
    # NaN and infinity may be meant, as in a mask: they are looked for only where one
    # is left in the end, and infinities where no NaN is met.
    for infs in (False, True):
        if not bool(watched_finite(metrics)) or unsound(new) - unsound(state):
            new, metrics = _eagerly(trainer, state, batch, step_key, infs=infs)
    return new, metrics


def _as_it_was(
    trainer: AbstractTrainer, state: TrainState, batch: PyTree, key: Any
) -> tuple[TrainState, Metrics]:
    """Take the step as runs do: in one program, or on the host by calls."""
    host = isinstance(trainer, AbstractHostTrainer)
    with jax.debug_nans(False), jax.debug_infs(False):  # noqa: FBT003
        step = _step if host else eqx.filter_jit(_step)
        return step(trainer, state, batch, key)


def _step(
    trainer: AbstractTrainer, state: TrainState, batch: PyTree, key: Any
) -> tuple[TrainState, Metrics]:
    return trainer.step(state, batch, key=key)


def _eagerly(
    trainer: AbstractTrainer, state: TrainState, batch: PyTree, key: Any, *, infs: bool
) -> tuple[TrainState, Metrics]:
    # Operations compiled before, without the check, would be taken from JAX's cache.
    jax.clear_caches()
    with jax.disable_jit(), jax.debug_nans(True), jax.debug_infs(infs):  # noqa: FBT003
        return _step(trainer, state, batch, key)


def _batch(source: Source, state: TrainState, key: PRNGKeyArray) -> PyTree:
    if isinstance(source, Stream):
        return _next_of(source, int(state.step))
    if isinstance(source, AbstractBatches):
        return source.batch_at(state.step, key=key)
    try:
        return source.batch_at(int(state.step), key=key)
    except IndexError:
        raise _ended(int(state.step)) from None


def _next_of(stream: Stream, step: int) -> PyTree:
    """Return the stream's next batch, if that is known to be the batch of `step`."""
    if stream.kept.step != step:
        at = stream.kept.step
        known = "it is not known where it is" if at is None else f"it is at step {at}"
        raise ValueError(
            f"`data` is taken in turn and cannot be replayed: {known}, and the batch "
            f"of step {step} is wanted. Pass the very iterator that the failed run "
            "had, or a source indexed by the step, such as `effgen.Minibatches`."
        )
    with stream.kept.reading:
        if not stream.kept.ahead:
            try:
                stream.kept.ahead.append(stream.read())  # it is still to be used
            except StopIteration:
                raise _ended(step) from None
        return stream.kept.ahead[0].batch


def _ended(step: int) -> ValueError:
    return ValueError(
        f"`data` has no batch of step {step}: pass the data of the run that failed, "
        "and a state from before its end."
    )
