"""The records that `benchmarks.forecasts` forecasts, and what a forecaster sees."""

from typing import Any, NamedTuple

import numpy as np

from demo.records import pelts


NUM_ORIGINS = 6
LYNX = (
    "269 321 585 871 1475 2821 3928 5943 4950 2577 523 98 184 279 409 2285 2685 3409 "
    "1824 409 151 45 68 213 546 1033 2129 2536 957 361 377 225 360 731 1638 2725 2871 "
    "2119 684 299 236 245 552 1623 3311 6721 4254 687 255 473 358 784 1594 1676 2251 "
    "1426 756 299 201 229 469 736 2042 2811 4431 2511 389 73 39 49 59 188 377 1292 "
    "4031 3495 587 105 153 387 758 1307 3465 6991 6313 3794 1836 345 382 808 1388 2713 "
    "3800 3091 2985 3790 374 81 80 108 229 399 1132 2432 3574 2935 1537 529 485 662 "
    "1000 1590 2657 3396"
)


class Record(NamedTuple):
    """A record, how far it is forecast, and its season's period, if it has one."""

    ts: np.ndarray
    ys: np.ndarray
    horizon: int
    season: float | None = None

    def origins(self) -> list[int]:
        """Return the first rows of the forecasts; the last ends with the record."""
        last = len(self.ys)
        return [last - i * self.horizon for i in range(NUM_ORIGINS, 0, -1)]


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
    "lynx, log10": lambda: yearly(np.log10(np.array(LYNX.split(), float)), 9),
    "hare pelts, log": lambda: yearly(np.log(pelts()[1][:, 0]), 2),
    "lynx pelts, log": lambda: yearly(np.log(pelts()[1][:, 1]), 2),
    "unemployment": lambda: quarterly(table("macrodata")["unemp"], 12),
    "german interest": lambda: quarterly(100 * table("interest_inflation")["R"], 8),
}
SIMULATED = {"van der pol": van_der_pol, "double well": double_well}


class Past(NamedTuple):
    """What a forecaster sees: values are NaN from the origin on."""

    ts: np.ndarray
    ys: np.ndarray
    origin: int
    horizon: int
    season: float | None

    @property
    def until(self) -> tuple[np.ndarray, np.ndarray]:
        return self.ts[: self.origin], self.ys[: self.origin]

    @property
    def times(self) -> np.ndarray:
        return self.ts[self.origin : self.origin + self.horizon]

    @property
    def gap(self) -> float:
        return float(np.median(np.diff(self.ts)))


def past_of(record: Record, origin: int) -> Past:
    ys = np.where(np.arange(len(record.ys)) < origin, record.ys, np.nan)
    return Past(record.ts, ys, origin, record.horizon, record.season)
