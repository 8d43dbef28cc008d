"""The loop on the host: chunks of steps, and what happens between two of them."""

import dataclasses
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray, PyTree

from .agreement import agreed_steps
from .data import AbstractBatches, Source
from .guard import AbstractGuard, final_result
from .interrupts import Interrupts
from .ledger import Ledger
from .prefetch import Reader, Stack, batches_of
from .program import Carry, Inputs, Program, compiled_program
from .results import RESULTS, RunWarning, TrainingError, with_code
from .sharding import mesh_of, place_stack, replicate
from .state import Metrics, TrainState, copied
from .static import Static, arrays_of
from .trainer import AbstractHostTrainer, AbstractTrainer


# Long enough to hide the host's work, short enough for Ctrl-C and a progress bar.
_CHUNK_SECONDS = 0.5
# How far a rollback may reach where the run itself sets no boundary; a count of steps
# and not of seconds, so that what is done again never depends on the clock.
_RETRY_STEPS = 100


class Chunk(NamedTuple):
    """Consecutive steps as the wrappers of a run see them.

    **Attributes:** `state` after the last step, valid until the next chunk is asked for;
    `metrics`, numpy arrays with a leading axis of steps; `start` and `stop`, the steps'
    range; `boundary`, whether the run yields here; `position`, the data's state.
    """

    state: TrainState
    metrics: Metrics
    start: int
    stop: int
    boundary: bool
    position: Any


@dataclasses.dataclass
class Job:
    """What one run is to do, and what is known of it while it goes.

    `every` and `periods` say where chunks must end: after each `every` steps of this
    run, and at each multiple of a period in the steps of the state.
    """

    trainer: AbstractTrainer
    state: TrainState
    source: Source
    data: Any
    key: PRNGKeyArray
    num_steps: int | None
    every: int | None
    guard: AbstractGuard
    periods: tuple[int, ...] = ()
    result: Any = dataclasses.field(default_factory=lambda: RESULTS.successful)
    program: Program | None = None
    num_skipped: int = 0
    num_rollbacks: int = 0
    ledger: Ledger = dataclasses.field(default_factory=Ledger)
    interrupts: Interrupts = dataclasses.field(default_factory=Interrupts)

    def chunks(self) -> Iterator[Chunk]:
        """Yield the run's chunks; raise `TrainingError` where it fails."""
        host = isinstance(self.trainer, AbstractHostTrainer)
        yield from _host_chunks(self) if host else _DeviceRun(self).chunks()
        exhausted = self.result == RESULTS.data_exhausted
        if exhausted and self.num_steps is None:
            self.result = RESULTS.successful
        elif self.result != RESULTS.successful:
            warnings.warn(RESULTS[self.result], RunWarning, stacklevel=2)

    def room(self, start: int, step: int) -> int:
        """Return how many steps may be taken at `step` before a chunk must end."""
        rooms = [period - step % period for period in self.periods]
        if self.every is not None:
            rooms.append(self.every - (step - start) % self.every)
        elif self.guard.num_retries:
            rooms.append(_RETRY_STEPS - (step - start) % _RETRY_STEPS)
        if self.num_steps is not None:
            rooms.append(start + self.num_steps - step)
        return min(rooms, default=np.iinfo(np.int32).max)

    def yields_at(self, start: int, step: int) -> bool:
        """Return whether the run yields after `step`."""
        done = step - start
        return self.every is None or done % self.every == 0 or done == self.num_steps


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
            tolerance=jnp.asarray(job.guard.num_skips, jnp.int32),
        )
        registers = jnp.zeros((), bool), jnp.zeros((), jnp.int32)
        self.mesh = mesh
        self.statics = Static(state), Static((job.trainer, source))
        self.inputs = replicate(inputs, mesh)
        self.carry = Carry(arrays_of(state), *replicate(registers, mesh))
        self.start = self.step = int(state.step)
        self.pace = _Pace()

    def chunks(self) -> Iterator[Chunk]:
        """Yield chunks until the steps, the data or the patience of the user end."""
        job = self.job
        for stack in self._stacks():
            program = self._program(stack)
            first = self.step
            yield from self._stack_chunks(program, stack, first)
            if job.interrupts.result is not None:
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
        if job.program is None:
            job.trainer.check(job.state, self._batch_shape(stack), job.data)
        leaves, structure = jax.tree.flatten(stack.batches)
        shapes = tuple(_aval(leaf) for leaf in leaves)
        kind = None if stack.batches is None else (structure, shapes)
        avals = jax.tree.map(_aval, (self.carry, self.inputs))
        avals = Carry(*avals[0]), Inputs(*avals[1])
        misses = compiled_program.cache_info().misses
        with job.ledger.account("compile"):
            job.program = compiled_program(self.statics, avals, kind, self.mesh)
        if compiled_program.cache_info().misses > misses:
            self.pace = _Pace()
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
        while self.step < first + stack.num and job.interrupts.result is None:
            room = min(job.room(self.start, self.step), first + stack.num - self.step)
            num = min(self.pace.num, room, program.capacity)
            num = agreed_steps(num, job.interrupts)
            if job.interrupts.result is not None:
                break  # another process was told to stop
            chunk = self._advance(program, stack, first, num)
            if chunk is not None and retry is not None:
                chunk = retry.held(chunk, room)
            elif chunk is None and (retry is None or not retry.again()):
                raise self._failure(program, stack, self.step - first)
            if chunk is not None:
                yield chunk

    def _advance(
        self, program: Program, stack: Stack, first: int, num: int
    ) -> Chunk | None:
        """Take `num` steps; `None` if one failed, with the state and step before it."""
        job, began, start = self.job, time.perf_counter(), self.step
        with job.ledger.account("device"):
            self.carry, metrics, codes = program.advance(
                self.carry, self.inputs, stack.batches, start - first, num
            )
            failed = bool(self.carry.failed)
        self.pace.took(len(codes), time.perf_counter() - began)
        num_done = len(codes) - failed
        job.num_skipped += int(np.count_nonzero(codes[:num_done]))
        self.step += num_done
        if failed:
            return None
        state = self.state()
        position = stack.positions[self.step - first - 1] if stack.positions else None
        boundary = job.yields_at(self.start, self.step)
        return Chunk(state, metrics, start, self.step, boundary, position)

    def state(self) -> TrainState:
        """Return the current state."""
        return self.statics[0].combine(self.carry.state)

    def _failure(self, program: Program, stack: Stack, index: int) -> TrainingError:
        """Return the error that names what the failed step made non-finite."""
        new, metrics, code = program.examine(
            self.carry.state, self.inputs, stack.batches, index
        )
        result = with_code(RESULTS.successful, code)
        state = self.statics[0].combine(new)
        detail = RESULTS[result]
        culprits = _nonfinite("metrics", metrics) + _nonfinite("state", state)
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
    """A chunk's way back: the state at the last boundary, and the chunks since."""

    def __init__(self, run: _DeviceRun) -> None:
        self.run = run
        self.noise_key = run.inputs.noise_key
        self._mark()

    def held(self, chunk: Chunk, room: int) -> Chunk | None:
        """Hold `chunk` back until a boundary, where it can no longer be undone."""
        self.chunks.append(chunk)
        if chunk.stop - chunk.start < room and self.run.job.interrupts.result is None:
            return None
        metrics = [held.metrics for held in self.chunks]
        whole = chunk._replace(metrics=joined(metrics), start=self.chunks[0].start)
        self.run.inputs = self.run.inputs._replace(noise_key=self.noise_key)
        self._mark()
        return whole

    def again(self) -> bool:
        """Go back and take new noise; `False` if that was tried often enough."""
        if self.attempt == self.run.job.guard.num_retries:
            return False
        self.attempt += 1
        self.run.job.num_rollbacks += 1
        state = tuple(map(jnp.copy, self.snapshot))
        zero = jax.tree.map(jnp.zeros_like, self.run.carry[1:])
        self.run.carry, self.run.step, self.chunks = Carry(state, *zero), self.step, []
        fresh = jax.random.fold_in(self.noise_key, np.iinfo(np.int32).max)
        fresh = replicate(jax.random.fold_in(fresh, self.attempt), self.run.mesh)
        self.run.inputs = self.run.inputs._replace(noise_key=fresh)
        return True

    def _mark(self) -> None:
        self.snapshot = tuple(map(jnp.copy, self.run.carry.state))
        self.step, self.attempt = self.run.step, 0
        self.chunks: list[Chunk] = []


class _Pace:
    """How many steps make a chunk of about half a second."""

    def __init__(self) -> None:
        self.num = 1

    def took(self, num: int, seconds: float) -> None:
        wanted = int(_CHUNK_SECONDS * num / max(seconds, 1e-9))
        self.num = max(1, min(wanted, 4 * self.num))


def _host_chunks(job: Job) -> Iterator[Chunk]:
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


def joined(metrics: Iterable[Metrics]) -> Metrics:
    """Return consecutive chunks' metrics as one, along their axis of steps."""
    return jax.tree.map(lambda *parts: np.concatenate(parts), *metrics)


def run_keys(key: PRNGKeyArray) -> tuple[PRNGKeyArray, PRNGKeyArray]:
    """Return the keys of a run's data and of its noise; step `i` folds in `i`."""
    if not jax.dtypes.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.wrap_key_data(key)
    data_key, noise_key = jax.random.split(key)
    return data_key, noise_key


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
