"""The evidence of a fit: precise data, and parameters at their bounds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
from jax.flatten_util import ravel_pytree

import effgen as eg
from effgen import collocation as co


def test_directions_that_only_the_prior_tells_count_on_precise_data():
    """Noise of 1e-4, 24 weights: against a QR of residuals and prior, by quadrature."""
    ts = np.linspace(0, 1, 60)
    noise = 1e-4 * np.random.default_rng(0).normal(size=60)
    ys = ts + np.sin(3 * ts) / 3 + noise
    network = co.Deviation(1, 8, key=jax.random.key(0))
    law = lambda t, x, u, p, nets: nets(t)[None]
    trainer = co.CollocationTrainer(tol=1e-10, max_iter=400)
    state = None
    for decay in (1e-4, 1e-7, 1e-10):  # the last is a prior of deviation three
        problem = co.Problem(law, (ts, ys[:, None]), weight_decay=decay)
        level = co.transcribe(problem, intervals=8, stages=5)
        if state is None:
            state = trainer.init(co.Model({}, network), level.guess())
        state, _ = eg.fit(trainer, state, iter([level]), key=jax.random.key(0))
    found = co.evidence(level, state)
    nodes, weights = np.polynomial.legendre.leggauss(40)
    at, size = ts[:, None] * (nodes + 1) / 2, ts[:, None] * weights / 2
    flat, unravel = ravel_pytree(state.model.networks)
    integral = lambda w: jnp.sum(size * jax.vmap(jax.vmap(unravel(w)))(at), axis=1)
    rows = np.concatenate([np.ones((60, 1)), jax.jacfwd(integral)(flat)], axis=1)
    rows = rows / (problem.scale[0] * np.sqrt(60))
    prior = np.sqrt(decay) * np.eye(25)[1:]
    inverse = np.linalg.inv(np.linalg.qr(np.concatenate([rows, prior]), mode="r"))
    left = decay * np.sum(inverse[1:] ** 2)
    np.testing.assert_allclose(found.effective, 24 - left, rtol=1e-3)
    assert np.isfinite(co.covariance(level, state).model).all()


@pytest.mark.parametrize("unit", [1.0, 1e6, 1e-6])
def test_a_parameter_at_its_bound_counts_by_what_is_inside(unit):
    """A slope of 0.3, at least 0.31: the integral over the slope, by quadrature."""
    ts = np.linspace(0, 1, 21)
    ys = 0.3 * ts + 0.05 * np.random.default_rng(0).normal(size=21)
    law = lambda t, x, u, p, nets: p["c"][None] * unit
    problem = co.Problem(
        law,
        (ts, ys[:, None]),
        initial=co.Initial([0.0]),
        parameter_bounds=({"c": 0.31 / unit}, {"c": np.inf}),
        scale=1.0,
    )
    level = co.transcribe(problem, intervals=2, stages=2)
    trainer = co.CollocationTrainer(tol=1e-12)
    state = trainer.init(co.Model({"c": 0.5 / unit}, None), level.guess())
    state, _ = eg.fit(trainer, state, [level], key=jax.random.key(0))
    np.testing.assert_allclose(state.model.parameters["c"] * unit, 0.31, rtol=1e-6)
    found = co.evidence(level, state)
    squares = lambda c: np.sum((ys - c * ts) ** 2)
    variance = squares(0.31) / 21
    np.testing.assert_allclose(found.noise[0] ** 2, variance, rtol=1e-6)
    density = lambda c: np.exp((squares(0.31) - squares(c)) / (2 * variance))
    inside = scipy.integrate.quad(density, 0.31, 1.0, points=[0.35, 0.4])[0] / unit
    expected = np.log(inside / np.sqrt(2 * np.pi)) - 21 / 2 * (np.log(variance) + 1)
    np.testing.assert_allclose(found.log_evidence, expected, rtol=1e-6)
