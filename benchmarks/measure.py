"""Ratios that noise cannot fake: contestants take turns in one process."""

import functools
import json
import multiprocessing
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax

import effgen as eg


RESULTS = Path(__file__).parent / "results"
_PACKAGES = (
    "jax",
    "jaxlib",
    "equinox",
    "optax",
    "numpy",
    "flowjax",
    "dynamax",
    "orbax-checkpoint",
    "torch",
    "torchebm",
    "rbms",
    "diffrax",
    "torchsde",
    "statsmodels",
    "blackjax",
    "casadi",
    "cyipopt-wheels",
)


def seconds(
    work: Callable[[], Any], clock: Callable[[], float] = time.perf_counter
) -> float:
    """Return how long `work` takes, to the last array that it returns."""
    began = clock()
    jax.block_until_ready(work())
    return clock() - began


def interleaved(
    contestants: dict[str, Callable[[], Any]],
    *,
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Return the times of each contestant over `rounds`, in turn: A, B, A, B, ...

    All are run once before, so that compilation is apart. The order turns around every
    round, so that neither is always the one after the other. `clock` may be
    `time.process_time`, the processor's, where others work on the machine.
    """
    for work in contestants.values():
        jax.block_until_ready(work())
    times: dict[str, list[float]] = {name: [] for name in contestants}
    names = list(contestants)
    for i in range(rounds):
        for name in names if i % 2 == 0 else reversed(names):
            times[name].append(seconds(contestants[name], clock))
    return times


def step_milliseconds(
    begun: dict[str, tuple[Any, Any, Any, Any]], *, rounds: int, chunk: int
) -> dict[str, float]:
    """Return the median time of a step of each run, all in turn, `chunk` at once.

    A run is a trainer, its first state, its data and the key of its steps.
    """

    def steps(trainer: Any, state: Any, data: Any, key: Any) -> Any:
        return eg.fit(trainer, state, data, key=key, num_steps=chunk)[0].model

    work = {name: functools.partial(steps, *run) for name, run in begun.items()}
    times = interleaved(work, rounds=rounds)
    return {name: 1e3 * statistics.median(t) / chunk for name, t in times.items()}


def paired_ratio(times: list[float], reference: list[float]) -> dict[str, float]:
    """Return the median of the rounds' ratios, with its quartiles."""
    ratios = sorted(a / b for a, b in zip(times, reference, strict=True))
    low, _, high = statistics.quantiles(ratios, n=4)
    return {"median": statistics.median(ratios), "quartile_1": low, "quartile_3": high}


def by_two_processes(work: Callable[[Any], Any], tasks: list[Any]) -> list[Any]:
    """Return what `work` gives for each of `tasks`, in their order."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, mp_context=context) as pool:
        return list(pool.map(work, tasks, chunksize=1))


def spread(values: list[float]) -> dict[str, Any]:
    """Return the median of repeats, their range, and the repeats."""
    return {
        "median": statistics.median(values),
        "least": min(values),
        "most": max(values),
        "all": values,
    }


def by_seed(rows: list[dict[str, float]]) -> dict[str, dict[str, Any]]:
    """Return the spread over seeds of every figure that all `rows` have."""
    return {name: spread([row[name] for row in rows]) for name in rows[0]}


def write(name: str, figures: dict[str, Any]) -> None:
    """Write `results/<name>.json` with the machine and versions, and print it."""
    RESULTS.mkdir(exist_ok=True)
    record = {"benchmark": name, **figures, "machine": machine()}
    text = json.dumps(record, indent=1)
    (RESULTS / f"{name}.json").write_text(text + "\n")
    print(text)


def machine() -> dict[str, Any]:
    """Return what the figures were measured on and with."""
    return {
        "device": jax.devices()[0].device_kind,
        "num_devices": jax.device_count(),
        "cores": os.cpu_count(),
        "processor": _processor(),
        "python": platform.python_version(),
        "versions": {p: v for p in _PACKAGES if (v := _version(p))},
        "flags": os.environ.get("XLA_FLAGS", ""),
        "load": os.getloadavg()[0],
        "commit": _commit(),
        "command": "python -m " + (sys.modules["__main__"].__spec__ or _Unknown).name,
    }


class _Unknown:
    name = "unknown"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    named = [line.split(":", 1)[1].strip() for line in lines if "model name" in line]
    return named[0] if named else platform.processor()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str:
    """Return the commit, marked where anything but a result differs from it."""
    named = ["describe", "--always", "--abbrev=12"]
    changed = ["status", "--porcelain", "--untracked-files=no", "--", ":!*/results/*"]
    try:
        commit, left = (
            subprocess.run(["git", *command], capture_output=True, text=True).stdout
            for command in (named, changed)
        )
    except OSError:  # a machine without git
        return ""
    return commit.strip() + ("-dirty" if left.strip() else "")
