"""The neural SDE's part: weekly carbon dioxide with its real gaps, filled and forecast.

The record of Mauna Loa that statsmodels ships, from 1958: 59 weeks were never measured,
most of them in the first years. The last three of fifteen years are held out, and so is
every tenth week before.
"""

import time
import warnings
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PRNGKeyArray

import effgen as eg
from effgen import neural_sde as ns

from .scores import crps


NUM_WEEKS = 15 * 52
NUM_FORECAST = 3 * 52
WEEK = 7 / 365.25
NUM_PATHS = 1_000
NUM_STEPS = 200
LEVELS = (0.05, 0.25, 0.75, 0.95)


class Record(NamedTuple):
    """The record in standardized units.

    `ts` in years; `ys` with NaN where never measured; `shown`, where training may look;
    `unit`, parts per million of one standardized unit.
    """

    ts: np.ndarray
    ys: np.ndarray
    shown: np.ndarray
    forecast: np.ndarray
    unit: float

    @property
    def hidden(self) -> np.ndarray:
        """Where values before the forecast are held out."""
        return ~self.shown & ~np.isnan(self.ys) & ~self.forecast


def record() -> Record:
    """Return the first fifteen years."""
    from statsmodels.datasets import co2

    table: Any = co2.load_pandas().data
    values = table["co2"].to_numpy()[:NUM_WEEKS]
    forecast = np.arange(NUM_WEEKS) >= NUM_WEEKS - NUM_FORECAST
    hidden = np.random.default_rng(0).uniform(size=NUM_WEEKS) < 0.1
    shown = ~np.isnan(values) & ~forecast & ~hidden
    center, unit = values[shown].mean(), values[shown].std()
    ts = (np.arange(NUM_WEEKS) * WEEK).astype(np.float32)
    return Record(ts, (values - center) / unit, shown, forecast, float(unit))


def linear_part() -> ns.LinearSDE:
    """Return a trend and the year's first two harmonics, each with noise of its own."""
    turn = lambda k: 2 * np.pi * k * np.array([[0.0, -1.0], [1.0, 0.0]])
    matrix = np.zeros((6, 6))
    matrix[0, 1] = 1.0
    matrix[2:4, 2:4], matrix[4:6, 4:6] = turn(1), turn(2)
    law = ns.Gaussian.independent(np.zeros(6), np.array([1.0, 0.5, 0.7, 0.7, 0.3, 0.3]))
    noise = np.diag([0.1, 0.03, 0.05, 0.05, 0.05, 0.05])
    return ns.LinearSDE(matrix, np.zeros(6), noise, law)


class SeasonalDrift(eqx.Module):
    """A neural drift of the seasons alone: it neither sees nor moves the trend."""

    network: ns.DriftNetwork

    def __call__(
        self, t: Float[Array, ""], x: Float[Array, " state"]
    ) -> Float[Array, " state"]:
        """Return the drift beside the linear one."""
        return jnp.concatenate([jnp.zeros(2, x.dtype), self.network(t, x[2:])])


def models(key: PRNGKeyArray) -> dict[str, tuple[ns.LatentSDE, Any]]:
    """Return each model with the bound that trains it."""
    keys = jax.random.split(key, 3)
    linear = linear_part()
    decoder = ns.LinearDecoder(np.array([[1.0, 0.0, 1.0, 0.0, 1.0, 0.0]]), 0.1)
    drift = SeasonalDrift(ns.DriftNetwork(4, key=keys[0], width_size=32))
    residual = ns.residual_network(linear, key=keys[1], width_size=32)
    control = ns.PlainControl(6, 1, key=keys[2], width_size=32)
    # What turns once and twice a year is known; what is learned is how it wanders.
    fixed = ("linear.matrix", "linear.bias", "decoder.matrix", "decoder.offset")
    return {
        "linear, effgen": (
            ns.LatentSDE(linear, decoder, frozen=fixed),
            ns.AnchoredELBO(),
        ),
        "with a neural drift, effgen": (
            ns.LatentSDE(linear, decoder, drift=drift, residual=residual, frozen=fixed),
            ns.AnchoredELBO(),
        ),
        "with a neural drift, plain VI": (
            ns.LatentSDE(linear, decoder, drift=drift, control=control, frozen=fixed),
            ns.PlainELBO(),
        ),
    }


class Outcome(NamedTuple):
    """How well a model fills and forecasts, in parts per million.

    `fill` and `crps` are mean scores (continuous ranked probability), `covered` the
    shares of held-out values within the bands of 50 and 90 %; `bands`, of the forecast.
    """

    name: str
    fill: float
    crps: float
    covered: tuple[float, float]
    elbo: float | None
    seconds: float
    bands: np.ndarray
    elbos: np.ndarray


def judged(
    name: str,
    record: Record,
    fill: np.ndarray,
    forecast: np.ndarray,
    seconds: float,
    elbos: np.ndarray,
) -> Outcome:
    """Return the scores of samples at the hidden weeks and of the forecast."""
    future = record.forecast & ~np.isnan(record.ys)
    there = forecast[:, ~np.isnan(record.ys[record.forecast])]
    y = record.ys[future]
    low, lower, upper, high = np.quantile(there, LEVELS, axis=0)
    inside = lambda a, b: float(np.mean((y >= a) & (y <= b)))
    return Outcome(
        name,
        record.unit * float(np.mean(crps(fill, record.ys[record.hidden]))),
        record.unit * float(np.mean(crps(there, y))),
        (inside(lower, upper), inside(low, high)),
        float(np.mean(elbos[-20:])) if len(elbos) else None,
        seconds,
        np.quantile(forecast, LEVELS, axis=0),
        elbos,
    )


def train(
    name: str,
    model: ns.LatentSDE,
    objective: Any,
    record: Record,
    key: PRNGKeyArray,
    num_steps: int = NUM_STEPS,
) -> Outcome:
    """Train on the weeks shown; fill the hidden ones and forecast the last years."""
    past = ~record.forecast
    batch = (
        jnp.asarray(record.ts[past])[None],
        jnp.asarray(np.where(record.shown, record.ys, np.nan)[past], jnp.float32)[None],
    )
    rate = optax.cosine_decay_schedule(1e-2, num_steps)
    optim = optax.chain(optax.clip_by_global_norm(100.0), optax.adam(rate))
    # Euler's steps of a week let the oscillations of plain VI grow without bound.
    dt = WEEK / 4 if isinstance(objective, ns.PlainELBO) else WEEK
    trainer = ns.LatentSDETrainer(optim, dt=dt, num_paths=4, objective=objective)
    state = trainer.init(model)
    began = time.perf_counter()
    data = eg.Minibatches(batch, 1)
    run = eg.progress(
        eg.train(trainer, state, data, key=key, num_steps=num_steps, every=20)
    )
    elbos = []
    for _, metrics in run:
        elbos.append(metrics["elbo"])
    seconds = time.perf_counter() - began
    fill, forecast = sampled(run.state.model, objective, record, batch, key)
    return judged(name, record, fill, forecast, seconds, np.concatenate(elbos))


def sampled(
    model: ns.LatentSDE, objective: Any, record: Record, batch: Any, key: PRNGKeyArray
) -> tuple[np.ndarray, np.ndarray]:
    """Return samples of what is observed at the hidden weeks and in the forecast."""
    ts, ys = (x[0] for x in batch)
    if isinstance(objective, ns.PlainELBO):
        paths = ns.plain_paths(
            model, (ts, ys), jnp.asarray(record.ts), num=NUM_PATHS, key=key
        )
        keys = jax.random.split(key, paths.shape[:2])
        observe = jax.vmap(jax.vmap(lambda x, k: model.decoder.sample(x, key=k)))
        samples = np.asarray(observe(paths, keys)[..., 0])
    else:
        posterior = ns.posterior(model, ts, ys)
        bands = posterior.observations(record.ts, key=key, num_paths=NUM_PATHS)
        samples = np.asarray(bands.samples[..., 0])
    return samples[:, record.hidden], samples[:, record.forecast]


def baseline(record: Record) -> Outcome:
    """Return statsmodels' structural model, fitted exactly by its Kalman filter."""
    from statsmodels.tsa.statespace.structural import UnobservedComponents

    shown = np.where(record.shown, record.ys, np.nan)[~record.forecast]
    began = time.perf_counter()
    model = UnobservedComponents(
        shown,
        level="local linear trend",  # pyright: ignore[reportArgumentType]
        freq_seasonal=[{"period": 365.25 / 7, "harmonics": 2}],
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that the optimizer could go further
        fitted: Any = model.fit(disp=False, maxiter=200)
    seconds = time.perf_counter() - began
    rng = np.random.default_rng(0)
    future = fitted.get_forecast(NUM_FORECAST)
    smoothed = fitted.smoother_results
    observe = np.asarray(smoothed.design[0, :, 0])
    mean = observe @ smoothed.smoothed_state
    variance = np.einsum("i,ijt,j->t", observe, smoothed.smoothed_state_cov, observe)
    spread = np.sqrt(variance + fitted.params[0])
    hidden = record.hidden[~record.forecast]
    draw = lambda m, s: m + s * rng.normal(size=(NUM_PATHS, len(m)))
    fill = draw(mean[hidden], spread[hidden])
    forecast = draw(future.predicted_mean, future.se_mean)
    name = "linear, statsmodels (exact)"
    return judged(name, record, fill, forecast, seconds, np.zeros(0))
