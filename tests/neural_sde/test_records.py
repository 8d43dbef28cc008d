"""Records as people have them: dates, own errors, own horizons, inputs to come."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
import pytest

import effgen as eg
from effgen import neural_sde as ns


KEY = jax.random.key(0)


def ornstein(rate=1.0, sigma=0.5, obs=0.1, **settings):
    law = ns.Gaussian.independent(np.zeros(1), sigma / np.sqrt(2 * rate))
    linear = ns.DiagonalSDE(rate, 0.0, sigma, law, **settings)
    return ns.LatentSDE(linear, ns.LinearDecoder(np.eye(1), obs))


def exact(ts, ys, rate, sigma, errors):
    """`log N(y; 0, K)` in float64."""
    gaps = np.abs(ts[:, None] - ts)
    cov = sigma**2 / (2 * rate) * np.exp(-rate * gaps) + np.diag(errors**2)
    half = np.linalg.solve(np.linalg.cholesky(cov), ys)
    logs = np.sum(np.log(np.diag(np.linalg.cholesky(cov))))
    return -0.5 * half @ half - logs - 0.5 * len(ys) * np.log(2 * np.pi)


@pytest.mark.one_case("1700000000.0")
@pytest.mark.parametrize("origin", [0.0, 1.7e9])
def test_unix_seconds_keep_their_minutes(origin):
    ts, rng = np.arange(120) * 60.0, np.random.default_rng(0)
    ys = rng.normal(size=120)
    rate, sigma = 1 / 600, 0.5 / np.sqrt(600)
    model = ornstein(rate, sigma, 1.0)
    found = ns.posterior(model, ts + origin, ys, dt=60.0)
    right = exact(ts, ys, rate, sigma, np.ones(120))
    assert abs(found.log_evidence - right) < 0.01
    band = found.forecast([origin + 7_200.0], key=KEY, num_paths=4)
    assert np.asarray(band.ts)[0] == origin + 7_200


def test_dates_are_times():
    index = pd.date_range("2024-01-01", periods=50, freq="D")
    ys = np.random.default_rng(0).normal(size=50)
    found = ns.posterior(ornstein(0.1, 0.3, 1.0), index, ys, dt=1.0, unit="D")
    right = exact(np.arange(50.0), ys, 0.1, 0.3, np.ones(50))
    assert abs(found.log_evidence - right) < 0.01
    band = found.forecast(index[-1:] + pd.Timedelta(days=2), key=KEY, num_paths=4)
    assert pd.Timestamp(np.asarray(band.ts)[0]) == pd.Timestamp("2024-02-21")
    with pytest.raises(TypeError, match="the record has dates"):
        found.marginals([52.0])


def test_times_that_float32_rounds_away_are_refused_in_training():
    model = ornstein()
    ts, ys = np.arange(20.0)[None] * 60 + 1.7e9, np.zeros((1, 20))
    trainer = ns.LatentSDETrainer(optax.adam(1e-2), dt=60.0)
    data = eg.Minibatches((ts, ys), 1)
    with pytest.raises(ValueError, match="their gaps are lost in float32"):
        eg.fit(trainer, trainer.init(model), data, key=KEY, num_steps=1)


def test_every_value_has_its_own_error():
    ts, ys = np.arange(5.0), np.array([0.3, -0.2, 0.5, 0.1, 0.0])
    errors = np.array([0.1, 1.0, 0.1, 0.5, 0.1])
    found = ns.posterior(ornstein(obs=1.0), ts, ys, errors=errors, dt=1.0)
    assert abs(found.log_evidence - exact(ts, ys, 1.0, 0.5, errors)) < 1e-4
    twice = ns.posterior(ornstein(obs=2.0), ts, ys, errors=errors / 2, dt=1.0)
    np.testing.assert_allclose(twice.log_evidence, found.log_evidence, rtol=1e-5)
    # What was not seen has the sensor's median error.
    band = found.forecast([5.0], key=KEY, num_paths=4_000)
    scale = np.hypot(found.marginals([5.0]).scale[0, 0], 0.1)
    spread = band.quantiles[-1, 0, 0] - band.quantiles[0, 0, 0]
    np.testing.assert_allclose(spread, 2 * 1.6449 * scale, rtol=1e-3)
    np.testing.assert_allclose(band.samples.std(), scale, rtol=0.05)
    with pytest.raises(ValueError, match="`errors` are not positive at"):
        ns.posterior(ornstein(), ts, ys, errors=errors - 0.1)
    with pytest.raises(ValueError, match="`errors` have shape"):
        ns.posterior(ornstein(), ts, ys, errors=errors[:3])


@pytest.mark.slow
def test_errors_are_trained_with():
    rng, n = np.random.default_rng(0), 30
    ts = np.tile(np.arange(20.0), (n, 1))
    errors = rng.uniform(0.1, 2.0, size=ts.shape)
    state = rng.normal(size=ts.shape)
    model = ornstein(rate=30.0, sigma=np.sqrt(60.0), obs=0.3)
    ys = state + 1.5 * errors * rng.normal(size=ts.shape)
    trainer = ns.LatentSDETrainer(optax.adam(5e-2), dt=1.0, num_paths=1)
    data = eg.Minibatches((ts, ys, np.ones(ts.shape, bool), None, errors), n)
    state, _ = eg.fit(trainer, trainer.init(model), data, key=KEY, num_steps=200)
    assert abs(state.model.decoder.scale[0] - 1.5) < 0.15


@pytest.mark.slow
def test_each_series_has_its_own_horizon():
    series = [(np.arange(3.0), np.ones(3)), (np.arange(2.0), np.ones(2))]
    found = ns.posterior(ornstein(), *ns.pad_series(series), dt=0.1)
    times = np.array([[2.5], [1.5]])
    band = found.forecast(times, key=KEY, num_paths=4)
    for i, (t, y) in enumerate(series):
        alone = ns.posterior(ornstein(), t, y, dt=0.1)
        mean = alone.forecast(t[-1] + 0.5, key=KEY, num_paths=4).mean
        np.testing.assert_allclose(band.mean[i], mean, rtol=1e-4)
    with pytest.raises(ValueError, match="of series 0"):
        found.forecast(1.5, key=KEY)
    with pytest.raises(ValueError, match="`times` have shape"):
        found.marginals(np.zeros((3, 2)))


def test_times_that_float32_rounds_are_those_of_the_record():
    ts, inputs = np.array([0.1, 4.3]), np.array([[1.0], [3.0]])
    model = ornstein(1.3, input_matrix=[[2.0]])
    found = ns.posterior(model, ts, np.zeros(2), inputs=inputs, dt=5.0)
    same = found.marginals(ts).mean
    np.testing.assert_allclose(same, found.marginals().mean, rtol=1e-5)
    with pytest.warns(eg.RunWarning, match="the last known are held"):
        now, later = found.marginals([4.3, 5.3]).mean[:, 0]
    right = now * np.exp(-1.3) + 2 * 3 * -np.expm1(-1.3) / 1.3
    np.testing.assert_allclose(later, right, rtol=1e-4)
    found.record.check_later([4.3], found.record.last_values)


def test_inputs_to_come_are_exact_and_those_that_are_not_given_are_named():
    model = ornstein(1.3, input_matrix=[[2.0]])
    inputs = np.array([[1.0], [0.0], [3.0]])
    found = ns.posterior(model, np.arange(3.0), np.zeros(3), inputs=inputs, dt=0.1)
    x = float(found.marginals([2.0]).mean[0, 0])
    right = []
    for u in (3.0, 10.0):  # 3 from the last time on, 10 from the time asked for
        x = x * np.exp(-1.3) + 2 * u * -np.expm1(-1.3) / 1.3
        right.append(x)
    law = found.marginals([3.0, 4.0], inputs=[[10.0], [10.0]])
    np.testing.assert_allclose(law.mean[:, 0], right, rtol=1e-4)
    with pytest.warns(eg.RunWarning, match="the last known are held"):
        found.marginals([3.0])
    with pytest.raises(ValueError, match="`inputs` have shape"):
        found.marginals([3.0, 4.0], inputs=[[1.0]])
    with pytest.raises(ValueError, match="the series has none"):
        ns.posterior(ornstein(), np.arange(3.0), np.zeros(3)).marginals(inputs=[[1.0]])
    with pytest.raises(ValueError, match="`inputs` are not finite"):
        ns.posterior(model, np.arange(3.0), np.zeros(3), inputs=inputs * np.nan)
    with pytest.raises(ValueError, match="no part of the model sees them"):
        ns.posterior(ornstein(), np.arange(3.0), np.zeros(3), inputs=inputs)


def test_plain_paths_follow_inputs_from_the_first_time_on():
    law = ns.Gaussian.independent(np.zeros(1), 0.5)
    linear = ns.DiagonalSDE(1.0, 0.0, 0.5, law, input_matrix=[[1.0]])
    control = ns.PlainControl(
        1, 1, key=KEY, width_size=8, learn_start=False, num_inputs=1
    )
    decoder = ns.LinearDecoder(np.eye(1), 0.1)
    model = ns.LatentSDE(linear, decoder, control=control, dt=0.05)
    ts = np.arange(10) * 0.2
    for u in (1.0, 100.0):
        series = (ts, np.zeros(10), np.ones(10, bool), np.full((10, 1), u))
        paths = ns.plain_paths(model, series, ts[-1:], num=2_000, key=KEY)
        np.testing.assert_allclose(
            paths[:, -1].mean(), u * -np.expm1(-1.8), rtol=0.05, atol=0.05
        )


@pytest.mark.slow
def test_a_drift_alone_may_see_inputs():
    drift = ns.DriftNetwork(1, num_inputs=1, key=KEY, width_size=8)
    model = ns.LatentSDE(
        ornstein().linear, ns.LinearDecoder(np.eye(1), 0.1), drift=drift
    )
    ts, mask, u = np.arange(5.0)[None], np.ones((1, 5), bool), np.ones((1, 5, 1))
    trainer = ns.LatentSDETrainer(optax.adam(1e-3), dt=0.5, num_paths=2)
    data = eg.Minibatches((ts, np.zeros((1, 5)), mask, u), 1)
    state, _ = eg.fit(trainer, trainer.init(model), data, key=KEY, num_steps=2)
    assert int(state.step) == 2
    wrong = eg.Minibatches((ts, np.zeros((1, 5)), mask, np.ones((1, 5, 3))), 1)
    with pytest.raises(TypeError, match="`drift` could not be called"):
        eg.fit(trainer, trainer.init(model), wrong, key=KEY, num_steps=1)


def test_two_readings_of_a_time_are_both_kept():
    first = (np.array([1.0, 0.0, 1.0, 2.0]), np.array([2.0, 1.0, 3.0, 4.0]))
    ts, ys = ns.merge_sensors([first, (np.array([1.0]), np.array([9.0]))])
    assert ts.tolist() == [0.0, 1.0, 1.0, 2.0]
    np.testing.assert_array_equal(ys[:, 0], [1.0, 2.0, 3.0, 4.0])
    np.testing.assert_array_equal(ys[:, 1], [np.nan, 9.0, np.nan, np.nan])
    with pytest.raises(ValueError, match="sensor 1 has"):
        ns.merge_sensors([first, (np.zeros(2), np.zeros(3))])
    with pytest.raises(ValueError, match="`sensors` is empty"):
        ns.merge_sensors([])


def test_a_posterior_lives_under_transformations():
    ts = np.arange(20.0) * 0.3
    ys = np.sin(ts)

    def log_evidence(p, ys):
        law = ns.Gaussian.independent(jnp.zeros(1), 0.5)
        linear = ns.DiagonalSDE(jnp.exp(p[0]), 0.0, jnp.exp(p[1]), law)
        model = ns.LatentSDE(linear, ns.LinearDecoder(np.eye(1), jnp.exp(p[2])))
        return ns.posterior(model, ts, ys, dt=0.3).log_evidence

    p = jnp.log(jnp.array([1.0, 0.5, 0.1]))
    right = jax.grad(log_evidence)(p, ys)
    np.testing.assert_allclose(jax.jit(jax.grad(log_evidence))(p, ys), right, rtol=1e-4)
    many = jax.vmap(log_evidence, (None, 0))(p, jnp.stack([ys, 2 * ys]))
    np.testing.assert_allclose(many[1], log_evidence(p, 2 * ys), rtol=1e-5)
    with pytest.raises(TypeError, match="`ts` is traced"):
        jax.jit(lambda ts: ns.posterior(ornstein(), ts, ys).log_evidence)(ts)


def test_values_far_from_the_offset_are_named():
    ts = np.arange(5.0)
    with pytest.warns(eg.RunWarning, match="deviations of the noise"):
        ns.posterior(ornstein(), ts, 300.0 + ts)


def test_dates_in_another_unit_than_the_model_are_named():
    days = np.arange("2024-01-01", "2024-01-11", dtype="datetime64[D]")
    model = dataclasses.replace(ornstein(), dt=1.0)
    with pytest.warns(eg.RunWarning, match="in `unit` 's' times are up to 8.64e"):
        ns.posterior(model, days, np.zeros(10))
    ns.posterior(model, days, np.zeros(10), unit="D")
    with pytest.warns(eg.RunWarning, match="`cycle` is 5 and times are 8.64e"):
        ns.structural(ns.cycle(5.0), days, np.arange(10.0))
    ns.structural(ns.cycle(5.0), days, np.arange(10.0), unit="D")


def test_a_horizon_that_a_series_outlives_is_named():
    law = ns.Gaussian.independent(np.zeros(1), 1.0)
    linear = ns.FractionalSDE(-np.eye(1), 0.0, 1.0, law, hurst=0.7, horizon=5.0)
    model = ns.LatentSDE(linear, ns.LinearDecoder(np.eye(1, 6), 0.1))
    ns.posterior(model, np.arange(6.0), np.zeros(6))
    with pytest.warns(eg.RunWarning, match="the `horizon` of `FractionalSDE` is 5"):
        ns.posterior(model, np.arange(7.0), np.zeros(7))


def test_rows_without_values_at_the_end_are_a_forecast_s_times():
    ts, ys = np.arange(6.0), np.array([0.3, -0.2, 0.5, np.nan, np.nan, np.nan])
    model = ornstein(1.3)
    times, options = np.array([3.0, 4.5]), {"key": jax.random.key(0), "num_paths": 10}
    found = ns.posterior(model, ts, ys).forecast(times, **options)
    alone = ns.posterior(model, ts[:3], ys[:3], dt=0.03).forecast(times, **options)
    np.testing.assert_allclose(found.quantiles, alone.quantiles, rtol=1e-5)
    with pytest.raises(ValueError, match=r"before the last observation at 2\.0"):
        ns.posterior(model, ts, ys).forecast([1.0], key=KEY)
