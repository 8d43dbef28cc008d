"""What a step that takes long on the host says while it lasts."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager


_listeners: list[Callable[[str], None]] = []


def report(text: str) -> None:
    """Say how a step is getting on: the innermost progress bar shows it."""
    if _listeners:
        _listeners[-1](text)


@contextmanager
def listening(listener: Callable[[str], None]) -> Iterator[None]:
    """Have `listener` called with what is reported meanwhile."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)
