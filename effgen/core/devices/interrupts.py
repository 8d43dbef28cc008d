"""Ctrl-C and SIGTERM, held until the chunk in flight has finished."""

import os
import signal
import threading
from types import FrameType
from typing import Any

from effgen.core.outcome.results import RESULTS


class Interrupts:
    """Signals received while a run computes, to be acted on between chunks.

    Ctrl-C is held only while the run has control: in the body of the user's loop it
    raises `KeyboardInterrupt` as ever. SIGTERM is held from the first step to the end
    of the run. A second signal acts at once. A signal that the process was started to
    ignore (`nohup`) stays ignored.
    """

    def __init__(self) -> None:
        """Note nothing, and change nothing yet."""
        self.result: Any = None
        self.process = os.getpid()

    def hold(self, *signals: int) -> None:
        """Begin to hold `signals`; only a process's main thread can."""
        if threading.current_thread() is threading.main_thread():
            self.process = os.getpid()
            for number in signals:
                _begin(number, self)

    def release(self, *signals: int) -> None:
        """Give `signals` back, with the last run to whoever handled them before."""
        if threading.current_thread() is threading.main_thread():
            for number in signals:
                _end(number, self)


# A process has one handler for a signal but may have several runs under way, one inside
# another's loop or two side by side: the handler is shared, and all of them are told.
_holders: dict[int, list[Interrupts]] = {}
_previous: dict[int, Any] = {}


def requested() -> bool:
    """Return whether a run was asked to end: for steps that take long on the host."""
    return any(run.result is not None for runs in _holders.values() for run in runs)


def _begin(number: int, run: Interrupts) -> None:
    holders = _holders.setdefault(number, [])
    if run in holders:
        return
    if not holders:
        if signal.getsignal(number) == signal.SIG_IGN:
            return
        _previous[number] = signal.signal(number, _note)
    holders.append(run)


def _end(number: int, run: Interrupts) -> None:
    holders = _holders.get(number, [])
    if run in holders:
        holders.remove(run)
        if not holders:
            _give_back(number)


def _give_back(number: int) -> None:
    previous = _previous.pop(number)
    if signal.getsignal(number) is _note:  # else the caller has set another since
        # What was not set from Python is reported as None, and cannot be set again.
        signal.signal(number, signal.SIG_DFL if previous is None else previous)


def _note(number: int, frame: FrameType | None) -> None:
    holders = _holders[number]
    # A data loader's worker inherits the handler, but there is no run to end in it.
    holders[:] = [run for run in holders if run.process == os.getpid()]
    if not holders:
        _give_back(number)
        signal.raise_signal(number)
        return
    if all(run.result is not None for run in holders):
        holders.clear()
        _give_back(number)
        raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)
    terminated = number == signal.SIGTERM
    for run in holders:
        if run.result is None:
            run.result = RESULTS.terminated if terminated else RESULTS.interrupted
