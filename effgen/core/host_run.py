"""A run whose steps are taken on the host, one call a step."""

from collections.abc import Callable, Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray

from .data import AbstractBatches
from .job import Chunk, Job, run_keys
from .prefetch import batches_of
from .results import RESULTS, TrainingError
from .state import copied


def host_chunks(job: Job) -> Iterator[Chunk]:
    """Yield one chunk for each step; the state is what `step` made it."""
    state, start = copied(job.state), int(job.state.step)
    data_key, noise_key = run_keys(job.key)
    for batch, position in _host_batches(job, data_key, start):
        step = int(state.step)
        if step == start:
            job.trainer.check(job.state, batch, job.data)
        with job.ledger.account("device"):
            key = jax.random.fold_in(noise_key, step)
            new, metrics = job.trainer.step(state, batch, key=key)
            new, metrics = jax.block_until_ready((new, metrics))
        result = metrics.get("result", RESULTS.successful)
        if result != RESULTS.successful:
            job.result = result
            raise TrainingError(
                f"step {step} failed; the state before it is kept. {RESULTS[result]}",
                result=result,
                step=step,
                state=state,
                metrics=jax.tree.map(np.asarray, metrics),
                attempt=new,
            )
        state = eqx.tree_at(lambda s: s.step, new, state.step + 1)
        rows = jax.tree.map(lambda x: np.asarray(x)[None], metrics)
        boundary = job.yields_at(start, step + 1)
        yield Chunk(state, rows, step, step + 1, boundary, position)
        if job.interrupts.result is not None:
            job.result = job.interrupts.result
            return
    if job.num_steps is None or int(state.step) < start + job.num_steps:
        job.result = RESULTS.data_exhausted


def _host_batches(job: Job, key: PRNGKeyArray, start: int) -> Iterator[tuple[Any, Any]]:
    source = job.source
    if isinstance(source, AbstractBatches):
        assert job.num_steps is not None
        batch_at: Callable[..., Any] = eqx.filter_jit(source.batch_at)
        for step in range(start, start + job.num_steps):
            yield batch_at(jnp.asarray(step), key=key), None
    else:
        yield from batches_of(source, key, start, job.num_steps)
