"""Steps taken by a compiled program, their batches moved to the device in stacks."""

import warnings
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from effgen.core.contract.state import Metrics, TrainState, copied
from effgen.core.contract.static import Static, arrays_of
from effgen.core.contract.trainer import AbstractTrainer
from effgen.core.data.batches import AbstractBatches
from effgen.core.data.prefetch import Block, stack_length, stacked
from effgen.core.data.rows import check_width
from effgen.core.data.stream import Read
from effgen.core.devices.agreement import are_same, check_same
from effgen.core.devices.sharding import mesh_of, place_stack, replicate
from effgen.core.outcome.results import RunWarning

from .job import Job, run_keys
from .program import Advance, compiled_program
from .step import Inputs


_MOST_STACKS = 4  # how many kinds of batches keep their place on the device


class DeviceDriver:
    """The state of a run on the device, and the program that moves it on.

    Attributes:
        nbytes: Bytes of the state.
        capacity: The most steps of one call.
    """

    def __init__(self, job: Job) -> None:
        """Copy the state, which stays the caller's."""
        source = job.source if isinstance(job.source, AbstractBatches) else None
        data_key, noise_key = run_keys(job.key)
        self.job = job
        self.mesh = mesh_of(job.state)
        if self.mesh is not None:
            check_same("trainer", job.trainer)
            check_same("data", source)
            check_same("key", (data_key, noise_key))
        state = copied(job.state)
        inputs = Inputs(arrays_of((job.trainer, source)), data_key, noise_key)
        self.inputs = replicate(inputs, self.mesh)
        self.statics = Static(state), Static((job.trainer, source))
        self.arrays = arrays_of(state)
        self.count = len(self.arrays) - 1 - len(arrays_of(state.average))  # the step's
        self.nbytes = sum(array.nbytes for array in self.arrays)
        self.stack: PyTree = None
        self._room: dict[Any, PyTree] = {}

    @property
    def data_key(self) -> Any:
        """The key of the run's data."""
        return self.inputs.data_key

    @property
    def state(self) -> TrainState:
        """The current state."""
        return self.statics[0].combine(self.arrays)

    @property
    def capacity(self) -> int:
        """The most steps that one call may take."""
        return 1 if self.job.program is None else self.job.program.capacity

    @property
    def noise_key(self) -> Any:
        """The key of the steps' noise."""
        return self.inputs.noise_key

    def place(self, block: Block) -> None:
        """Move the batches of `block` to the device."""
        if self.stack is None and block.reads is not None:
            self._warn_of_same(block.reads[0])
        self.stack = None if block.reads is None else self._stacked(block)

    def _warn_of_same(self, read: Read) -> None:
        if self.mesh is None or jax.process_count() == 1:
            return
        if are_same(jax.tree.map(np.asarray, read.batch)):
            warnings.warn(
                f"each of {jax.process_count()} processes brings the same rows, which "
                "then count as often: give each its part of the data, such as "
                "`rows[jax.process_index() :: jax.process_count()]`.",
                RunWarning,
                stacklevel=2,
            )

    def prepare(self) -> bool:
        """Look at the first batches, compile if need be, and return if that was so."""
        job = self.job
        accepts_all = type(job.trainer).check is AbstractTrainer.check
        if job.program is None and not accepts_all:
            job.trainer.check(job.state, self._batch_shape(), job.data)
        leaves, structure = jax.tree.flatten(self.stack)
        kind = None if self.stack is None else (structure, tuple(map(_aval, leaves)))
        avals = jax.tree.map(_aval, (self.arrays, self.inputs))
        misses = compiled_program.cache_info().misses
        with job.ledger.account("compile"):
            job.program = compiled_program(
                self.statics, avals, kind, self.mesh, job.decay
            )
        return compiled_program.cache_info().misses > misses

    def advance(self, index: int, num: int) -> tuple[Metrics, int, bool]:
        """Take `num` steps from the block's batch `index`, or all before a failure.

        Returns:
            The metrics and the number of the sound steps, and if one failed.
        """
        taken, failed = self._sound_steps(index, num)
        if taken.num:
            self.arrays = taken.state
        return taken.metrics, taken.num, failed

    def _sound_steps(self, index: int, num: int) -> tuple[Advance, bool]:
        """Take `num` steps, or all before the first that fails.

        The loop itself guards nothing, and so costs nothing: it only notes that a step
        failed. Then the chunk is taken again from its start, which was kept, up to the
        failure, by the same program and so with the same bits. A parameter can turn
        non-finite before a loss shows it; the first such step is found by halving.
        """
        assert self.job.program is not None
        advance, call = self.job.program.advance, (self.inputs, self.stack, index)
        taken = advance(self.arrays, *call, num)
        if taken.sound:
            return taken, False
        best = Advance(self.arrays, {}, 0, sound=True)
        unsound, guess = taken.num, taken.num - 1
        while unsound - best.num > 1:
            again = advance(self.arrays, *call, guess)
            best, unsound = (again, unsound) if again.sound else (best, again.num)
            guess = (best.num + unsound) // 2
        return best, True

    def failed(self, index: int) -> tuple[TrainState, Metrics, int, Any]:
        """Return what the failing step makes: state, metrics, code; and no attempt."""
        assert self.job.program is not None
        call = (self.arrays, self.inputs, self.stack, index)
        taken = self.job.program.advance(*call, 1)
        metrics = jax.tree.map(lambda x: np.asarray(x[0]), taken.metrics)
        return self.statics[0].combine(taken.state), metrics, taken.code, None

    def skip(self) -> None:
        """Count a step without taking it."""
        i = self.count
        self.arrays = (*self.arrays[:i], self.arrays[i] + 1, *self.arrays[i + 1 :])

    def mark(self) -> Any:
        """Return what `back` needs to come back here."""
        return self.arrays

    def back(self, mark: Any) -> None:
        """Come back to where `mark` was made."""
        self.arrays = mark

    def set_noise(self, key: Any) -> None:
        """Take the noise of the steps to come from `key`."""
        self.inputs = self.inputs._replace(noise_key=replicate(key, self.mesh))

    def _stacked(self, block: Block) -> PyTree:
        """Return the block's batches in a stack as long as every one of their kind.

        A full stack goes as one. Fewer batches are written, each by itself, into the
        stack that was there before: they cost their own bytes.
        """
        assert block.reads is not None
        length = stack_length(block.reads[0])
        if block.num == length:
            return self._placed(block.reads)
        kind = block.reads[0].kind
        room = self._room.pop(kind, None)
        for i, read in enumerate(block.reads):
            row = self._placed((read,))
            room = _empty(row, length) if room is None else room
            room = _written(room, row, np.int32(i))
        self._room[kind] = room  # the last used is the last to go
        while len(self._room) > _MOST_STACKS:
            self._room.pop(next(iter(self._room)))
        return room

    def _placed(self, reads: tuple[Read, ...]) -> PyTree:
        stack = stacked(reads)
        check_width("batch", stack)
        return place_stack(stack, self.mesh)

    def _batch_shape(self) -> PyTree:
        source = self.job.source
        if isinstance(source, AbstractBatches):
            step, key = self.job.state.step, self.data_key
            return eqx.filter_eval_shape(source.batch_at, step, key=key)
        drop = lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype)
        return jax.tree.map(drop, self.stack)


def _empty(row: PyTree, length: int) -> PyTree:
    def empty(x: jax.Array) -> jax.Array:
        shape = (length, *x.shape[1:])
        return jax.jit(lambda: jnp.zeros(shape, x.dtype), out_shardings=x.sharding)()

    return jax.tree.map(empty, row)


@partial(jax.jit, donate_argnums=0)
def _written(stack: PyTree, row: PyTree, index: Any) -> PyTree:
    return jax.tree.map(lambda s, r: s.at[index].set(r[0]), stack, row)


def _aval(array: Any) -> jax.ShapeDtypeStruct:
    sharding = getattr(array, "sharding", None)
    # NumPy's float64 is float32 without x64.
    dtype = jax.dtypes.canonicalize_dtype(array.dtype, allow_extended_dtype=True)
    return jax.ShapeDtypeStruct(array.shape, dtype, sharding=sharding)
