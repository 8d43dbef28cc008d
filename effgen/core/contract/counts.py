"""What a count must be."""

from numbers import Integral
from typing import Any


def check_count(name: str, value: Any) -> None:
    """Raise `ValueError` unless `value` is a whole number of 1 or more."""
    if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
        raise ValueError(f"`{name}` is {value!r}: pass a positive integer.")
