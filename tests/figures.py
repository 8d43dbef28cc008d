"""Which numbers a text may state: those that a committed result holds."""

import json
import re
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any


RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"

# Shares in per cent, milliseconds, microseconds, megabytes, gigabytes, and back.
SCALES = (1, 1e2, 1e3, 1e6, 1e-3, 1e-6)
NUMBER = re.compile(r"(?<![\w^.\-])[-+]?\d+(?:,\d{3})*(?:\.\d+)?(?![\w^]|[.,]\d)")


def read(*names: str) -> list[dict[str, Any]]:
    """Return the results of these scripts."""
    return [json.loads((RESULTS / f"{name}.json").read_text()) for name in names]


def figures(record: Any) -> Iterator[float]:
    """Yield the numbers of a record, and the usual summaries of its repeats."""
    if isinstance(record, dict):
        for key, value in record.items():
            yield from numbers(key)
            if key not in ("machine", "versions"):
                yield from figures(value)
    elif isinstance(record, list):
        yield len(record)
        yield from _repeats(record)
        for value in record:
            yield from figures(value)
    elif isinstance(record, str):
        yield from numbers(record)
    elif isinstance(record, int | float) and not isinstance(record, bool):
        yield float(record)


def _repeats(rows: list[Any]) -> Iterator[float]:
    if rows and all(isinstance(row, dict) for row in rows):
        shared = set.intersection(*[set(row) for row in rows])
        columns = [[row[key] for row in rows] for key in sorted(shared)]
    else:
        columns = [rows]
    for column in columns:
        if column and all(isinstance(x, int | float) for x in column):
            yield from (statistics.mean(column), statistics.median(column))
            yield from (min(column), max(column))


def numbers(text: str) -> list[float]:
    """Return the numbers that stand in a text."""
    return [value(token) for token in NUMBER.findall(text)]


def value(token: str) -> float:
    """Return the number that a token stands for: `1,536` is 1536."""
    return float(token.replace(",", ""))


def holds(found: list[float], token: str) -> bool:
    """Return whether one of `found`, rounded as the token is, is the token."""
    decimals = len(token.partition(".")[2])
    least = 0.5 * 10**-decimals * (1 + 1e-6)
    stated = abs(value(token))
    return any(abs(abs(x) * scale - stated) <= least for x in found for scale in SCALES)
