"""Misfits that outliers do not rule: closed forms, SciPy's fits, and refusals."""

import jax
import numpy as np
import pytest
import scipy.optimize

import effgen as eg
from effgen import collocation as co
from effgen.collocation.modeling.misfits import influence


KEY = jax.random.key(0)
TS = np.linspace(0, 4, 41)
MISFITS = {"huber": co.Huber(1.5), "soft_l1": co.SoftL1(1.5)}


def decay(t, x, u, p, nets):
    return -p["k"] * x


def outlying():
    """Return a decay with noise of 0.05, of which each eighth value is far too high."""
    rng = np.random.default_rng(0)
    ys = 3 * np.exp(-0.5 * TS) + 0.05 * rng.normal(size=41)
    return ys + np.where(np.arange(41) % 8 == 3, 1.0 + rng.uniform(size=41), 0.0)


def test_misfits_are_squares_near_zero_and_lines_far_out():
    at = np.array([0.0, 0.1, -1.0, 4.0, -9.0])
    far = np.abs(at) > 1.5
    huber = np.where(far, 1.5 * np.abs(at) - 1.5**2 / 2, at**2 / 2)
    soft = 1.5**2 * (np.sqrt(1 + (at / 1.5) ** 2) - 1)
    for misfit, wanted in ((co.Huber(1.5), huber), (co.SoftL1(1.5), soft)):
        np.testing.assert_allclose(misfit(at), wanted, rtol=1e-12)
    pull, weight = influence(co.Huber(1.5), at[:, None])
    np.testing.assert_allclose(pull[:, 0], np.clip(at, -1.5, 1.5))
    np.testing.assert_array_equal(weight[:, 0], ~far)
    pull, weight = influence(co.Squares(), at[:, None])
    np.testing.assert_array_equal(pull[:, 0], at)
    np.testing.assert_array_equal(weight, 1)


@pytest.mark.one_case("soft_l1")
@pytest.mark.parametrize("name", MISFITS)
def test_a_fit_and_its_covariance_are_those_of_an_m_estimate(name):
    """SciPy's fit of the closed form, and Huber's covariance of it."""
    ys, misfit = outlying(), MISFITS[name]
    problem = co.Problem(decay, (TS, ys), scale=0.05, misfit=misfit)
    level = co.transcribe(problem, intervals=10, stages=4)
    trainer = co.CollocationTrainer(tol=1e-11)
    state = trainer.init(co.Model({"k": 0.4}, None), level.guess())
    state, history = eg.fit(trainer, state, [level], key=KEY)
    assert history["status"][-1] == 0
    curve = lambda q: q[0] * np.exp(-q[1] * TS)
    how = dict(loss=name, f_scale=1.5, xtol=1e-15, gtol=1e-15, ftol=1e-15)
    left = lambda q: (curve(q) - ys) / 0.05
    best = scipy.optimize.least_squares(left, [3, 0.5], **how)
    np.testing.assert_allclose(state.model.parameters["k"], best.x[1], rtol=1e-5)
    np.testing.assert_allclose(history["loss"][-1], best.cost / 41, rtol=1e-6)
    found = co.covariance(level, state)
    slopes = np.stack([curve([1, best.x[1]]), -TS * curve(best.x)], 1) / 0.05
    pull, weight = (part[:, 0] for part in influence(misfit, left(best.x)[:, None]))
    inverse = np.linalg.inv(slopes.T @ (weight[:, None] * slopes))
    effective = np.trace(inverse @ slopes.T @ (weight[:, None] * slopes))
    spread = np.sum(pull**2) / (41 - effective)
    wanted = spread * inverse @ slopes.T @ slopes @ inverse
    np.testing.assert_allclose(found.model[0, 0], wanted[1, 1], rtol=1e-3)
    noise = np.sqrt(spread) / weight.mean()
    np.testing.assert_allclose(found.noise, noise, rtol=1e-3)
    # Least squares are far off, by ten of these deviations.
    plain = scipy.optimize.least_squares(left, [3, 0.5]).x[1]
    assert abs(float(state.model.parameters["k"]) - 0.5) < 3 * np.sqrt(wanted[1, 1])
    assert abs(plain - 0.5) > 5 * np.sqrt(wanted[1, 1])
    with pytest.raises(ValueError, match="`noise` is of least squares"):
        co.covariance(level, state, noise=1.0)
    with pytest.raises(ValueError, match="the evidence is that of normal noise"):
        co.evidence(level, state)


def test_misfits_that_cannot_be_are_refused_by_name():
    data = (TS, outlying())
    with pytest.raises(ValueError, match="there is no `scale`: pass the noise's"):
        co.Problem(decay, data, misfit=co.Huber())
    with pytest.raises(TypeError, match=r"`misfit` is .*: pass `Huber\(\)`"):
        co.Problem(decay, data, scale=0.1, misfit=co.Huber)
    for kind in (co.Huber, co.SoftL1):
        with pytest.raises(ValueError, match=r"`threshold` is 0\.0"):
            kind(0.0)
