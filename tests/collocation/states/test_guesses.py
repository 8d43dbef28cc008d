"""First guesses: near the data in any spacing, and useful where nothing is measured."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate

import effgen as eg
from effgen import collocation as co


KEY = jax.random.key(0)


@pytest.mark.parametrize(
    "ts",
    [
        np.concatenate([[0], np.geomspace(1e-5, 1e4, 46)]),
        np.geomspace(1e-3, 1e3, 25),
        np.sort(np.concatenate([k + np.arange(20) * 1e-3 for k in range(5)])),
        np.sort(np.append(np.linspace(0, 1, 21), 0.5 + 1e-9)),
        1.7e9 + 86_400 * np.arange(30.0),
        np.linspace(0, 1, 30),
    ],
    ids=["logarithms", "decades", "bursts", "twice", "dates", "uniform"],
)
@pytest.mark.parametrize("unit", [1e-9, 1.0, 1e9])
def test_the_data_are_smoothed_in_any_spacing_and_unit(ts, unit):
    share = (ts - ts[0]) / np.ptp(ts)
    ys = np.exp(-share) + 0.01 * np.random.default_rng(0).normal(size=len(ts))
    problem = co.Problem(lambda t, x, u, p, nets: -x, (ts, unit * ys))
    guess = co.transcribe(problem, intervals=20).guess()
    exact = np.exp(-(guess.nodes() - ts[0]) / np.ptp(ts))
    error = np.asarray(guess.positions)[:, 0] / unit - exact
    assert np.abs(error).max() < 0.03


def test_what_is_not_measured_begins_at_its_initial_or_nominal_value():
    ts = np.linspace(0, 1, 9)
    ys = np.stack([np.cos(ts), np.full(9, np.nan), np.full(9, np.nan)], 1)
    problem = co.Problem(
        lambda t, x, u, p, nets: -x,
        (ts, ys),
        nominal=[1.0, 3.0, 5.0],
        initial=co.Initial([np.nan, np.nan, 0.5]),
        state_bounds=(-np.inf, [9.0, 2.0, 9.0]),
    )
    positions = np.asarray(co.transcribe(problem).guess().positions)
    np.testing.assert_array_equal(positions[:, 1], 2.0)
    np.testing.assert_array_equal(positions[:, 2], 0.5)


def pendulum(t, x, u, p, nets):
    pull = p["gl"] * jnp.sin(x[0])
    return jnp.stack([x[1], -pull - nets(x[1:]) + 0.8 * jnp.sin(1.3 * t)])


def swings():
    """Two swings of a pendulum with dry friction; the angle alone is measured."""
    law = lambda t, x: [
        x[1],
        -9.81 * np.sin(x[0])
        - 0.15 * x[1]
        - 0.3 * np.tanh(5 * x[1])
        + 0.8 * np.sin(1.3 * t),
    ]
    ts, rng = np.linspace(0, 8, 161), np.random.default_rng(0)
    data = []
    for start in ([1.0, 0.0], [-2.0, 0.5]):
        found = scipy.integrate.solve_ivp(law, (0, 8), start, t_eval=ts, rtol=1e-9)
        ys = np.full((161, 2), np.nan)
        ys[:, 0] = found.y[0] + 0.01 * rng.normal(size=161)
        data.append((ts, ys))
    return co.Problem(
        pendulum, data, nominal=[1, 3], weight_decay=1e-6, parameter_bounds=(1.0, 30.0)
    )


@pytest.mark.one_case("simulated")
@pytest.mark.parametrize("kind", ["guess", "simulated"])
def test_a_pendulum_of_which_the_angle_is_measured_is_learned(kind):
    friction = eqx.nn.MLP(1, "scalar", 8, 1, jax.nn.tanh, key=KEY)
    model = co.Model({"gl": 8.0}, friction)
    level = co.transcribe(swings(), intervals=40, stages=4)
    guess = level.guess() if kind == "guess" else level.simulated(model)
    np.testing.assert_array_equal(
        np.asarray(guess.positions)[:, 0], np.asarray(level.guess().positions)[:, 0]
    )
    trainer = co.CollocationTrainer(max_iter=300)
    state, history = eg.fit(trainer, trainer.init(model, guess), [level], key=KEY)
    assert history["status"][-1] == 0
    np.testing.assert_allclose(state.model.parameters["gl"], 9.81, rtol=3e-3)
