"""Batches from the host, read ahead in the background and moved in stacks."""

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray, PyTree

from .data import AbstractHostBatches, Stream, check_width


_MAX_STACK = 64
_MAX_STACK_BYTES = 16 << 20


class Stack(NamedTuple):
    """Consecutive batches of one shape, `(length, ...)`, of which `num` are real.

    `positions[i]` is the source's state after batch `i`; what follows the real batches
    is padding, so that every stack has one shape and needs one compilation.
    """

    batches: PyTree
    num: int
    positions: list[Any]


class Reader:
    """Stacks of batches in the order of the steps, read by a thread of its own.

    No more than `num_steps` batches are taken from the source, so a generator can be
    passed to one run after another.
    """

    def __init__(
        self,
        source: AbstractHostBatches | Stream,
        place: Callable[[PyTree], PyTree],
        *,
        key: PRNGKeyArray,
        first: int,
        num_steps: int | None,
    ) -> None:
        """Begin to read ahead; `place` moves a stack of numpy arrays to the devices."""
        self._queue: queue.Queue[Any] = queue.Queue(maxsize=2)
        self._stopped = threading.Event()
        batches = batches_of(source, key, first, num_steps)
        self._thread = threading.Thread(
            target=self._read, args=(batches, place), daemon=True, name="effgen-data"
        )
        self._thread.start()

    def __iter__(self) -> Iterator[Stack]:
        """Yield stacks until the source ends; raise in turn what it raised."""
        while True:
            item = self._queue.get()
            if isinstance(item, Stack):
                yield item
            elif item is None:
                return
            else:
                raise item

    def close(self) -> None:
        """Let the thread end without reading further."""
        self._stopped.set()
        while not self._queue.empty():
            self._queue.get_nowait()

    def _read(self, batches: Iterator[Any], place: Callable[[PyTree], PyTree]) -> None:
        try:
            for stack in _stacks(batches, place):
                self._put(stack)
                if self._stopped.is_set():
                    return
            self._put(None)
        except BaseException as error:
            self._put(error)

    def _put(self, item: Any) -> None:
        while not self._stopped.is_set():
            try:
                self._queue.put(item, timeout=0.1)
                break
            except queue.Full:
                continue


def batches_of(
    source: AbstractHostBatches | Stream,
    key: PRNGKeyArray,
    first: int,
    num_steps: int | None,
) -> Iterator[tuple[PyTree, Any]]:
    """Yield each batch with the source's state after it."""
    step = first
    while num_steps is None or step < first + num_steps:
        try:
            if isinstance(source, Stream):
                yield next(source.iterator), source.get_state()
            else:
                yield source.batch_at(step, key=key), None
        except (StopIteration, IndexError):
            return
        step += 1


def _stacks(
    batches: Iterator[tuple[PyTree, Any]], place: Callable[[PyTree], PyTree]
) -> Iterator[Stack]:
    held: list[tuple[PyTree, Any]] = []
    failure = None
    while failure is None:
        try:
            item = next(batches, None)
        except Exception as error:  # what came before it is still good
            item, failure = None, error
        if held and (item is None or _signature(item[0]) != _signature(held[0][0])):
            yield _stack(held, place)
            held = []
        if item is None:
            break
        held.append(item)
        if len(held) == _length(item[0]):
            yield _stack(held, place)
            held = []
    if failure is not None:
        raise failure


def _stack(held: list[tuple[PyTree, Any]], place: Callable[[PyTree], PyTree]) -> Stack:
    batches = [batch for batch, _ in held]
    padding = _length(batches[0]) - len(batches)
    padded = batches + [batches[-1]] * padding
    stacked = jax.tree.map(lambda *rows: _stacked(rows), *padded)
    check_width("batch", stacked)
    return Stack(place(stacked), len(batches), [position for _, position in held])


def _stacked(rows: tuple[Any, ...]) -> Any:
    on_device = any(isinstance(row, jax.Array) for row in rows)
    return jnp.stack(rows) if on_device else np.stack([np.asarray(r) for r in rows])


def _length(batch: PyTree) -> int:
    size = sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(batch))
    return max(1, min(_MAX_STACK, _MAX_STACK_BYTES // max(1, size)))


def _signature(batch: PyTree) -> Any:
    leaves, structure = jax.tree.flatten(batch)
    return structure, tuple((np.shape(x), _dtype(x)) for x in leaves)


def _dtype(leaf: Any) -> Any:
    return leaf.dtype if hasattr(leaf, "dtype") else np.asarray(leaf).dtype
