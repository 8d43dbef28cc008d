"""A run of a compiled trainer: chunks of steps, and what is done when one fails."""

import time
from collections.abc import Iterator
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import PyTree

from .agreement import agreed_steps
from .data import AbstractBatches
from .guard import final_result
from .job import Chunk, Job, joined, run_keys
from .prefetch import Reader, Stack
from .program import Advance, Inputs, Program, compiled_program
from .results import RESULTS, TrainingError, with_code
from .sharding import mesh_of, place_stack, replicate
from .state import Metrics, TrainState, copied
from .static import Static, arrays_of
from .trainer import AbstractTrainer


# Long enough to hide the host's work, short enough for Ctrl-C and a progress bar.
_CHUNK_SECONDS = 0.5

# What share of a chunk the copy of the state may take, and how far a chunk may stretch
# for that.
_COPY_SHARE = 0.02
_LONGEST_SECONDS = 5.0
_LARGE_STATE = 2**24  # bytes


def device_chunks(job: Job) -> Iterator[Chunk]:
    """Yield chunks until the steps, the data or the patience of the user end."""
    return _DeviceRun(job).chunks()


class _DeviceRun:
    """A run of a compiled trainer."""

    def __init__(self, job: Job) -> None:
        self.job = job
        mesh = mesh_of(job.state)
        source = job.source if isinstance(job.source, AbstractBatches) else None
        state = copied(job.state)
        data_key, noise_key = run_keys(job.key)
        inputs = Inputs(
            constants=arrays_of((job.trainer, source)),
            data_key=data_key,
            noise_key=noise_key,
        )
        self.mesh = mesh
        self.statics = Static(state), Static((job.trainer, source))
        self.inputs = replicate(inputs, mesh)
        self.arrays = arrays_of(state)
        self.nbytes = sum(array.nbytes for array in self.arrays)
        self.start = self.step = int(state.step)
        self.pace = _Pace(self.nbytes)
        self.skips_in_a_row = 0
        self.stopped = False

    def chunks(self) -> Iterator[Chunk]:
        """Yield chunks until the steps, the data or the patience of the user end."""
        job = self.job
        for stack in self._stacks():
            program = self._program(stack)
            first = self.step
            yield from self._stack_chunks(program, stack, first)
            if self.stopped:
                job.result = job.interrupts.result
                return
        if job.num_steps is None or self.step < self.start + job.num_steps:
            job.result = RESULTS.data_exhausted

    def _stacks(self) -> Iterator[Stack]:
        job = self.job
        if isinstance(job.source, AbstractBatches):
            assert job.num_steps is not None
            if job.num_steps:
                yield Stack(None, job.num_steps, [])
            return
        with job.ledger.account("data"):
            reader = Reader(
                job.source,
                lambda stack: place_stack(stack, self.mesh),
                key=self.inputs.data_key,
                first=self.step,
                num_steps=job.num_steps,
            )
        try:
            yield from self._read(iter(reader))
        finally:
            reader.close()

    def _read(self, stacks: Iterator[Stack]) -> Iterator[Stack]:
        while True:
            try:
                with self.job.ledger.account("data"):
                    stack = next(stacks, None)
            except Exception as error:
                result = RESULTS.data_failed
                raise self._error(
                    result, f"the data raised {type(error).__name__}: {error}", {}
                ) from error
            if stack is None:
                return
            yield stack

    def _program(self, stack: Stack) -> Program:
        job = self.job
        accepts_all = type(job.trainer).check is AbstractTrainer.check
        if job.program is None and not accepts_all:
            job.trainer.check(job.state, self._batch_shape(stack), job.data)
        leaves, structure = jax.tree.flatten(stack.batches)
        shapes = tuple(_aval(leaf) for leaf in leaves)
        kind = None if stack.batches is None else (structure, shapes)
        avals = jax.tree.map(_aval, (self.arrays, self.inputs))
        misses = compiled_program.cache_info().misses
        with job.ledger.account("compile"):
            job.program = compiled_program(self.statics, avals, kind, self.mesh)
        if compiled_program.cache_info().misses > misses:
            self.pace = _Pace(self.nbytes)
        return job.program

    def _batch_shape(self, stack: Stack) -> PyTree:
        source = self.job.source
        if isinstance(source, AbstractBatches):
            step, key = self.job.state.step, self.inputs.data_key
            return eqx.filter_eval_shape(source.batch_at, step, key=key)
        drop = lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype)
        return jax.tree.map(drop, stack.batches)

    def _stack_chunks(
        self, program: Program, stack: Stack, first: int
    ) -> Iterator[Chunk]:
        job = self.job
        retry = _Retry(self) if job.guard.num_retries else None
        while self.step < first + stack.num:
            room = min(job.room(self.start, self.step), first + stack.num - self.step)
            num = min(self.pace.num, room, program.capacity)
            num = agreed_steps(num, job.interrupts)
            if num == 0:
                self.stopped = True
                yield from () if retry is None else retry.rest()
                return
            chunk, failed = self._advance(program, stack, first, num)
            if failed and retry is not None and retry.again():
                continue
            if chunk is not None and retry is not None:
                chunk = retry.held(chunk, room)
            if chunk is not None:
                yield chunk
            if failed:
                yield self._skip(program, stack, first)

    def _advance(
        self, program: Program, stack: Stack, first: int, num: int
    ) -> tuple[Chunk | None, bool]:
        """Take up to `num` steps: the chunk of the sound ones, and if one failed."""
        began, start = time.perf_counter(), self.step
        with self.job.ledger.account("device"):
            taken, failed = self._sound_steps(program, stack, start - first, num)
        self.pace.took(taken.num, time.perf_counter() - began)
        if failed:
            self.pace = _Pace(self.nbytes)
        if taken.num == 0:
            return None, failed
        self.arrays, self.skips_in_a_row = taken.state, 0
        return self._chunk(taken.metrics, taken.num, stack, first), failed

    def _sound_steps(
        self, program: Program, stack: Stack, index: int, num: int
    ) -> tuple[Advance, bool]:
        """Take `num` steps, or all before the first that fails.

        The loop itself guards nothing, and so costs nothing: it only notes that a step
        failed. Then the chunk is taken again from its start, which was kept, up to the
        failure, by the same program and so with the same bits. A parameter can turn
        non-finite before a loss shows it; the first such step is found by halving.
        """
        call = (self.inputs, stack.batches, index)
        taken = program.advance(self.arrays, *call, num)
        if taken.sound:
            return taken, False
        best = Advance(self.arrays, {}, 0, sound=True)
        unsound, guess = taken.num, taken.num - 1
        while unsound - best.num > 1:
            again = program.advance(self.arrays, *call, guess)
            best, unsound = (again, unsound) if again.sound else (best, again.num)
            guess = (best.num + unsound) // 2
        return best, True

    def _chunk(self, metrics: Metrics, num: int, stack: Stack, first: int) -> Chunk:
        start, self.step = self.step, self.step + num
        position = stack.positions[self.step - first - 1] if stack.positions else None
        boundary = self.job.yields_at(self.start, self.step)
        return Chunk(self.state(), metrics, start, self.step, boundary, position)

    def _skip(self, program: Program, stack: Stack, first: int) -> Chunk:
        """Leave the failed step out, as its own chunk; raise if that is too many."""
        job = self.job
        if self.skips_in_a_row >= job.guard.num_skips:
            raise self._failure(program, stack, self.step - first)
        self.skips_in_a_row += 1
        job.num_skipped += 1
        call = (self.arrays, self.inputs, stack.batches, self.step - first)
        metrics = program.examine(*call)[1]
        self.arrays = (*self.arrays[:-1], self.arrays[-1] + 1)
        rows = jax.tree.map(lambda value: np.asarray(value)[None], metrics)
        return self._chunk(rows, 1, stack, first)

    def state(self) -> TrainState:
        """Return the current state."""
        return self.statics[0].combine(self.arrays)

    def _failure(self, program: Program, stack: Stack, index: int) -> TrainingError:
        """Return the error that names what the failed step made non-finite."""
        new, metrics, code = program.examine(
            self.arrays, self.inputs, stack.batches, index
        )
        reported = with_code(RESULTS.successful, code)
        result = RESULTS.nonfinite if code == 0 else reported
        detail = RESULTS[result]
        culprits = _nonfinite("metrics", metrics)
        culprits += _nonfinite("state", self.statics[0].combine(new))
        if culprits and result == RESULTS.nonfinite:
            detail = f"{'; '.join(culprits[:6])}: {detail}"
        final = final_result(self.job.guard, result)
        if final != result:
            detail = f"{detail} {RESULTS[final]}"
        return self._error(final, detail, metrics)

    def _error(self, result: Any, detail: str, metrics: Any) -> TrainingError:
        self.job.result = result
        return TrainingError(
            f"step {self.step} failed; the state before it is kept. {detail}",
            result=result,
            step=self.step,
            state=self.state(),
            metrics=metrics,
        )


class _Retry:
    """The way back: the state at the last boundary, and the chunks since."""

    def __init__(self, run: _DeviceRun) -> None:
        self.run = run
        self.noise_key = run.inputs.noise_key
        self._mark()

    def held(self, chunk: Chunk, room: int) -> Chunk | None:
        """Hold `chunk` back until a boundary, where it can no longer be undone."""
        self.chunks.append(chunk)
        if chunk.stop - chunk.start < room:
            return None
        (whole,) = self.rest()
        return whole

    def rest(self) -> list[Chunk]:
        """Return what is held back, as at most one chunk, and begin anew from here."""
        chunks = self.chunks
        self.run.inputs = self.run.inputs._replace(noise_key=self.noise_key)
        self._mark()
        if not chunks:
            return []
        metrics = joined([chunk.metrics for chunk in chunks])
        return [chunks[-1]._replace(metrics=metrics, start=chunks[0].start)]

    def again(self) -> bool:
        """Go back and take new noise; `False` if that was tried often enough."""
        if self.attempt == self.run.job.guard.num_retries:
            return False
        self.attempt += 1
        self.run.job.num_rollbacks += 1
        self.run.arrays, self.run.step, self.chunks = self.arrays, self.step, []
        fresh = jax.random.fold_in(self.noise_key, np.iinfo(np.int32).max)
        fresh = replicate(jax.random.fold_in(fresh, self.attempt), self.run.mesh)
        self.run.inputs = self.run.inputs._replace(noise_key=fresh)
        return True

    def _mark(self) -> None:
        self.arrays, self.step, self.attempt = self.run.arrays, self.run.step, 0
        self.chunks: list[Chunk] = []


class _Pace:
    """How many steps make a chunk of about half a second.

    Every chunk copies the state, to have its start to go back to. Where the state is
    large and that takes long beside the steps, chunks become longer.
    """

    def __init__(self, nbytes: int) -> None:
        self.num, self.once = 1, 0.0
        self.large = nbytes > _LARGE_STATE
        self.last = (1, 0.0)

    def took(self, num: int, seconds: float) -> None:
        """Note that `num` steps took `seconds`."""
        if num == 0:
            return
        fewer, shorter = self.last
        if self.large and num >= 2 * fewer:
            each = max(seconds - shorter, 0.0) / (num - fewer)
            self.once = max(seconds - num * each, 0.0)
        each = max((seconds - self.once) / num, 1e-9)
        wanted = min(max(self.once / _COPY_SHARE, _CHUNK_SECONDS), _LONGEST_SECONDS)
        self.last = (num, seconds)
        self.num = max(1, min(int(wanted / each), 4 * self.num))


def _aval(array: Any) -> jax.ShapeDtypeStruct:
    sharding = getattr(array, "sharding", None)
    return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding)


def _nonfinite(root: str, tree: PyTree) -> list[str]:
    found = []
    arrays = eqx.filter(tree, eqx.is_inexact_array)
    for path, leaf in jax.tree_util.tree_flatten_with_path(arrays)[0]:
        bad = ~np.isfinite(np.asarray(leaf, np.float64))
        if bad.any():
            where = f" in {int(bad.sum())} of {bad.size}" if bad.size > 1 else ""
            value = np.asarray(leaf)[bad].flat[0]
            found.append(f"{root}{jax.tree_util.keystr(path)} is {value}{where}")
    return found
