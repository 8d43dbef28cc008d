"""Run one step again, op by op, to find the operation that failed."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray, PyTree

from .data import AbstractBatches, Stream, as_source
from .job import run_keys
from .state import Metrics, TrainState
from .train import fit
from .trainer import AbstractTrainer


def replay(
    trainer: AbstractTrainer,
    state: TrainState,
    data: Any,
    *,
    key: PRNGKeyArray,
    step: int | None = None,
) -> tuple[TrainState, Metrics]:
    """Take the step after `step` again, eagerly; raise where a NaN first appears.

    Batches and noise depend on `key` and the step alone, so this is the very step that
    failed, with a Python traceback to the operation. With a checkpoint from before the
    failure, the steps up to `step` are first trained as they were. JAX's caches of
    compiled programs are cleared.

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
        The next state and the metrics of the step, if nothing is NaN or infinite.

    Raises:
        FloatingPointError: From the operation that made the NaN or infinity.
        ValueError: If `step` is before `state`'s, or if `data` is taken in turn and
            is not known to stand at this step.
        TrainingError: If a step before `step` fails.
    """
    ahead = 0 if step is None else step - int(state.step)
    if ahead < 0:
        raise ValueError(
            f"`step` is {step}, before the state's {int(state.step)}: restore an "
            "earlier checkpoint."
        )
    if ahead:
        state, _ = fit(trainer, state, data, key=key, num_steps=ahead)
    data_key, noise_key = run_keys(key)
    batch = jax.tree.map(jnp.asarray, _batch(data, state, data_key))
    step_key = jax.random.fold_in(noise_key, state.step)
    # Operations compiled before, without the check, would be taken from JAX's cache.
    jax.clear_caches()
    with jax.disable_jit(), jax.debug_nans(True), jax.debug_infs(True):  # noqa: FBT003
        return trainer.step(state, batch, key=step_key)


def _batch(data: Any, state: TrainState, key: PRNGKeyArray) -> PyTree:
    source = as_source(data)
    if isinstance(source, Stream):
        return _next_of(source, int(state.step))
    step = state.step if isinstance(source, AbstractBatches) else int(state.step)
    return source.batch_at(step, key=key)  # pyright: ignore[reportArgumentType]


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
    return stream.kept.ahead[0].batch if stream.kept.ahead else next(stream.iterator)
