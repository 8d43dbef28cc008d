"""Regime switches against all histories, one by one, in float64."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

import effgen as eg
from effgen import neural_sde as ns
from effgen.neural_sde.fits.regime_fits import fit_of
from effgen.neural_sde.fits.regimes import one_of, record_of


RATES = np.array([[0.0, 0.3], [0.8, 0.0]])
KINDS = {"calm": (0.2, 0.5, 0.1), "wild": (1.5, 2.0, 0.6)}  # rate, sigma, noise
TS = np.array([0.0, 0.5, 0.7, 1.9, 2.4, 4.0])
YS = np.array([0.1, -0.3, 1.4, np.nan, 2.0, -0.2])


def switching(rates=RATES):
    law = ns.Gaussian.independent(np.zeros(1), 1.0)
    models = {
        name: ns.LatentSDE(
            ns.DiagonalSDE(rate, 0.0, sigma, law), ns.LinearDecoder(np.eye(1), noise)
        )
        for name, (rate, sigma, noise) in KINDS.items()
    }
    return ns.Switching(models, rates)


def history(regimes, rates=RATES):
    """`log p(y, regimes)`, and the last state's law, by scalar Kalman steps."""
    generator = rates - np.diag(rates.sum(1))
    chance = np.array([0.8, 0.3]) / 1.1  # the chain's own law
    log = np.log(chance[regimes[0]])
    mean, variance = 0.0, 1.0
    for i, (t, y) in enumerate(zip(TS, YS, strict=True)):
        rate, sigma, noise = list(KINDS.values())[regimes[i]]
        if i:
            gap = t - TS[i - 1]
            log += np.log(
                scipy.linalg.expm(generator * gap)[regimes[i - 1], regimes[i]]
            )
            mean *= np.exp(-rate * gap)
            variance *= np.exp(-2 * rate * gap)
            variance += sigma**2 * -np.expm1(-2 * rate * gap) / (2 * rate)
        if not np.isnan(y):
            total = variance + noise**2
            log += -0.5 * (y - mean) ** 2 / total - 0.5 * np.log(2 * np.pi * total)
            mean += variance / total * (y - mean)
            variance *= noise**2 / total
    return log, mean, variance


def test_regimes_are_those_of_all_histories():
    found = switching().filter(TS, YS, num_histories=64)
    assert isinstance(found, ns.Regimes)
    ways = list(itertools.product((0, 1), repeat=len(TS)))
    told = [history(way) for way in ways]
    logs = np.array([log for log, _, _ in told])
    exact = np.log(np.sum(np.exp(logs)))
    np.testing.assert_allclose(found.log_evidence, exact, rtol=1e-4)
    shares = np.exp(logs - exact)
    right = [
        [shares[[w[i] == k for w in ways]].sum() for k in (0, 1)] for i in range(6)
    ]
    np.testing.assert_allclose(found.smoothed, right, atol=1e-4)
    np.testing.assert_allclose(found.filtered[-1], right[-1], atol=1e-4)
    np.testing.assert_allclose(found.dropped, 0, atol=1e-5)
    assert list(found.to_pandas().columns) == ["calm", "wild"]
    # The mixture's mean a moment after the last time.
    mean = sum(s * m for s, (_, m, _) in zip(shares, told, strict=True))
    bands = found.forecast([4.0001], key=jax.random.key(0), num_paths=20_000)
    np.testing.assert_allclose(bands.mean[0, 0], mean, atol=0.02)
    few = switching().filter(TS, YS, num_histories=4)
    assert exact - 1 < few.log_evidence < exact
    assert few.dropped[-1] > 0


def test_what_is_no_set_of_regimes_is_refused():
    one = switching().models[0]
    with pytest.raises(TypeError, match="two or more"):
        ns.Switching({"calm": one}, 1.0)
    with pytest.raises(ValueError, match="pass positive ones"):
        ns.Switching({"calm": one, "wild": one}, -1.0)
    with pytest.raises(ValueError, match="pass one series"):
        switching().filter(TS[None], YS[None])


def test_models_whose_law_is_not_the_same_at_all_times_are_refused():
    one = switching().models[0]
    evaluate = lambda t: (-jnp.eye(1), jnp.sin(t)[None], jnp.eye(1))
    varying = dataclasses.replace(
        one, linear=ns.VaryingSDE(evaluate, one.linear.initial)
    )
    with pytest.raises(ValueError, match="model of 'wild' varies with time"):
        ns.Switching({"calm": one, "wild": varying}, 1.0)
    with pytest.raises(ValueError, match=r"model of 'wild' has `t0` 0\.0: leave"):
        ns.Switching({"calm": one, "wild": dataclasses.replace(one, t0=0.0)}, 1.0)


def test_settings_of_regimes_are_refused_by_name():
    with pytest.raises(ValueError, match="`num_histories` is 1: pass at least 2"):
        switching().filter(TS, YS, num_histories=1)
    with pytest.raises(ValueError, match="`prior_scale` is 0"):
        ns.fit_regimes(switching(), TS, YS, prior_scale=0)
    with pytest.raises(ValueError, match="`max_steps` is 0"):
        ns.fit_regimes(switching(), TS, YS, max_steps=0)
    with pytest.raises(ValueError, match="`num_starts` is 0"):
        ns.fit_regimes(switching(), TS, YS, num_starts=0)
    found = switching().filter(TS, YS, num_histories=64)
    key = jax.random.key(0)
    for settings, error, said in (
        ({"key": None}, TypeError, "`key` is None"),
        ({"key": key, "num_paths": 0}, ValueError, "`num_paths` is 0"),
        ({"key": key, "levels": 0.9}, TypeError, "pass a tuple"),
        ({"key": key, "levels": (1.5,)}, ValueError, "probabilities"),
    ):
        with pytest.raises(error, match=said):
            found.forecast([5.0], **settings)


def test_a_fit_of_regimes_that_has_not_converged_says_so():
    with pytest.warns(eg.RunWarning, match="not converged in 1 steps"):
        ns.fit_regimes(switching(), TS, YS, num_histories=2, num_starts=1, max_steps=1)


def test_rates_of_regimes_have_the_prior_of_logarithms():
    model = switching()
    series = one_of(record_of(model, TS, YS, None, "s").series)
    fit = fit_of(model, series, 1.5, 4)
    same = fit.model(fit.start)
    for kept, start in zip(same.models, model.models, strict=True):
        np.testing.assert_allclose(kept.linear.rates, start.linear.rates, rtol=1e-6)
        np.testing.assert_allclose(kept.linear.log_scale, start.linear.log_scale)
    # Of the calm model rates, log_scale and the noise's; of the wild one the same.
    assert fit.is_log.sum() == 4 + 2 * 3
    assert fit.by_logs.sum() == 2
    place = int(np.flatnonzero(fit.by_logs)[0])
    away = fit.start.at[place].add(3.0)
    prior = fit(away) + fit.log_evidence(away)
    np.testing.assert_allclose(prior, 0.5 * (3 / 1.5) ** 2, rtol=1e-3)
    np.testing.assert_allclose(
        fit.model(away).models[0].linear.rates, 0.2 * np.exp(3), rtol=1e-5
    )


@pytest.mark.slow
def test_regimes_are_found_by_fitting():
    rng = np.random.default_rng(0)
    ts, calm = np.arange(300.0), (np.arange(300) // 50) % 2 == 0
    noise = np.where(calm, 0.2, 2.0)
    ys = noise * rng.normal(size=300)
    law = ns.Gaussian.independent(np.zeros(1), 1.0)
    make = lambda scale: ns.LatentSDE(
        ns.DiagonalSDE(0.5, 0.0, 0.1, law), ns.LinearDecoder(np.eye(1), scale)
    )
    start = ns.Switching({"calm": make(0.5), "wild": make(1.0)}, 0.05)
    found, value = ns.fit_regimes(start, ts, ys, num_histories=16, max_steps=60)
    same = found.filter(ts, ys, num_histories=16).log_evidence
    assert value == pytest.approx(float(same), abs=0.05)
    assert value > float(start.filter(ts, ys).log_evidence) + 20
    scales = [float(m.decoder.scale[0]) for m in found.models]
    np.testing.assert_allclose(scales, [0.2, 2.0], rtol=0.25)
    told = np.asarray(found.filter(ts, ys).smoothed)[:, 0] > 0.5
    assert np.mean(told == calm) > 0.95


def test_rates_and_scales_are_fitted_where_two_times_are_equal():
    law = ns.Gaussian.independent(np.zeros(1), 1.0)
    kinds = {
        name: ns.LatentSDE(
            ns.DiagonalSDE(0.5, 0.0, noise, law), ns.LinearDecoder([[1.0]], 0.2)
        )
        for name, noise in (("calm", 0.1), ("wild", 2.0))
    }
    begun = ns.Switching(kinds, 0.1)
    ys, ts = np.random.default_rng(0).normal(size=10), np.arange(10.0)
    ts[5] = ts[4]
    start = float(begun.filter(ts, ys).log_evidence)
    found, evidence = ns.fit_regimes(begun, ts, ys, num_starts=1)[:2]
    assert float(evidence) > start + 1
    assert not np.allclose(np.exp(found.log_rates)[0, 1], 0.1, rtol=1e-3)


def test_long_after_the_last_value_regimes_have_their_own_law():
    found = switching().filter(TS, YS).forecast([3e5, 1e6], key=jax.random.key(0))
    shares = np.array([0.8, 0.3]) / 1.1
    kinds = np.array(list(KINDS.values()))
    variance = kinds[:, 1] ** 2 / (2 * kinds[:, 0]) + kinds[:, 2] ** 2
    # The state goes on between regimes, which turn within a gap only at its ends.
    scale = np.sqrt(shares @ variance)
    np.testing.assert_allclose(found.samples[..., 0].std(0), scale, rtol=0.1)


def test_an_outage_of_any_length_leaves_the_evidence_finite():
    after = lambda gap: switching().filter(np.r_[TS[:5], gap], YS)
    found = after(1e9)
    np.testing.assert_allclose(found.log_evidence, after(1e3).log_evidence, rtol=1e-5)
    assert np.all(np.isfinite(found.smoothed))


@pytest.mark.usefixtures("x64")
def test_regimes_are_forecast_in_double_precision():
    found = switching().filter(TS, YS).forecast([5.0], key=jax.random.key(0))
    assert found.samples.dtype == jnp.float64


def test_two_precise_sensors_of_a_wide_state_keep_their_digits():
    law = ns.Gaussian.independent(np.zeros(1), 100.0)
    rng = np.random.default_rng(0)
    ys = np.cumsum(rng.normal(size=20))[:, None] + 0.01 * rng.normal(size=(20, 2))

    def evidence():
        models = {
            name: ns.LatentSDE(
                ns.DiagonalSDE(0.01, 0.0, sigma, law),
                ns.LinearDecoder(np.ones((2, 1)), 0.01),
            )
            for name, sigma in (("calm", 0.3), ("wild", 2.0))
        }
        return ns.Switching(models, 0.1).filter(np.arange(20.0), ys).log_evidence

    with jax.enable_x64(True):
        exact = float(evidence())
    np.testing.assert_allclose(float(evidence()), exact, atol=1e-3)
