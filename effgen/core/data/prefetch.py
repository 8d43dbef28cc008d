"""Batches from the host, read ahead by a thread of their own."""

import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import PRNGKeyArray, PyTree

from effgen.core.devices.interrupts import Interrupts

from .batches import AbstractHostBatches, Indexed
from .stream import Kept, Read, Stream, own, read_of


# What is read ahead: what the device takes in this time, and no more than these bytes.
_AHEAD_SECONDS = 1.0
_AHEAD_BYTES = 64 << 20
_FEWEST_AHEAD = 1

# A stack of batches goes to the device at once, and through one device loop.
_MAX_STACK = 64
_MAX_STACK_BYTES = 16 << 20

_POLL_SECONDS = 0.1  # how soon a signal is heard while the data are waited for


class Block(NamedTuple):
    """Consecutive batches of one kind, to be taken by one program.

    Attributes:
        reads: The batches, or `None` where they are computed on the device.
        num: How many there are.
    """

    reads: tuple[Read, ...] | None
    num: int


def stack_length(read: Read) -> int:
    """Return how many batches like `read` a stack holds, by its size alone."""
    return max(1, min(_MAX_STACK, _MAX_STACK_BYTES // max(1, read.nbytes)))


class Reader:
    """Reads the batches of a run, in the order of its steps, a little ahead of them.

    No more than `num_steps` batches are taken from the source. `failure` is what the
    source raised, once all that came before it is used.
    """

    def __init__(
        self,
        source: AbstractHostBatches | Stream,
        *,
        key: PRNGKeyArray,
        first: int,
        num_steps: int | None,
    ) -> None:
        """Begin to read."""
        self.source = source
        self.kept = source.kept if isinstance(source, Stream) else Kept()
        self.failure: BaseException | None = None
        self._next = _reading(source, key, first)
        self._num_steps, self._taken = num_steps, 0
        self._most = _FEWEST_AHEAD
        self._ended = self._stopped = False
        if isinstance(source, Stream):
            source.begin(first)
        self._thread = threading.Thread(
            target=self._run, daemon=True, name="effgen-data"
        )
        self._thread.start()

    @property
    def ended(self) -> bool:
        """Whether everything that the source gives is used."""
        return self._ended and not self.kept.ahead

    @property
    def num_ahead(self) -> int:
        """The number of batches that were read and are not yet used."""
        return len(self.kept.ahead)

    @property
    def kind(self) -> Any:
        """The tree, shapes and dtypes of the next batch."""
        return self.kept.ahead[0].kind if self.kept.ahead else None

    def wait(
        self, most: int, seconds: float, interrupts: Interrupts, *, whole: bool
    ) -> int:
        """Return how many batches of one kind are there, at most `most`.

        Zero if a signal came, the source ended or failed, or `seconds` went by. If
        `whole`, all of a stack are waited for, so that the clock decides nothing.
        """
        until = time.monotonic() + seconds
        self._most = 2 * _MAX_STACK if whole else self._most
        with self.kept.changed:
            while interrupts.result is None:
                ready, closed = self._ready(most)
                if (ready and (closed or not whole)) or self._ended:
                    return ready
                left = until - time.monotonic()
                if left <= 0:
                    break
                self.kept.changed.wait(min(left, _POLL_SECONDS))
        return 0

    def take(self, num: int) -> Block:
        """Take the next `num` batches, which `wait` has said are there."""
        with self.kept.changed:
            reads = tuple(self.kept.ahead.popleft() for _ in range(num))
            self._taken += num
            self.kept.changed.notify_all()
        return Block(reads, num)

    def give_back(self, reads: tuple[Read, ...]) -> None:
        """Put back what was taken and not used."""
        with self.kept.changed:
            self.kept.ahead.extendleft(reversed(reads))
            self._taken -= len(reads)

    def expect(self, seconds: float) -> None:
        """Read as far ahead as steps of `seconds` make use of before long."""
        most = int(_AHEAD_SECONDS / max(seconds, 1e-9))
        self._most = max(_FEWEST_AHEAD, min(most, 2 * _MAX_STACK))

    def close(self) -> None:
        """Read no further; the source is left at the batch after the last one used."""
        with self.kept.changed:
            self._stopped = True
            self.kept.changed.notify_all()
        if isinstance(self.source, Stream):
            self.source.settle()

    def _ready(self, most: int) -> tuple[int, bool]:
        """Return how many batches are alike, and whether no more can join them."""
        ahead = self.kept.ahead
        if not ahead:
            return 0, False
        most = min(most, stack_length(ahead[0]))
        for i, read in enumerate(ahead):
            if i == most or read.kind != ahead[0].kind:
                return i, True
        return len(ahead), len(ahead) == most or self._ended

    def _run(self) -> None:
        while self._wait_for_room():
            with self.kept.reading:
                if not self._wanted():
                    break  # another run's reader, which was late, has read it
                try:
                    read = self._next()
                except StopIteration:
                    return self._end(None)
                except BaseException as error:
                    return self._end(error)
                self._add(read)
        return self._end(None)

    def _add(self, read: Read) -> None:
        with self.kept.changed:
            self.kept.ahead.append(read)
            self.kept.changed.notify_all()

    def _wait_for_room(self) -> bool:
        """Wait until there is room; `False` where nothing more is to be read."""
        with self.kept.changed:
            while not self._stopped and self._full():
                self.kept.changed.wait(_POLL_SECONDS)
        return self._wanted()

    def _wanted(self) -> bool:
        if self._stopped or self._num_steps is None:
            return not self._stopped
        return self._taken + len(self.kept.ahead) < self._num_steps

    def _full(self) -> bool:
        ahead = self.kept.ahead
        if len(ahead) < _FEWEST_AHEAD:
            return False
        return len(ahead) >= self._most or sum(r.nbytes for r in ahead) > _AHEAD_BYTES

    def _end(self, failure: BaseException | None) -> None:
        with self.kept.changed:
            self.failure, self._ended = failure, True
            self.kept.changed.notify_all()


def _reading(
    source: AbstractHostBatches | Stream, key: PRNGKeyArray, first: int
) -> Callable[[], Read]:
    """Return the function that reads the next batch."""
    if isinstance(source, Stream):
        return source.read
    steps = iter(range(first, np.iinfo(np.int32).max))

    def read() -> Read:
        step = next(steps)
        try:
            # It is used later, when the source may have overwritten it by the next.
            return read_of(jax.tree.map(own, source.batch_at(step, key=key)), None)
        except IndexError:
            if isinstance(source, Indexed) and step < len(source.sequence):
                raise  # of what the sequence does: it has a batch there
            raise StopIteration from None
        except StopIteration as error:
            raise RuntimeError("`batch_at` raised StopIteration") from error

    return read


def stacked(reads: tuple[Read, ...]) -> PyTree:
    """Return the batches of one kind as one, along a new leading axis."""
    return jax.tree.map(lambda *rows: _stacked(rows), *(read.batch for read in reads))


def _stacked(rows: tuple[Any, ...]) -> Any:
    if any(isinstance(row, jax.Array) for row in rows):
        return jax.numpy.stack(rows)
    return np.stack([np.asarray(row) for row in rows])
