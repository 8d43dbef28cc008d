"""The records that `benchmarks.forecasts` forecasts."""

from typing import Any

import numpy as np

from demo.origins import Record
from demo.records import lynx, pelts


def table(name: str) -> Any:
    import statsmodels.api as sm

    return getattr(sm.datasets, name).load_pandas().data


def yearly(values: Any, horizon: int) -> Record:
    values = np.asarray(values, np.float64)
    return Record(np.arange(len(values), dtype=float), values, horizon)


def monthly(values: Any, horizon: int) -> Record:
    values = np.asarray(values, np.float64)
    return Record(np.arange(len(values)) / 12, values, horizon, 1.0)


def quarterly(values: Any, horizon: int) -> Record:
    values = np.asarray(values, np.float64)
    return Record(np.arange(len(values)) / 4, values, horizon)


def van_der_pol(seed: int) -> Record:
    rng, h, out = np.random.default_rng(seed), 1e-3, []
    x, v = 1.0, 0.0
    for noise in 0.4 * np.sqrt(h) * rng.normal(size=(240, 500)):
        for e in noise:
            x, v = x + v * h, v + (2.0 * (1 - x * x) * v - x) * h + e
        out.append(x)
    ys = np.array(out) + 0.1 * rng.normal(size=240)
    return Record(0.5 * np.arange(240), ys, 12)


def double_well(seed: int) -> Record:
    rng, h, out, x = np.random.default_rng(seed), 1e-3, [], 1.0
    for noise in 0.7 * np.sqrt(h) * rng.normal(size=(300, 500)):
        for e in noise:
            x = x + 2 * x * (1 - x * x) * h + e
        out.append(x)
    ys = np.array(out) + 0.1 * rng.normal(size=300)
    return Record(0.5 * np.arange(300), ys, 10)


# Each was named, with its horizon, before any was scored.
RECORDS = {
    "sunspots, square root": lambda: yearly(
        np.sqrt(table("sunspots")["SUNACTIVITY"]), 22
    ),
    "nile": lambda: yearly(table("nile")["volume"], 10),
    "el nino": lambda: monthly(
        table("elnino").iloc[:, 1:].to_numpy().ravel()[-30 * 12 :], 24
    ),
    "co2": lambda: monthly(table("co2")["co2"].resample("MS").mean()[: 25 * 12], 24),
    "lynx, log10": lambda: yearly(np.log10(lynx()), 9),
    "hare pelts, log": lambda: yearly(np.log(pelts()[1][:, 0]), 2),
    "lynx pelts, log": lambda: yearly(np.log(pelts()[1][:, 1]), 2),
    "unemployment": lambda: quarterly(table("macrodata")["unemp"], 12),
    "german interest": lambda: quarterly(100 * table("interest_inflation")["R"], 8),
}
SIMULATED = {"van der pol": van_der_pol, "double well": double_well}
