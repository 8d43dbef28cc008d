"""The loop under every run: blocks of batches, chunks of steps, and what ends them."""

import time
import warnings
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from effgen.core.contract.state import Metrics
from effgen.core.data.batches import AbstractBatches, Indexed
from effgen.core.data.prefetch import Block, Reader
from effgen.core.data.stream import Stream
from effgen.core.devices.agreement import ProcessesApart, agree
from effgen.core.outcome.results import (
    RESULTS,
    RunWarning,
    TrainingError,
    code,
    with_code,
)

from .device_run import DeviceDriver
from .failures import explained
from .host_run import HostDriver, steps_are_calls
from .job import MOST_STEPS, Chunk, Job
from .pace import Pace
from .retry import Retry


# How long a process waits for its data before it asks the other processes, in seconds.
_ASK_SECONDS = 1.0

_MANY = int(np.iinfo(np.int32).max)

_NONE_LEFT = (
    "`data` had no batch, and no step was taken. An iterator is used up by "
    "one run: make it anew, or pass a sequence of batches."
)
_PAST_THE_END = (
    "`data` is a sequence of {} batches, which are taken by `state.step`, and the "
    "state is at step {}: no step was taken. To take them again pass `iter(batches)`, "
    "or `itertools.cycle(batches)` and `num_steps`."
)


class Loop:
    """A run as it goes."""

    def __init__(self, job: Job) -> None:
        """Copy the state; no step is taken and no batch is read yet."""
        job.check_average()
        self.job = job
        self.start = self.step = int(job.state.step)
        self.driver = HostDriver(job) if steps_are_calls(job) else DeviceDriver(job)
        self.pace = Pace(self.driver.nbytes)
        self.reader: Reader | None = None
        self.block: Block | None = None
        self.used = 0  # batches of the block
        self.position: Any = None  # the source's, after the last batch used
        self.began: Any = None  # the same, before the block
        self.retry: Retry | None = None
        self.skips_in_a_row = 0
        self.over = False

    def chunks(self) -> Iterator[Chunk]:
        """Yield chunks until the steps, the data or the patience of the user end.

        Raises:
            TrainingError: Where a step or the data fail.
        """
        try:
            self._open()
            while not self._all_taken() and (block := self._next_block()) is not None:
                yield from self._block_chunks(block)
            yield from self._held()
        except TrainingError:
            self.leave(self.job.result)
            yield from self._held()
            raise
        except GeneratorExit:
            self.leave()
            raise
        except BaseException:
            known = self.job.result != RESULTS.successful
            self.leave(self.job.result if known else RESULTS.stopped_elsewhere)
            raise
        self.over = True
        self._close()
        self._warn()

    def leave(self, result: Any = RESULTS.left) -> None:
        """End the run where it is; the other processes are told why.

        The source is left at the batch after the last one used.
        """
        if not self.over and not self._all_taken():
            self._tell(result)
            if self.job.result == RESULTS.successful:
                self.job.result = result
        self.over = True
        self._close()

    def _open(self) -> None:
        job = self.job
        if isinstance(job.source, AbstractBatches) or self._all_taken():
            return
        with job.ledger.account("data"):
            self.reader = Reader(
                job.source,
                key=self.driver.data_key,
                first=self.step,
                num_steps=job.num_steps,
            )
        if isinstance(job.source, Stream):
            self.position = job.source.kept.position

    def _close(self) -> None:
        reader, self.reader = self.reader, None
        if reader is not None:
            if self.block is not None and self.block.reads is not None:
                reader.give_back(self.block.reads[self.used :])
            reader.close()

    def _warn(self) -> None:
        job = self.job
        if job.result == RESULTS.data_exhausted and job.num_steps is None:
            job.result = RESULTS.successful
            if self.step == self.start:
                self._warn_of_none()
        elif job.result != RESULTS.successful:
            warnings.warn(RESULTS[job.result], RunWarning, stacklevel=2)

    def _warn_of_none(self) -> None:
        """Warn of no batch: at step 0, of a used up iterator, past a sequence's end."""
        source = self.job.source
        if isinstance(source, Indexed) and self.start > 0:
            told = _PAST_THE_END.format(len(source.sequence), self.start)
            warnings.warn(told, RunWarning, stacklevel=3)
        elif self.start == 0 or (isinstance(source, Stream) and not source.settable):
            warnings.warn(_NONE_LEFT, RunWarning, stacklevel=3)

    def _all_taken(self) -> bool:
        num_steps = self.job.num_steps
        return num_steps is not None and self.step >= self.start + num_steps

    def _next_block(self) -> Block | None:
        """Return the next batches, or `None` where the run ends."""
        job = self.job
        if self.over:
            return None
        if self.reader is None:
            self.block = Block(None, job.num_steps or _MANY)
            return self.block
        num = self._awaited(self.reader)
        if num == 0:
            return None
        self.block, self.used = self.reader.take(num), 0
        self.began = self.position
        if self.retry is not None:
            self.retry.took(self.block.reads)
        return self.block

    def _awaited(self, reader: Reader) -> int:
        """Wait until all processes have batches; return how many, 0 at the end."""
        until, there = time.monotonic() + self.job.patience, 0
        whole = self.job.guard.num_retries > 0
        with self.job.ledger.account("data"):
            while True:
                seconds = min(until - time.monotonic(), _ASK_SECONDS)
                num = reader.wait(_MANY, seconds, self.job.interrupts, whole=whole)
                if reader.num_ahead > there:  # of a whole stack, each batch is awaited
                    there = reader.num_ahead
                    until = time.monotonic() + self.job.patience
                said = self._said(reader, num, until)
                num = self._agreed(num, said, reader)
                if num or self.over:
                    return num

    def _said(self, reader: Reader, num: int, until: float) -> Any:
        """Return what this process has to say of its data."""
        if num or not reader.ended:
            late = not num and time.monotonic() > until
            return RESULTS.data_stalled if late else RESULTS.successful
        failed = reader.failure is not None
        return RESULTS.data_failed if failed else RESULTS.data_exhausted

    def _agreed(self, num: int, said: Any, reader: Reader | None = None) -> int:
        """Return how many steps or batches all take next; 0 where the run is over."""
        job = self.job
        if job.interrupts.result is not None and said == RESULTS.successful:
            said = job.interrupts.result
        kind = reader.kind if reader is not None and num else None
        try:
            agreement = agree(num, said, kind, patience=job.patience)
        except ProcessesApart as error:
            self.over = True
            raise self._error(RESULTS.processes_apart, str(error), {}) from None
        if not agreement.alike:
            agreement = agreement._replace(result=code(RESULTS.batches_differ))
        if agreement.result:
            self._end(with_code(RESULTS.successful, agreement.result), said)
        return 0 if agreement.result else agreement.num

    def _end(self, result: Any, mine: Any) -> None:
        """End the run for `result`, which this process or another has said."""
        self.over = True
        if result == RESULTS.data_failed and mine == result:
            assert self.reader is not None
            error = self.reader.failure
            text = f"the data raised {type(error).__name__}: {error}"
            raise self._error(result, text, {}) from error
        if result in (RESULTS.terminated, RESULTS.interrupted):
            self.job.interrupts.result = result
        failures = (RESULTS.data_stalled, RESULTS.batches_differ)
        if any(result == failure for failure in failures):
            raise self._error(result, RESULTS[result], {})
        quiet = (RESULTS.terminated, RESULTS.interrupted, RESULTS.data_exhausted)
        if not any(result == ending for ending in (*quiet, RESULTS.left)):
            result = RESULTS.stopped_elsewhere
            raise self._error(result, RESULTS[result], {})
        self.job.result = result

    def _tell(self, result: Any) -> None:
        """Tell the other processes, which ask before their next step."""
        if jax.process_count() == 1:
            return
        try:
            agree(0, result, None, patience=self.job.patience)
        except Exception as error:  # they may be gone; what is here is good
            warnings.warn(f"other processes: {error}", RunWarning, stacklevel=2)

    def _block_chunks(self, block: Block) -> Iterator[Chunk]:
        job, first = self.job, self.step
        self._place(block)
        if self.driver.prepare():
            self.pace = Pace(self.driver.nbytes)
        if job.guard.num_retries and self.retry is None:
            self._begin_retries(block)
        while self.block is block and self.step < first + block.num:
            room = min(job.room(self.start, self.step), first + block.num - self.step)
            num = self._agreed(
                min(self.pace.num, room, self.driver.capacity), self._countable(room)
            )
            if num == 0:
                return
            chunk, failed = self._advance(block, first, num)
            if self.retry is None:
                yield from () if chunk is None else (chunk,)
                yield from (self._skip(block, first),) if failed else ()
            elif failed:
                yield from self._retried(self.retry, chunk, first)
            elif chunk is not None:
                yield from self._kept(self.retry, chunk)

    def _begin_retries(self, block: Block) -> None:
        self.retry = Retry(self.driver, self.job.guard.num_retries)
        self.retry.mark(self.step, self.position, block.reads)

    def _kept(self, retry: Retry, chunk: Chunk) -> list[Chunk]:
        """Hold a chunk back until a boundary, from where nothing is undone."""
        retry.chunks.append(chunk)
        ends = chunk.stop - chunk.start == self.job.room(self.start, chunk.start)
        return self._held() if ends else []

    def _held(self, last: Chunk | None = None) -> list[Chunk]:
        """Return what was held back, as at most one chunk; go on from here."""
        if self.retry is None:
            return []
        found = self.retry.rest(last)
        reads = None if self.block is None else self.block.reads
        left = None if reads is None else reads[self.used :]
        self.retry.mark(self.step, self.position, left)
        return found

    def _retried(
        self, retry: Retry, chunk: Chunk | None, first: int
    ) -> Iterator[Chunk]:
        """Go back; where that was tried often enough, fail after what was sound."""
        if not retry.again():
            error = self._failure(self.step - first)
            yield from self._held(chunk)
            raise error
        self.job.num_rollbacks += 1
        self.step, self.position = retry.step, retry.position
        if isinstance(self.job.source, Stream):
            self.job.source.used(self.position, self.step)
        if self.reader is not None:
            self.reader.give_back(retry.reads)
            retry.reads, self.block, self.used = (), None, 0  # they are taken anew

    def _place(self, block: Block) -> None:
        try:
            with self.job.ledger.account("data"):
                self.driver.place(block)
        except Exception as error:
            text = f"the data raised {type(error).__name__}: {error}"
            raise self._error(RESULTS.data_failed, text, {}) from error

    def _countable(self, room: int) -> Any:
        if room == 0 and self.step == MOST_STEPS:
            raise self._error(RESULTS.count_ended, RESULTS[RESULTS.count_ended], {})
        return RESULTS.successful

    def _advance(self, block: Block, first: int, num: int) -> tuple[Chunk | None, bool]:
        """Take up to `num` steps: the chunk of the sound ones, and if one failed."""
        began, start = time.perf_counter(), self.step
        with self.job.ledger.account("device"):
            metrics, taken, failed = self._together(start - first, num)
        self.pace.took(taken, time.perf_counter() - began)
        if self.reader is not None:
            self.reader.expect(self.pace.seconds)
        if failed:
            self.pace = Pace(self.driver.nbytes)
        if taken == 0:
            return None, failed
        self.skips_in_a_row = 0
        return self._chunk(metrics, taken, block, first), failed

    def _together(self, index: int, num: int) -> tuple[Metrics, int, bool]:
        """Take steps; on hosts, keep none that failed in another process."""
        mark = self.driver.mark()
        metrics, taken, failed = self.driver.advance(index, num)
        if isinstance(self.driver, DeviceDriver) or jax.process_count() == 1:
            return metrics, taken, failed
        said = RESULTS.nonfinite if failed else RESULTS.successful
        agreement = agree(taken, said, None, patience=self.job.patience)
        if agreement.result and not failed:
            self.driver.back(mark)
            if not self.job.guard.num_skips:
                self._end(RESULTS.stopped_elsewhere, RESULTS.successful)
            return {}, 0, True
        return metrics, taken, failed

    def _chunk(self, metrics: Metrics, num: int, block: Block, first: int) -> Chunk:
        start, self.step = self.step, self.step + num
        self.use(block, first)
        boundary = self.job.yields_at(self.start, self.step)
        state = self.driver.state
        return Chunk(state, metrics, start, self.step, boundary, self.position)

    def use(self, block: Block, first: int) -> None:
        """Note that the batches up to `self.step` are used, and no other."""
        self.used = self.step - first
        if isinstance(self.job.source, Stream):
            assert block.reads is not None
            last = block.reads[self.used - 1].position if self.used else self.began
            self.job.source.used(last, self.step)
            self.position = last

    def _skip(self, block: Block, first: int) -> Chunk:
        """Leave the failed step out, as its own chunk; raise if that is too many."""
        job, index = self.job, self.step - first
        if self.skips_in_a_row >= job.guard.num_skips:
            raise self._failure(index)
        self.skips_in_a_row += 1
        job.num_skipped += 1
        _, metrics, _, _ = self.driver.failed(index)
        self.driver.skip()
        rows = jax.tree.map(lambda value: np.asarray(value)[None], metrics)
        return self._chunk(rows, 1, block, first)

    def _failure(self, index: int) -> TrainingError:
        """Return the error that names what the failed step made non-finite."""
        new, metrics, number, attempt = self.driver.failed(index)
        result, detail = explained(new, metrics, number, self.job.guard)
        return self._error(result, detail, metrics, attempt)

    def _error(
        self, result: Any, detail: str, metrics: Any, attempt: Any = None
    ) -> TrainingError:
        self.job.result = result
        error = TrainingError(
            f"step {self.step} failed; the state before it is kept. {detail}",
            result=result,
            step=self.step,
            state=self.driver.state,
            metrics=metrics,
            attempt=attempt,
        )
        error.position = self.position
        return error
