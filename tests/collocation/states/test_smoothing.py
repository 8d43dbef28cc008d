"""Measured columns, smoothed: the cross-validation's parts, and records that turn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.interpolate

import effgen as eg
from effgen import collocation as co
from effgen.collocation.states import smoothing


@pytest.mark.parametrize("form", ["_by_eigenvalues", "_by_probes"])
def test_the_trace_and_what_is_left_are_those_of_scipys_splines(form):
    rng = np.random.default_rng(0)
    ts = np.cumsum(rng.uniform(0.3, 2.0, 40))
    ys = np.sin(ts / 4) + 0.1 * rng.normal(size=40)
    tried = np.geomspace(1e-4, 1e4, 5)
    left, trace, squared = getattr(smoothing, form)(ts, ys, tried)
    for k, weight in enumerate(tried):
        hat = scipy.interpolate.make_smoothing_spline(ts, np.eye(40), lam=weight)(ts)
        np.testing.assert_allclose(left[k], np.sum((ys - hat @ ys) ** 2), rtol=1e-6)
        rtol = 1e-6 if form == "_by_eigenvalues" else 0.2  # a mean over 30 signs
        np.testing.assert_allclose(trace[k], 40 - np.trace(hat), rtol=rtol)
        np.testing.assert_allclose(squared[k], np.trace(hat @ hat), rtol=rtol)


CASES = [(8, 1, 0.02), (41, 6, 0.05), (101, 6, 0.02), (201, 10, 0.02), (1001, 10, 0.1)]


@pytest.mark.parametrize(("num", "turns", "noise"), CASES)
@pytest.mark.parametrize("unit", [1.0, 1e6, 1e-6])
def test_records_that_turn_many_times_keep_their_turns(num, turns, noise, unit):
    ts = np.linspace(0, 1, num)
    exact = np.cos(2 * np.pi * turns * ts)
    ys = exact + noise * np.random.default_rng(0).normal(size=num)
    found = smoothing.smoothed(ts * unit, ys / unit, ts * unit) * unit
    assert np.sqrt(np.mean((found - exact) ** 2)) < noise


def test_without_noise_the_samples_stay():
    ts = np.linspace(0, 1, 201)
    ys = 5.0 + np.cos(2 * np.pi * 6 * ts)
    np.testing.assert_allclose(smoothing.smoothed(ts, ys, ts), ys, atol=1e-4)
    np.testing.assert_allclose(smoothing.smoothed(ts, 0 * ts + 3, ts), 3.0)


def test_an_oscillation_of_six_turns_is_fitted_from_a_far_rate():
    law = lambda t, x, u, p, nets: jnp.stack([x[1], -p["k"] * x[0]])
    ts = np.linspace(0, 6 * np.pi, 241)
    noise = 0.01 * np.random.default_rng(0).normal(size=(241, 2))
    ys = np.stack([np.cos(2 * ts), -2 * np.sin(2 * ts)], axis=1) + noise
    level = co.transcribe(co.Problem(law, (ts, ys)), intervals=72, stages=4)
    np.testing.assert_allclose(level.guess()(0.0)[0], [1, 0], atol=0.1)
    trainer = co.CollocationTrainer(tol=1e-8)
    state = trainer.init(co.Model({"k": 1.0}, None), level.guess())
    state, _ = eg.fit(trainer, state, [level], key=jax.random.key(0))
    np.testing.assert_allclose(state.model.parameters["k"], 4.0, atol=0.005)
