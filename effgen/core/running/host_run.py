"""Steps taken one call each: of host trainers, and where JAX is asked to debug."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray, PyTree

from effgen.core.contract.checks import result_code
from effgen.core.contract.state import Metrics, TrainState, copied, named_arrays
from effgen.core.contract.trainer import AbstractHostTrainer
from effgen.core.data.prefetch import Block

from .job import Job, run_keys
from .step import next_state, shapes_of_parameters


class HostDriver:
    """The state of a run whose steps are calls: eager, or compiled by the trainer.

    Its state is whatever the trainer's step makes it: a host trainer may change the
    shapes of its arrays from step to step.
    """

    capacity = 1
    nbytes = 0

    def __init__(self, job: Job) -> None:
        """Copy the state, which stays the caller's."""
        self.job = job
        self.state = copied(job.state)
        self.data_key, self.noise_key = run_keys(job.key)
        self.checked = False
        self.block: Block | None = None
        self.attempt: tuple[TrainState, Metrics] | None = None
        self._spared = unsound(job.state)
        self._batch_at = _by_step(job.source, self.data_key)

    def place(self, block: Block) -> None:
        """Keep the batches of `block`, on the host as they came."""
        self.block = block

    def prepare(self) -> bool:
        """Look at the first batch; nothing is compiled."""
        if not self.checked:
            self.job.trainer.check(self.state, self._batch(0), self.job.data)
            self.checked = True
        return False

    def advance(self, index: int, num: int) -> tuple[Metrics, int, bool]:
        """Take one step; return its metrics, how many were sound, and if one failed."""
        new, metrics = jax.block_until_ready(self._stepped(self._batch(index)))
        self.attempt = new, metrics
        if int(result_code(metrics)) or unsound(new) - self._spared:
            return {}, 0, True
        self.state = new
        return jax.tree.map(lambda x: np.asarray(x)[None], metrics), 1, False

    def failed(self, index: int) -> tuple[TrainState, Metrics, int, Any]:
        """Return what the failed step made: state, metrics and code, and that state."""
        assert self.attempt is not None
        new, metrics = self.attempt
        host = jax.tree.map(np.asarray, metrics)
        return new, host, int(result_code(metrics)), new

    def skip(self) -> None:
        """Count a step without taking it."""
        self.state = eqx.tree_at(lambda s: s.step, self.state, self.state.step + 1)

    def mark(self) -> Any:
        """Return what `back` needs to come back here."""
        return self.state

    def back(self, mark: Any) -> None:
        """Come back to where `mark` was made."""
        self.state = mark

    def set_noise(self, key: Any) -> None:
        """Take the noise of the steps to come from `key`."""
        self.noise_key = key

    def _stepped(self, batch: PyTree) -> tuple[TrainState, Metrics]:
        trainer, decay = self.job.trainer, self.job.decay
        key = jax.random.fold_in(self.noise_key, self.state.step)
        host = isinstance(trainer, AbstractHostTrainer)
        # Compiled by itself unless JAX is told not to: what is not a number is then
        # raised from the operation that made it.
        step = next_state if host else eqx.filter_jit(next_state)
        return step(trainer, self.state, batch, decay, key=key)

    def _batch(self, index: int) -> PyTree:
        assert self.block is not None
        if self.block.reads is None:
            return self._batch_at(self.state.step)
        return self.block.reads[index].batch


def _by_step(source: Any, key: PRNGKeyArray) -> Callable[[Any], PyTree]:
    """Return the function from a step to its batch, where that is computed."""
    arrays, rest = eqx.partition(source, eqx.is_array)

    @jax.jit
    def batch_at(arrays: Any, step: Any) -> PyTree:
        return eqx.combine(arrays, rest).batch_at(step, key=key)

    return lambda step: batch_at(arrays, step)


def unsound(state: TrainState) -> frozenset[str]:
    """Return the arrays that hold what they should not: as `Step.kept_sound` has it."""
    shapes = shapes_of_parameters(state.model)
    found = []
    for name, x in named_arrays((state.model, state.opt_state, state.memory)).items():
        part = int(name[1])  # of the three
        finite = part == 0 or (part == 1 and x.shape in shapes)
        bad = ~np.isfinite(_plain(x)) if finite else np.isnan(_plain(x))
        found += [name] if bad.any() else []
    return frozenset(found)


def _plain(x: Any) -> np.ndarray:
    # bfloat16 and its kin are no numbers to NumPy.
    inexact = jnp.issubdtype(x.dtype, jnp.inexact)
    wide = jnp.issubdtype(x.dtype, jnp.complexfloating)
    kind = np.complex128 if wide else np.float64
    return np.asarray(x).astype(kind) if inexact else np.zeros(0)


def steps_are_calls(job: Job) -> bool:
    """Return whether steps are taken one call each, and not in one compiled loop.

    So for host trainers, and where JAX is asked to debug: to compile nothing, or to
    raise from the operation that made a NaN.
    """
    modes = ("jax_disable_jit", "jax_debug_nans", "jax_debug_infs")
    debugged = any(getattr(jax.config, mode) for mode in modes)
    return debugged or isinstance(job.trainer, AbstractHostTrainer)
