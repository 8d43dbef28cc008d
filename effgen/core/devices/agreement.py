"""Agreement of several processes on their next step; one process needs none."""

import threading
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import PyTree

from effgen.core.contract.digests import digest
from effgen.core.contract.state import is_key, named_arrays
from effgen.core.outcome.results import RESULTS, code


_POLL_SECONDS = 0.1


class Agreement(NamedTuple):
    """What all processes have said.

    Attributes:
        num: The least that one of them asked for.
        result: The code of the worst that happened to one.
        alike: Whether all bring batches of one kind.
    """

    num: int
    result: int
    alike: bool


class ProcessesApart(RuntimeError):
    """Another process did not answer in time."""


def agree(num: int, result: Any, kind: Any, *, patience: float) -> Agreement:
    """Return what all processes together say; every one must make the same calls.

    The processes' clocks differ, and a compiled loop with collectives must have the
    same length everywhere: the least `num` is taken. What ends one of them (a signal,
    its data's end, a failure) reaches all, so that they stop, and save, at the same
    step. What comes while they agree waits for the next time.

    Arguments:
        num: How many steps or batches this process could take.
        result: A `RESULTS` item.
        kind: Of its batches.
        patience: The seconds to wait.

    Returns:
        What all have said.

    Raises:
        ProcessesApart: If another one does not answer.
    """
    if jax.process_count() == 1:
        return Agreement(num, code(result), alike=True)
    mine = [num, code(result), zlib.crc32(repr(kind).encode()) >> 1]
    said = _within(patience, lambda: _gathered(mine))
    least, (_, worst, _) = said.min(axis=0), said.max(axis=0)
    kinds = {row[2] for row in said.tolist() if row[0] > 0}
    return Agreement(int(least[0]), int(worst), alike=len(kinds) <= 1)


def check_same(name: str, tree: PyTree) -> None:
    """Raise `ValueError` unless all processes hold the same arrays in `tree`."""
    if not are_same(tree):
        raise ValueError(
            f"`{name}` differs between processes, and each would train its own. Make "
            "it by the same calls in all of them. For different rows in each process, "
            "pass data on the host, such as an iterable."
        )


def are_same(tree: PyTree) -> bool:
    """Return whether all processes hold the same arrays in `tree`."""
    if jax.process_count() == 1:
        return True
    arrays = [x for x in named_arrays(tree).values() if not _is_shared(x)]
    words = [jax.random.key_data(x) if is_key(x) else x for x in arrays]
    text = "".join(digest(np.asarray(x)) for x in words)
    return len(np.unique(_gathered([zlib.crc32(text.encode()) >> 1]))) == 1


def _is_shared(x: Any) -> bool:
    return isinstance(x, jax.Array) and not x.is_fully_addressable


def _gathered(mine: list[int]) -> np.ndarray:
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(np.array(mine, np.int32)))


def _within(seconds: float, compute: Callable[[], Any]) -> Any:
    """Return `compute()`, made in a thread so that this one still hears signals."""
    outcome: list[Any] = []
    done = threading.Event()

    def run() -> None:
        try:
            outcome.append((compute(), None))
        except BaseException as error:
            outcome.append((None, error))
        done.set()

    threading.Thread(target=run, daemon=True, name="effgen-agreement").start()
    waited = 0.0
    while not done.wait(_POLL_SECONDS):
        waited += _POLL_SECONDS
        if waited > seconds:
            raise ProcessesApart(RESULTS[RESULTS.processes_apart])
    value, error = outcome[0]
    if error is not None:
        raise error
    return value
