"""Collocation's part: hares and lynxes, and whether a network belongs into their law.

Pelts that the Hudson's Bay Company took in, in thousands, and a record simulated by a
law whose lynxes are sated: either is fitted on fourteen years and forecast six further.
"""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

import effgen as eg
from effgen import collocation as co

from .records import pelts


LAST_SHOWN, LAST = 14.0, 20.0  # years from the first
CENTER = 3.5  # of the logarithm of hares in thousands
STARTS = {"breeding": 0.6, "conversion": 0.8, "mortality": 0.8, "log_rate": 0.0}
LOWER = dict.fromkeys(STARTS, 1e-3) | {"log_rate": -10.0}
UPPER = dict.fromkeys(STARTS, 5.0) | {"log_rate": 10.0}
SATED, NOISE = (0.04, 0.01), 0.1  # the attack rate at none, and its decline by hares
DECAY, CONSTANT, CHOSEN = "network, decay 1", "constant", "chosen by the evidence"
KEY = jax.random.key(0)


class Record(NamedTuple):
    """Years, the logarithms of both counts in thousands, and the true attack rate.

    `attack`, of hares in thousands, per thousand lynxes and year; `None`: unknown.
    """

    name: str
    ts: np.ndarray
    ys: np.ndarray
    attack: Callable[[np.ndarray], np.ndarray] | None

    @property
    def shown(self) -> np.ndarray:
        """Where fits may look."""
        return self.ts - self.ts[0] <= LAST_SHOWN


def records() -> list[Record]:
    """Return the pelts from 1900 to 1920, and as many years of sated lynxes."""
    years, counts = pelts()
    ts = np.linspace(0, LAST, 41)
    law = lambda t, x, args: field(x, STARTS, sated(jnp.exp(x[0])))
    found = diffrax.diffeqsolve(
        diffrax.ODETerm(law),
        diffrax.Tsit5(),
        *(0.0, LAST, 0.01, jnp.log(jnp.asarray([30.0, 12.0]))),
        saveat=diffrax.SaveAt(ts=jnp.asarray(ts)),
        stepsize_controller=diffrax.PIDController(rtol=1e-8, atol=1e-8),
    )
    noise = NOISE * np.random.default_rng(0).normal(size=(len(ts), 2))
    simulated = np.asarray(found.ys) + noise
    return [
        Record("pelts, 1900 to 1920", years, np.log(counts), None),
        Record("sated lynxes, simulated", ts, simulated, sated),
    ]


def populations(given: list[Record]) -> dict[str, list["Outcome"]]:
    """Return what each way to a law comes to, by record, for a process of its own."""
    with jax.enable_x64(True):  # collocation computes in float64
        return {each.name: [train(x, each) for x in laws()] for each in given}


def sated(hares: Any) -> Any:
    """Return an attack rate that falls as hares are many (Holling's second type)."""
    return SATED[0] / (1 + SATED[1] * hares)


def field(x: Array, p: Any, attack: Any) -> Float[Array, " 2"]:
    """Return the growth of the logarithms: hares breed and are eaten, lynxes die."""
    hares, lynxes = jnp.exp(x)
    return jnp.stack(
        [
            p["breeding"] - attack * lynxes,
            p["conversion"] * attack * hares - p["mortality"],
        ]
    )


def log_attack(p: Any, nets: Any, log_hares: Array) -> Array:
    """Return the logarithm of the attack rate: a constant, and a network beside it."""
    beside = 0.0 if nets is None else nets(log_hares[None])
    return p["log_rate"] + beside - CENTER


def predation(t: Any, x: Array, u: Any, p: Any, nets: Any) -> Float[Array, " 2"]:
    """Return the law, with or without a network."""
    return field(x, p, jnp.exp(log_attack(p, nets, x[0])))


class Outcome(NamedTuple):
    """What a law came to.

    `fit` and `forecast` are root mean square errors of the logarithms; `gain`, the
    evidence of the law with a network less that of the constant, in nats; `curves`,
    the logarithms simulated at `times` from the first state, and `rates`, logarithms
    of attack rates at `hares`, each with its standard deviation.
    """

    name: str
    network: bool
    fit: float
    forecast: float
    gain: float | None
    seconds: float
    times: np.ndarray
    curves: tuple[np.ndarray, np.ndarray]
    hares: np.ndarray
    rates: tuple[np.ndarray, np.ndarray]


def problem(record: Record, weight_decay: float = 0.0) -> co.Problem:
    """Return the problem of the years shown."""
    data = (record.ts[record.shown] - record.ts[0], record.ys[record.shown])
    return co.Problem(
        predation,
        data,
        parameter_bounds=(LOWER, UPPER),
        weight_decay=weight_decay,
    )


def network() -> co.Deviation:
    """Return a network of the logarithm of hares, untrained."""
    return co.Deviation(1, center=CENTER, key=KEY)


class Law(NamedTuple):
    """A trained law: its level, its state, and what `Outcome.gain` is."""

    level: co.Transcription
    state: eg.TrainState
    gain: float | None


def fitted(record: Record, model: co.Model) -> Law:
    """Fit a law as it is."""
    count = 2 * int(record.shown.sum())
    decay = 0.0 if model.networks is None else 1 / count
    level = co.transcribe(problem(record, decay), intervals=28)
    trainer = co.CollocationTrainer(max_iter=200)
    state = trainer.init(model, level.guess())
    state, _ = eg.fit(trainer, state, [level], key=KEY)
    return Law(level, state, None)


def chosen(record: Record) -> Law:
    """Let the evidence choose between a constant and a network."""
    level = co.transcribe(problem(record), intervals=28)
    trainer = co.CollocationTrainer(max_iter=200)
    choice = co.choose(trainer, co.Model(STARTS, network()), level, key=KEY)
    if choice.evidence is None:
        return Law(choice.transcription, choice.state, None)
    gain = float(choice.evidence.log_evidence - choice.plain.log_evidence)
    return Law(choice.transcription, choice.state, gain)


def laws() -> dict[str, Callable[[Record], Law]]:
    """Return the ways to a law."""
    return {
        CONSTANT: lambda record: fitted(record, co.Model(STARTS, None)),
        DECAY: lambda record: fitted(record, co.Model(STARTS, network())),
        CHOSEN: chosen,
    }


def train(name: str, record: Record) -> Outcome:
    """Find a law, and simulate it to the last year."""
    began = time.perf_counter()
    level, state, gain = laws()[name](record)
    seconds = time.perf_counter() - began
    model = state.model
    found = co.covariance(level, state)
    times, hares = np.linspace(0, LAST, 201), np.linspace(5, 90, 60)
    start, forward = state.memory(0.0)[0], diffrax.ForwardMode()
    curve = lambda m: co.integrate(level.problem, m, start, times, adjoint=forward)
    each = lambda m: jax.vmap(lambda h: log_attack(m.parameters, m.networks, h))(
        jnp.log(jnp.asarray(hares))
    )
    curves, rates = (
        (np.asarray(f(model)), co.propagated(f, model, found.model))
        for f in (curve, each)
    )
    years = record.ts - record.ts[0]
    errors = curves[0][np.searchsorted(times, years - 1e-6)] - record.ys
    root = lambda e: float(np.sqrt(np.mean(e**2)))
    return Outcome(
        name,
        bool(np.ptp(rates[0]) > 1e-6),
        root(errors[record.shown]),
        root(errors[~record.shown]),
        gain,
        seconds,
        times,
        curves,
        hares,
        rates,
    )
