"""What a run spent its time on."""

import contextlib
import time
from collections.abc import Iterator


_ACCOUNTS = ("compile", "data", "device", "host", "checkpoint", "evaluation")


class Ledger:
    """Seconds by what they were spent on; they add up to the time of the run.

    `compile` is tracing and compilation; `data`, waiting for batches; `device`, waiting
    for the steps; `checkpoint`, the part of saving that blocks; `evaluation`, the body
    of the caller's loop; `host`, all else (bars, logs, the loop itself).
    """

    def __init__(self) -> None:
        """Start every account at zero."""
        self.seconds: dict[str, float] = {name: 0.0 for name in _ACCOUNTS}
        self._open: list[str] = []
        self._since = time.perf_counter()

    @contextlib.contextmanager
    def account(self, name: str) -> Iterator[None]:
        """Book the time of the `with` body to `name`, and not to what is around it."""
        self._book()
        self._open.append(name)
        try:
            yield
        finally:
            self._book()
            self._open.pop()

    @property
    def goodput(self) -> float:
        """The share of the time that the device spent on steps."""
        total = sum(self.seconds.values())
        return self.seconds["device"] / total if total else 0.0

    def __str__(self) -> str:
        """Return the accounts on one line, largest first."""
        items = sorted(self.seconds.items(), key=lambda item: -item[1])
        return ", ".join(f"{name} {value:.2f} s" for name, value in items if value)

    def _book(self) -> None:
        now = time.perf_counter()
        if self._open:
            self.seconds[self._open[-1]] += now - self._since
        self._since = now
