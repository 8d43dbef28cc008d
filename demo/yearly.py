"""Three yearly records, each forecast twice by `forecaster` and by what else there is.

The records were named before any was forecast: those of a hundred years that users of
R and statsmodels know. They have one length, so all forecasts share their programs.
"""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from effgen import neural_sde as ns

from . import rivals
from .origins import Past, Record, past_of
from .records import lynx
from .scores import BANDS, scored


NUM_YEARS, HORIZON, NUM_ORIGINS = 100, 10, 2
LEVELS = (0.05, 0.25, 0.75, 0.95)


class Yearly(NamedTuple):
    """A record of a hundred years, in `unit`, from the year `first` on."""

    name: str
    unit: str
    first: int
    record: Record


class Outcome(NamedTuple):
    """Who forecast, how well and for how long, and the last forecast's bands.

    `crps` is the mean ranked probability score in the record's unit, over both
    forecasts; `within` are the shares of the values within the bands of 50 and 90 %;
    `seconds` are the processor's.
    """

    name: str
    crps: float
    within: tuple[float, float]
    seconds: float
    bands: np.ndarray


def records() -> list[Yearly]:
    """Return the flow of the Nile, the lynxes of Canada and the sun's spots."""
    import statsmodels.api as sm

    values = lambda name: getattr(sm.datasets, name).load_pandas().data
    found = {
        ("Nile", "1e8 cubic meters", 1970): values("nile")["volume"],
        ("lynxes", "logarithm to base 10", 1934): np.log10(lynx()),
        ("sunspots", "square root", 2008): np.sqrt(values("sunspots")["SUNACTIVITY"]),
    }
    return [yearly(*about, np.asarray(ys, float)) for about, ys in found.items()]


def yearly(name: str, unit: str, last: int, values: np.ndarray) -> Yearly:
    """Return the last hundred years of a record that ends in the year `last`."""
    ts = np.arange(NUM_YEARS, dtype=float)
    record = Record(ts, values[-NUM_YEARS:], HORIZON)
    return Yearly(name, unit, last - NUM_YEARS + 1, record)


def ours(past: Past, key: Any) -> dict[str, np.ndarray]:
    """Return draws of the recipe's forecast."""
    keys = jax.random.split(key)
    stack = ns.forecaster(past.ts, past.ys, horizon=past.horizon, key=keys[0])
    found = stack.forecast(past.times, key=keys[1], num_paths=rivals.NUM_PATHS)
    return {"forecaster, effgen": np.asarray(found.samples[..., 0])}


# Plain VI takes minutes here: on cycles its steps have to be short.
CONTESTANTS: tuple[Callable[..., dict[str, np.ndarray]], ...] = (
    ours,
    rivals.statsmodels,
    rivals.gaussian_process,
)


def forecast(given: Yearly, key: Any) -> list[Outcome]:
    """Return how each contestant forecasts a record, from both origins."""
    return [judged(contestant, given.record, key) for contestant in CONTESTANTS]


def forecasts(given: list[Yearly], seed: int) -> dict[str, list[Outcome]]:
    """Return every record's forecasts, for a process of its own."""
    return {each.name: forecast(each, jax.random.key(seed)) for each in given}


def judged(contestant: Callable[..., Any], record: Record, key: Any) -> Outcome:
    """Return the scores of one contestant's forecasts."""
    began = time.process_time()
    origins = record.origins(NUM_ORIGINS)
    found = [contestant(past_of(record, origin), key) for origin in origins]
    seconds = time.process_time() - began
    name = next(iter(found[0]))
    rows = [
        scored(draws[name], record.ys[origin : origin + HORIZON])
        for draws, origin in zip(found, origins, strict=True)
    ]
    count = sum(row["num"] for row in rows)
    half, most = (sum(row[band] for row in rows) / count for band in BANDS)
    bands = np.quantile(found[-1][name], LEVELS, axis=0)
    score = float(np.mean([row["crps"] for row in rows]))
    return Outcome(name, score, (half, most), seconds, bands)
