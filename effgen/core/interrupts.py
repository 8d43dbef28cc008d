"""Ctrl-C and SIGTERM, held until the chunk in flight has finished."""

import signal
import threading
from types import FrameType
from typing import Any

from .results import RESULTS


class Interrupts:
    """Signals received while a run computes, to be acted on between chunks.

    Ctrl-C is held only while the run has control: in the body of the user's loop it
    raises `KeyboardInterrupt` as ever. SIGTERM is held from the first step to the end
    of the run. A second signal acts at once.
    """

    def __init__(self) -> None:
        """Note nothing, and change nothing yet."""
        self.result: Any = None
        self._previous: dict[int, Any] = {}

    def hold(self, *signals: int) -> None:
        """Begin to hold `signals`; only a process's main thread can."""
        if threading.current_thread() is threading.main_thread():
            for number in signals:
                if number not in self._previous:
                    self._previous[number] = signal.signal(number, self._note)

    def release(self, *signals: int) -> None:
        """Give `signals` back to whoever handled them before."""
        if threading.current_thread() is threading.main_thread():
            for number in signals:
                if number in self._previous:
                    signal.signal(number, self._previous.pop(number))

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.result is not None:
            self.release(number)
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            raise SystemExit(128 + number)
        terminated = number == signal.SIGTERM
        self.result = RESULTS.terminated if terminated else RESULTS.interrupted
