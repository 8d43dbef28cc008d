"""The evidence of a fit whose data are far more precise than the weights' prior."""

import jax
import jax.numpy as jnp
import numpy as np
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
