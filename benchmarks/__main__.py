"""Run every benchmark, then print the table of what `results/` holds."""

import json
import subprocess
import sys
from typing import Any

from benchmarks.measure import RESULTS


SCRIPTS = ("overhead", "drivers", "kills", "damage")


def table() -> str:
    """Return the headline figures of every result as a Markdown table."""
    rows = ["| claim | figure |", "|---|---|"]
    for path in sorted(RESULTS.glob("*.json")):
        rows += [f"| {claim} | {figure} |" for claim, figure in _headlines(path)]
    return "\n".join(rows)


def _headlines(path: Any) -> list[tuple[str, str]]:
    record = json.loads(path.read_text())
    readers = {"overhead": _overhead, "drivers": _drivers}
    return readers.get(path.stem, _counts)(record)


def _overhead(record: dict[str, Any]) -> list[tuple[str, str]]:
    rows = []
    for row in record["by_hand"]:
        cost = row["microseconds_per_step"]["by_hand"]
        ratio = row["ratio"]["median"]
        rows.append((f"time over a hand-written scan, {cost:.0f} us a step", ratio))
    for peer, ratio in record["peers"]["times_ours"].items():
        rows.append((f"{peer}'s loop over ours, small problem", ratio))
    return [(claim, f"{ratio:.3g}") for claim, ratio in rows]


def _drivers(record: dict[str, Any]) -> list[tuple[str, str]]:
    return [
        (f"chosen loop over {name}, convolutions", f"{ratio['median']:.3g}")
        for name, ratio in record["chosen_over"].items()
    ]


def _counts(record: dict[str, Any]) -> list[tuple[str, str]]:
    groups = {name: v for name, v in record.items() if isinstance(v, dict)}
    groups.pop("machine")
    groups = groups or {
        record["benchmark"]: {k: v for k, v in record.items() if isinstance(v, int)}
    }
    return [
        (name, ", ".join(f"{count} {kind}" for kind, count in counts.items()))
        for name, counts in groups.items()
    ]


if __name__ == "__main__":
    for script in SCRIPTS:
        subprocess.run([sys.executable, "-m", f"benchmarks.{script}"], check=True)
    print(table())
