"""Collocation's part: hares and lynxes, with a neural attack rate, forecast.

Pelts that the Hudson's Bay Company took in, in thousands: fitted from 1900 to 1914,
forecast to 1920.
"""

import time
from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

import effgen as eg
from effgen import collocation as co

from .records import pelts


FIRST, LAST_SHOWN = 1900, 1914
NOISE = 0.25  # of the logarithms, as the literature finds
ATTACK_RATE = 0.028  # per thousand lynxes and year, of Lotka and Volterra's law


class Record(NamedTuple):
    """Years from the first, the logarithms of both counts, and which are shown."""

    ts: np.ndarray
    ys: np.ndarray
    shown: np.ndarray


def record() -> Record:
    """Return all 21 years."""
    years, counts = pelts()
    return Record(years - FIRST, np.log(counts), years <= LAST_SHOWN)


class Constant(eqx.Module):
    """Lotka and Volterra's attack rate: the same however many hares there are."""

    log_rate: Array

    def __call__(self, log_hares: Array) -> Float[Array, ""]:
        """Return hares taken per hare, thousand lynxes and year."""
        return jnp.exp(self.log_rate - 3.5)


class Neural(eqx.Module):
    """An attack rate that depends on how many hares there are, a network's."""

    network: eqx.nn.MLP

    def __call__(self, log_hares: Array) -> Float[Array, ""]:
        """Return hares taken per hare, thousand lynxes and year."""
        return jnp.exp(self.network(log_hares[None] - 3.5) - 3.5)


def vector_field(t: Any, x: Array, u: Any, p: Any, rate: Any) -> Float[Array, " 2"]:
    """Return the growth of the logarithms: hares breed and are eaten, lynxes die."""
    hares, lynxes = jnp.exp(x)
    taken = rate(x[0])
    return jnp.stack(
        [
            p["breeding"] - taken * lynxes,
            p["conversion"] * taken * hares - p["mortality"],
        ]
    )


def models() -> dict[str, co.Model]:
    """Return each model, untrained."""
    start = {"breeding": 0.6, "conversion": 0.8, "mortality": 0.8}
    network = eqx.nn.MLP(1, "scalar", 8, 1, jax.nn.tanh, key=jax.random.key(0))
    return {
        "constant attack rate": co.Model(start, Constant(jnp.asarray(0.0))),
        "neural attack rate": co.Model(start, Neural(network)),
    }


class Outcome(NamedTuple):
    """What a model found.

    `fit` and `forecast` are root mean square errors of the logarithms; `spread`, the
    parameters' standard deviations; `curves`, the logarithms simulated at `times`, and
    `rates`, attack rates at `hares`, each with its standard deviation: of the model
    alone, whose start is held.
    """

    name: str
    fit: float
    forecast: float
    parameters: dict[str, float]
    spread: dict[str, float]
    seconds: float
    iterations: int
    times: np.ndarray
    curves: tuple[np.ndarray, np.ndarray]
    hares: np.ndarray
    rates: tuple[np.ndarray, np.ndarray]
    trace: np.ndarray


def problem(record: Record) -> co.Problem:
    """Return the problem of the years shown; a prior of unit scale on the weights."""
    data = (record.ts[record.shown], record.ys[record.shown])
    return co.Problem(
        vector_field,
        data,
        scale=NOISE,
        parameter_bounds=(1e-3, 5.0),
        weight_decay=1 / data[1].size,
    )


def train(name: str, model: co.Model, record: Record) -> Outcome:
    """Solve on two meshes, and simulate what was learned to the last year."""
    stated = problem(record)
    levels = [co.transcribe(stated, intervals=n, stages=3) for n in (14, 42)]
    trainer = co.CollocationTrainer(tol=1e-8)
    began = time.perf_counter()
    state = trainer.init(model, levels[0].guess())
    run = eg.progress(eg.train(trainer, state, levels, key=jax.random.key(0)))
    state, history = eg.drain(run)
    seconds = time.perf_counter() - began
    found = co.covariance(levels[-1], state, noise=1.0)
    times = np.linspace(0, record.ts[-1], 201)
    hares = np.linspace(5, 90, 60)
    start = state.memory(0.0)[0]
    forward = diffrax.ForwardMode()
    curve = lambda m: co.integrate(stated, m, start, times, adjoint=forward)
    log_rate = lambda m: jnp.log(jax.vmap(m.networks)(jnp.log(jnp.asarray(hares))))
    curves, rates = (
        (np.asarray(f(state.model)), co.propagated(f, state.model, found.model))
        for f in (curve, log_rate)
    )
    errors = curves[0][::10] - record.ys
    root = lambda e: float(np.sqrt(np.mean(e**2)))
    scale = np.sqrt(np.diag(found.model))[:3]
    names = sorted(state.model.parameters)
    return Outcome(
        name,
        root(errors[record.shown]),
        root(errors[~record.shown]),
        {n: float(state.model.parameters[n]) for n in names},
        dict(zip(names, scale.tolist(), strict=True)),
        seconds,
        int(history["iterations"].sum()),
        times,
        curves,
        hares,
        rates,
        history["trace"],
    )
